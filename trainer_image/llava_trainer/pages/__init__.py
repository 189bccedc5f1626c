"""What people read: pages as Jinja2 templates, and the shapes, pictures and words that they are filled with.

Knows nothing about what is reported. A page is one file that loads nothing: styles, images and curves are inside, and
a content security policy keeps it so.
"""
