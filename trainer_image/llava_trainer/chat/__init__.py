"""``llava-trainer chat``: asking a model, and the one that it was made from beside it, on this machine."""
