"""The model: loading a checkpoint, what of it is trained, the loss. Knows no samples, no files of a run, no loop."""
