"""Whether what a run has trained did learn. Two models that are equal because nothing was trained prove nothing."""

from pathlib import Path

import torch

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.merging.changes import Changes
from llava_trainer.merging.recipes import find_tensors
from llava_trainer.model.layout import PROJECTOR, SPOKEN, VISION_TOWER


def check_learned(base_dir: Path, changes: Changes) -> None:
    """Make sure that each update of an adapter does something, and that what was trained beside it has moved.

    One matrix after another is read. Not for an adapter that was given and only merged: whoever made it may have had
    no need to train the projector, and prepare has made sure that it does something.

    Raises:
        StageError: MergeMismatch, naming the matrix, or the part that is the base's own.
    """
    for pair in changes.pairs.values():
        if not pair.b.read().any():
            raise _mismatch(
                f"{pair.b.name} of {changes.what} is all zero: this layer did not learn, or its matrix was lost"
            )
    if not changes.pairs:
        return
    base = find_tensors(base_dir)
    for part in (PROJECTOR, VISION_TOWER):
        names = [name for name in changes.replaced if name.startswith(f"{part}.") and name in base]
        # In fp32, which holds every number of the others.
        if names and all(
            torch.equal(changes.replaced[name].read().float(), base[name].read().float()) for name in names
        ):
            raise _mismatch(f"{changes.what} holds the base's own {SPOKEN[part]}: it was not trained")


def _mismatch(message: str) -> StageError:
    return StageError(Reason.MERGE_MISMATCH, message)
