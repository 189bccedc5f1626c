"""The result, handed on: what is published, and each kind of destination.

``content`` says which files make up what is published. A destination (``destination.Destination``) makes them visible
as a whole or not at all: ``bucket`` (s3://), ``hub`` (hf://), ``registry`` (oci://), ``claim`` (pvc://). What stands
there already is not sent again.
"""
