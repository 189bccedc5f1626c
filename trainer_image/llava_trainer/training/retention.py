"""Which checkpoints lie on the volume, best first, and which of them stay. Paths and folders only."""

import logging
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from llava_api.constants import StageName
from llava_api.volume import RunVolume
from llava_trainer.attempts.takeover import list_earlier
from llava_trainer.files import aside_of, remove_folder

_FOLDER_PATTERN = re.compile(r"step-(\d{8})")

logger = logging.getLogger(__name__)


def find_checkpoints(volume: RunVolume, stage: StageName, attempt: int) -> list[Path]:
    """Checkpoints to resume from, best first: this attempt's own, then those of earlier ones that it has taken over."""
    return [
        folder
        for checkpoints in _folders_so_far(volume, stage, attempt)
        for folder in reversed(list_checkpoints(checkpoints))
    ]


def remove_unfinished(volume: RunVolume, stage: StageName, attempt: int) -> None:
    """Remove what killed processes have left of checkpoints that they were writing: each may be as large as a whole."""
    for checkpoints in _folders_so_far(volume, stage, attempt):
        for aside in checkpoints.glob(aside_of(Path("step-*")).name):
            delete_checkpoint(aside)


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first."""
    return sorted(path for path in checkpoints.glob("step-*") if is_checkpoint(path.name))


def is_checkpoint(name: str) -> bool:
    """Whether a checkpoint's folder is called so."""
    return _FOLDER_PATTERN.fullmatch(name) is not None


def step_of(folder: Path) -> int:
    """Steps after which a checkpoint was made, as its folder says."""
    match = _FOLDER_PATTERN.fullmatch(folder.name)
    assert match is not None, folder
    return int(match[1])


def prune_checkpoints(
    checkpoints: Path,
    keep: int,
    earlier: Sequence[Path] = (),
    passed_over: Collection[Path] = (),
    check: Callable[[], None] = lambda: None,
    best_step: int | None = None,
) -> None:
    """Delete all but the newest ``keep`` checkpoints. One that cannot be deleted is left for the next time.

    Args:
        checkpoints: folder of this attempt's, the newest of which is whole.
        keep: how many to keep.
        earlier: checkpoints of earlier attempts, best first; they make room as this attempt's own take their places.
        passed_over: those, of this attempt or earlier ones, that could not be read when training went on.
        check: called before each is deleted; raises if it must not be.
        best_step: what validation has found to be the best; its checkpoint stays, and is none of those ``keep``.
    """
    whole = [path for path in (*reversed(list_checkpoints(checkpoints)), *earlier) if path not in passed_over]
    best = next((path for path in whole if step_of(path) == best_step), None)
    for folder in reversed([path for path in _order(whole, passed_over) if path != best][keep:]):
        if folder.exists():
            check()
            delete_checkpoint(folder)


def _order(whole: Sequence[Path], passed_over: Collection[Path]) -> list[Path]:
    """Best first: the newest whole one, those passed over that have got further, the other whole ones, the rest.

    What could not be read may be in order all the same (a file system that was away for a while), and holds steps that
    would have to be done again, until training has done them again.
    """
    reached = step_of(whole[0]) if whole else -1
    newest_first = sorted(passed_over, key=step_of, reverse=True)
    further = [path for path in newest_first if step_of(path) > reached]
    overtaken = [path for path in newest_first if step_of(path) <= reached]
    return [*whole[:1], *further, *whole[1:], *overtaken]


def _folders_so_far(volume: RunVolume, stage: StageName, attempt: int) -> list[Path]:
    """Folders of checkpoints up to this attempt, its own first and the oldest last."""
    own = volume.checkpoints_dir(stage, attempt)
    return [own, *(folder / own.name for folder in list_earlier(own.parent))]


def delete_checkpoint(folder: Path) -> None:
    """Delete one; where that fails, it is left for the next time."""
    try:
        remove_folder(folder)
    except OSError as error:
        logger.warning("the old checkpoint %s could not be deleted: %s", folder, error)
