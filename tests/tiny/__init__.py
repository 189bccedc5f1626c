"""Tiny LLaVAs and toy data that really learn, made on the machine that runs the test or the demo."""
