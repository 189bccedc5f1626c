"""The model: loading a checkpoint, what of it is trained, and the loss. Knows no data, no files of a run, no loop."""
