"""The endpoint to which running stages push their progress."""
