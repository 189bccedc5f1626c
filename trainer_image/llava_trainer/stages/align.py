"""The align stage, LLaVA's phase 1: the projector alone learns to translate images, from captions.

It runs as training does, with a dataset, a learning rate and batches of its own (``llava_trainer.training.phase``).
What it leaves is the projector, from which training starts.
"""

from llava_api.failures import Reason
from llava_api.run_config import RunConfig
from llava_api.text import show
from llava_trainer.errors import StageError
from llava_trainer.outcome import StageOutput
from llava_trainer.reporting import Reporter
from llava_trainer.stages import train


def run(config: RunConfig, reporter: Reporter) -> StageOutput:
    """Align the projector.

    Args:
        config: the run configuration.
        reporter: not used: the first rank reports with one of its own.

    Raises:
        StageError: InvalidConfig, if the model has a projector already that nobody asked to throw away; or what ended
            training.
    """
    refuse_aligned(config)
    return train.run_phase(config, artifact="projector", folder=config.volume.projector_dir)


def refuse_aligned(config: RunConfig) -> None:
    """Refuse to align a projector that is aligned: phase 1's learning rate, fit for a new one, would damage it.

    Raises:
        StageError: InvalidConfig, naming where the projector comes from.
    """
    if config.alignment is not None and config.alignment.fresh_projector:
        return
    for field, source in (("source", config.model.source), ("projector", config.model.projector)):
        if source is not None:
            raise StageError(
                Reason.INVALID_CONFIG,
                f"spec.model.{field} {show(source)} has a projector already, and spec.alignment would damage it: set "
                "spec.alignment.freshProjector to throw it away, or leave spec.alignment out",
            )
