"""Children of a run, as plain dicts: pure functions of the run and the operator's settings."""
