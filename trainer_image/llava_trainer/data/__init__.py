"""From a person's export to what the model is fed: reading, checking, splitting, encoding.

The same template, tokenisation and image processing serve training, evaluation and the exported processor, so that
what is served is what was trained.
"""
