"""The contract between the API server, the operator and the trainer.

Everything that crosses a process boundary is typed here: the ``LlavaFineTune`` resource, the run configuration
that the operator hands each stage, what a stage reports back, and the table of failures. The package knows
neither kopf nor torch, so that both sides (and a command line without either) can import it.
"""
