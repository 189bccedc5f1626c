"""The stages of a run: each module has ``run(config, reporter) -> StageOutput`` (see ``llava_trainer.outcome``)."""
