"""The training loop and what it stands on. One process is one rank; ``llava_trainer.gang.launcher`` starts them."""
