"""What the operator tells those who run it."""
