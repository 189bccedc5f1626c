"""Finding the training curve that the report draws."""

import re

from llava_api.constants import StageName
from llava_api.volume import RunVolume
from llava_trainer.training.history import Entry, read_entries


def find_curve(volume: RunVolume) -> list[Entry]:
    """Curve of the newest training attempt that logged a step: the one that made what was merged.

    A run that only aligns shows alignment's. Empty without any.
    """
    for stage in (StageName.TRAIN, StageName.ALIGN):
        for attempt in sorted(_attempts(volume, stage), reverse=True):
            entries = read_entries(volume.history_file(stage, attempt))
            if entries:
                return entries
    return []


def _attempts(volume: RunVolume, stage: StageName) -> list[int]:
    names = (folder.name for folder in (volume.root / "attempts").glob(f"{stage}-*"))
    return [int(found[1]) for name in names if (found := re.fullmatch(rf"{stage}-(\d+)", name))]
