"""Finding the training curve that the report draws."""

from llava_api.constants import StageName
from llava_api.volume import RunVolume
from llava_trainer.training.history import Entry, read_entries


def find_curve(volume: RunVolume) -> list[Entry]:
    """Curve of the training attempt that made what was merged.

    A run that only aligns shows alignment's. Empty without any.
    """
    for stage in (StageName.TRAIN, StageName.ALIGN):
        attempt = (volume.results or {}).get(stage)
        entries = read_entries(volume.history_file(stage, attempt)) if attempt is not None else []
        if entries:
            return entries
    return []
