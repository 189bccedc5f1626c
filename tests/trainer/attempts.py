"""Attempts of stages on a volume, begun as the frame of every stage begins them."""

from pathlib import Path

from llava_api.constants import StageName
from llava_api.run_config import RunConfig
from llava_api.volume import parse_attempt
from llava_trainer.attempts.folder import claim_attempt
from llava_trainer.attempts.takeover import take_over

FIRST_ATTEMPTS = dict.fromkeys(StageName, 1)
"""What a run configuration says of results where every stage has ended with its first attempt."""


def begin(config: RunConfig) -> RunConfig:
    """Make the attempt's folder and take over earlier ones; the folders of other stages' attempts are there, too."""
    for stage in config.results:
        config.volume.result_dir(stage).mkdir(parents=True, exist_ok=True)
    claim_attempt(config)
    take_over(config)
    return config


def begin_first(config: RunConfig) -> RunConfig:
    """The same of a first attempt, unless a later one has begun: then it is only looked at."""
    volume, run = config.volume, config.run
    later = (parse_attempt(path.name) for path in volume.attempts_dir.glob("*"))
    has_begun = any(found and found[0] is run.stage and found[1] > run.attempt for found in later)
    return config if run.attempt > 1 or has_begun else begin(config)


def taken_over(config: RunConfig, attempt: int) -> Path:
    """Folder of an earlier attempt that this one has taken over."""
    return config.volume.attempt_dir(config.run.stage, config.run.attempt) / "before" / f"{config.run.stage}-{attempt}"
