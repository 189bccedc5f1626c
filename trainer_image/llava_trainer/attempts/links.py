"""Stable names for people at the volume's root: relative links into the folders of the attempts that count."""

import logging
import secrets
from pathlib import Path

from llava_api.constants import StageName
from llava_api.run_config import RunConfig
from llava_api.volume import STABLE_NAMES, RunVolume, parse_attempt

_LOOKS = 3

logger = logging.getLogger(__name__)


def link_results(config: RunConfig) -> None:
    """Have the stable names show where this stage's result is, and those of the stages before.

    A volume that knows no links goes without: the run's status tells the paths.
    """
    for stage, number in {**config.results, config.run.stage: None}.items():
        for name in STABLE_NAMES[stage]:
            try:
                _link(config.volume, stage, name, number)
            except OSError as error:
                logger.warning("%s is not linked to what %s has made: %s", config.volume_root / name, stage, error)


def _link(volume: RunVolume, stage: StageName, name: str, number: int | None) -> None:
    """Link to what attempt ``number`` has made, or the newest that has made something.

    Looked at again afterwards: an attempt that was stopped in between must not leave its own in the place of a newer.
    """
    link = volume.root / name
    for _ in range(_LOOKS):
        target = _find_target(volume, stage, name, number)
        if target is None or _read_link(link) == target:
            return
        aside = volume.root / f".{name}.{secrets.token_hex(8)}.link"
        aside.symlink_to(target)
        try:
            aside.replace(link)
        except OSError:
            aside.unlink()
            raise


def _find_target(volume: RunVolume, stage: StageName, name: str, number: int | None) -> str | None:
    attempts = (parse_attempt(folder.name) for folder in volume.attempts_dir.glob("*") if (folder / name).exists())
    made_by = [made for of, made in filter(None, attempts) if of is stage and number in (None, made)]
    if not made_by:
        return None
    return (volume.attempt_dir(stage, max(made_by)) / name).relative_to(volume.root).as_posix()


def _read_link(link: Path) -> str | None:
    try:
        return link.readlink().as_posix()
    except OSError:
        return None
