"""Weights files: tensors found by their headers, read one at a time, written one at a time. Knows no model."""
