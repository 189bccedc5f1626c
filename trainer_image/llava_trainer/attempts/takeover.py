"""What an attempt takes over from earlier ones of its stage, and how it gets rid of the rest.

The earlier folders are renamed into the own one, one rename each. What is used of them is moved again, or copied where
an old pod may have it open: renaming keeps out what goes by path, not what is written through an open file.
"""

import logging
import shutil
from pathlib import Path

from llava_api.run_config import RunConfig
from llava_api.volume import find_attempt_dir, parse_attempt
from llava_trainer.files import make_folder, sync

BEFORE = "before"
_LOGS = "logs"

logger = logging.getLogger(__name__)


def take_over(config: RunConfig) -> None:
    """Rename the folder of each earlier attempt of the stage into this one's.

    In training it is the first pod's part. In evaluation each pod does it, some at the same time: whoever returns from
    here finds everything where it is going to stay.

    Raises:
        OSError: the volume cannot be written.
    """
    run, volume = config.run, config.volume
    own = volume.attempt_dir(run.stage, run.attempt)
    for folder in _list_attempts(volume.attempts_dir):
        stage, number = _number_of(folder)
        target = own / BEFORE / folder.name
        if stage != run.stage or number >= run.attempt or target.exists():
            continue
        make_folder(target.parent)
        if rename_if_there(folder, target):
            sync(volume.attempts_dir)
            logger.info("attempt %d of %s is taken over: %s", number, stage, target)
    while _lift_up(own / BEFORE):
        pass


def _lift_up(before: Path) -> bool:
    """Put what attempts had taken over themselves beside them: folders in folders would have no end.

    Returns:
        Whether anything has moved meanwhile, which may have brought more along.
    """
    taken = _list_attempts(before)
    for folder in (one for by in taken for one in _list_attempts(by / BEFORE)):
        if not (before / folder.name).exists():
            rename_if_there(folder, before / folder.name)
    return set(_list_attempts(before)) != set(taken)


def rename_if_there(folder: Path, target: Path) -> bool:
    """Rename a folder; False if another pod of this attempt has just done so.

    Raises:
        OSError: it cannot be renamed, or ``target`` has no place.
    """
    try:
        folder.rename(target)
    except FileNotFoundError:
        if not target.exists():
            raise
        return False
    return True


def list_earlier(own: Path) -> list[Path]:
    """Folders of earlier attempts in an attempt's folder, newest first; each may hold some that it has taken over."""
    found = sorted(_list_attempts(own / BEFORE), key=lambda folder: _number_of(folder)[1], reverse=True)
    return [one for folder in found for one in (folder, *list_earlier(folder))]


def earlier_of(path: Path) -> list[Path]:
    """Where earlier attempts may have what this one has, or is going to have, at ``path``; newest first."""
    own = find_attempt_dir(path)
    return [] if own is None else [folder / path.relative_to(own) for folder in list_earlier(own)]


def take_over_folder(folder: Path) -> bool:
    """Move a folder that an earlier attempt has published under the same name here, if there is one.

    Raises:
        OSError: the volume cannot be written.
    """
    for earlier in earlier_of(folder):
        if earlier.is_dir():
            make_folder(folder.parent)
            earlier.rename(folder)
            sync(folder.parent)
            return True
    return False


def remove_earlier(own: Path) -> None:
    """Delete what earlier attempts have left in an attempt's folder, but for copies of their logs."""
    try:
        for folder in list_earlier(own):
            if (folder / _LOGS).is_dir():
                # Copies: an old pod may still have the files open.
                shutil.copytree(folder / _LOGS, own / _LOGS / folder.name, dirs_exist_ok=True)
        shutil.rmtree(own / BEFORE)
    except FileNotFoundError:
        return
    except OSError as error:
        logger.warning("what earlier attempts have left could not be deleted: %s", error)


def _list_attempts(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*") if parse_attempt(path.name)]


def _number_of(folder: Path) -> tuple[str, int]:
    parsed = parse_attempt(folder.name)
    assert parsed is not None, folder
    return parsed
