"""Tensors in files: found by their headers, read, made by recipes and written one at a time. Knows no model."""
