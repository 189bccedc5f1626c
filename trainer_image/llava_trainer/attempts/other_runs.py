"""What other runs have left on the same claim, where that was there before (``storage.existingClaim``).

Only what is whole and can be told to be the same is taken up, by a link or a copy: nothing of theirs is moved, changed
or deleted, so that each of them may go on. Their results are never taken for this run's own. Whatever lies there, no
stage of this run fails by it, or waits for it (``foreign``).
"""

import logging
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

from llava_api.constants import StageName
from llava_api.volume import RunVolume, claim_root, find_attempt_dir, parse_attempt, runs_dir
from llava_trainer.attempts.foreign import ForeignFolder
from llava_trainer.attempts.takeover import BEFORE

_MOST_RUNS = 16
"""The newest that have an attempt of the stage; the others are left alone."""
_MOST_ATTEMPTS = 8
"""Of a run, those that it has taken over included."""
_Result = TypeVar("_Result")

logger = logging.getLogger(__name__)


def list_attempts_of_others(volume: RunVolume, stage: StageName) -> list[ForeignFolder]:
    """Folders of a stage's attempts of other runs on the claim, the newest run's first; a later attempt first."""
    claim = claim_root(volume.root)
    if claim is None:
        return []
    root = ForeignFolder(claim=claim, path=claim)
    runs = root.at(runs_dir(claim))
    roots = [root, *(runs / name for name in list_names(runs) if name != volume.root.name)]
    found = []
    for folder in (one.at(RunVolume(root=one.path).attempts_dir) for one in roots):
        changed_at = _look(folder, folder.changed_at)
        if changed_at is not None:
            found.append((changed_at, folder.path))
    attempts = (list(_list_attempts(root.at(path), stage)) for _, path in sorted(found, reverse=True))
    return [one for of_run in islice(filter(None, attempts), _MOST_RUNS) for one in of_run[:_MOST_ATTEMPTS]]


def others_of(path: Path) -> list[ForeignFolder]:
    """Where other runs may have what an attempt of this one has, or is going to have, at ``path``, a folder."""
    own = find_attempt_dir(path)
    parsed = own and parse_attempt(own.name)
    if own is None or not parsed:
        return []
    volume = RunVolume(root=own.parent.parent)
    return [one.at(one.path / path.relative_to(own)) for one in list_attempts_of_others(volume, parsed[0])]


def list_names(folder: ForeignFolder) -> list[str]:
    """What lies in a folder; nothing, if it is not there, or is none, which the log says."""
    return _look(folder, folder.list_names) or []


def _look(folder: ForeignFolder, look: Callable[[], _Result]) -> _Result | None:
    try:
        return look()
    except FileNotFoundError:
        return None
    except OSError as error:
        logger.warning("%s, which is not this run's, is passed over: %s", folder.path, error.strerror)
        return None


def _list_attempts(attempts: ForeignFolder, stage: StageName) -> Iterator[ForeignFolder]:
    for own in _list_of_stage(attempts, stage):
        yield own
        yield from _list_of_stage(own / BEFORE, stage)


def _list_of_stage(folder: ForeignFolder, stage: StageName) -> list[ForeignFolder]:
    named = ((parse_attempt(name), name) for name in list_names(folder))
    found = sorted(((parsed[1], name) for parsed, name in named if parsed and parsed[0] is stage), reverse=True)
    return [folder / name for _, name in found[:_MOST_ATTEMPTS]]
