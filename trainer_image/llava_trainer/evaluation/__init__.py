"""Comparing the tuned model with its base: answers, scores, and the report for a person."""
