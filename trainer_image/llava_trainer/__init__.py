"""The trainer: one command a stage, from a run configuration to files on the run's volume and one result."""
