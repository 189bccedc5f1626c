"""Attempts of stages on a volume, begun as the frame of every stage begins them."""

from llava_api.constants import StageName
from llava_api.run_config import RunConfig
from llava_trainer.attempts.folder import claim_attempt
from llava_trainer.attempts.takeover import take_over

FIRST_ATTEMPTS = dict.fromkeys(StageName, 1)
"""What a run configuration says of results where every stage has ended with its first attempt."""


def begin(config: RunConfig) -> RunConfig:
    """Make the attempt's folder and take over earlier ones; the folders of the stages before it are there, too."""
    for stage in config.stages_before:
        config.volume.result_dir(stage).mkdir(parents=True, exist_ok=True)
    claim_attempt(config)
    take_over(config)
    return config
