"""Finding the training curve that the report draws."""

import re

from llava_api.constants import StageName
from llava_api.volume import RunVolume
from llava_trainer.training.history import Entry, read_entries


def find_curve(volume: RunVolume) -> list[Entry]:
    """Curve of the newest training attempt that logged a step: the one that made the adapter. Empty without any."""
    for attempt in sorted(_training_attempts(volume), reverse=True):
        entries = read_entries(volume.history_file(StageName.TRAIN, attempt))
        if entries:
            return entries
    return []


def _training_attempts(volume: RunVolume) -> list[int]:
    names = (folder.name for folder in (volume.root / "attempts").glob(f"{StageName.TRAIN}-*"))
    return [int(found[1]) for name in names if (found := re.fullmatch(rf"{StageName.TRAIN}-(\d+)", name))]
