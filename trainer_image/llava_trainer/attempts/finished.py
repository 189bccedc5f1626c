"""The record of a stage that has ended well, on the volume: if its pod's word is lost, the next attempt finds it there.

It is written last, with digests of everything that later stages read. Who finds it believes it only if they agree.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from llava_api.base import Lenient
from llava_api.constants import StageName
from llava_api.report import StageResult
from llava_api.run_config import RunConfig
from llava_trainer.attempts.shards import is_sharded, own_shard_dir
from llava_trainer.attempts.takeover import list_earlier, rename_if_there
from llava_trainer.files import sha256_file, sha256_folder, sync, write_whole

_RECORD = "result.json"
_HISTORY = "history.jsonl"
_HARDEST = "hardest.json"
_HANDED_ON: Mapping[StageName, tuple[str, ...]] = {
    StageName.PREPARE: ("data", "inputs/inputs.json", "inputs/model", "inputs/adapter"),
    StageName.ALIGN: ("projector", _HISTORY),
    StageName.TRAIN: ("adapter", "weights", _HISTORY, _HARDEST),
    StageName.MERGE: ("merged",),
    StageName.EVALUATE: ("evaluation",),
    StageName.PUBLISH: ("publication",),
}
"""What later stages and people read of each stage, by path below its attempt's folder."""
_MOVED: Mapping[StageName, tuple[str, ...]] = {
    **_HANDED_ON,
    # With all that was fetched; models and images are read there.
    StageName.PREPARE: ("data", "inputs"),
    StageName.ALIGN: (*_HANDED_ON[StageName.ALIGN], "checkpoints", "tensorboard-align", "wandb-align"),
    StageName.TRAIN: (*_HANDED_ON[StageName.TRAIN], "checkpoints", "tensorboard", "wandb"),
}

FindDamage = Callable[[Path], str | None]
"""Looks at more than the record knows digests of, in an attempt's folder; says what is damaged."""

logger = logging.getLogger(__name__)


class Finished(Lenient):
    """What the record holds."""

    version: Literal[1] = 1
    result: StageResult
    contents: dict[str, str]
    """sha256 of what the stage hands on, by path below the attempt's folder."""


def record_result(config: RunConfig, result: StageResult) -> None:
    """Record that this attempt has ended well, as the last thing that it makes.

    Raises:
        OSError: the volume cannot be written.
    """
    own = config.volume.attempt_dir(result.stage, result.attempt)
    contents = {
        # A folder's digest under its own name is known already: a merged model takes a minute to be read.
        name: result.digests.get(name) or _digest(own / name)
        for name in _HANDED_ON[result.stage]
        if (own / name).exists()
    }
    _write(config, Finished(result=result, contents=contents))


def read_result(config: RunConfig) -> StageResult | None:
    """What this attempt itself has recorded; None if nothing."""
    finished = _read(config.volume.attempt_dir(config.run.stage, config.run.attempt))
    return finished.result if finished else None


def read_digests(config: RunConfig, stage: StageName) -> Mapping[str, str]:
    """Digests of what a stage before this one has handed on, by path below its attempt's folder; {} if not recorded."""
    finished = _read(config.volume.result_dir(stage))
    return finished.contents if finished else {}


def read_earlier_result(config: RunConfig, stage: StageName) -> StageResult | None:
    """What the attempt that counts of a stage before this one has recorded; None if nothing."""
    finished = _read(config.volume.result_dir(stage))
    return finished.result if finished else None


def take_over_result(config: RunConfig, find_damage: FindDamage) -> StageResult | None:
    """Make the finished result of an earlier attempt, or one of this very attempt, this attempt's own.

    Args:
        config: the run configuration; earlier attempts have been taken over (``takeover``).
        find_damage: looks at what the record has no digests of.

    Returns:
        The result under this attempt's number, recorded; None if there is none that can be believed.

    Raises:
        OSError: the volume cannot be written.
    """
    run = config.run
    own = config.volume.attempt_dir(run.stage, run.attempt)
    for folder in (own, *list_earlier(own)):
        finished = _read(folder)
        if finished is None or finished.result.stage is not run.stage or finished.result.failure is not None:
            continue
        if (damage := _find_changed(folder, finished) or find_damage(folder)) is not None:
            logger.warning("the finished result in %s is not believed: %s", folder, damage)
            continue
        for name in _MOVED[run.stage] if folder != own else ():
            if (folder / name).exists():
                rename_if_there(folder / name, own / name)
        sync(own)
        result = finished.result.model_copy(update={"attempt": run.attempt})
        _write(config, finished.model_copy(update={"result": result}))
        logger.info("%s had been finished by attempt %d, and is whole", run.stage, finished.result.attempt)
        return result
    return None


def _write(config: RunConfig, finished: Finished) -> None:
    """Put the record into the attempt's folder.

    Pods that work for themselves may find the same result at the same time, and one that has been replaced must not
    write there any more: each writes it aside in its own folder.
    """
    record = config.volume.attempt_dir(config.run.stage, config.run.attempt) / _RECORD
    place = own_shard_dir(config) / _RECORD if is_sharded(config.run.stage) else record
    write_whole(place, finished.model_dump_json(indent=2) + "\n")
    if place != record:
        place.rename(record)
        sync(record.parent)


def _read(folder: Path) -> Finished | None:
    try:
        return Finished.model_validate_json((folder / _RECORD).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        logger.warning("the record %s cannot be read: %s", folder / _RECORD, error)
        return None


def _find_changed(folder: Path, finished: Finished) -> str | None:
    for name, digest in finished.contents.items():
        try:
            found = _digest(folder / name)
        except OSError as error:
            return f"{name} cannot be read: {error}"
        if found != digest:
            return f"{name} is {found}, and was {digest}"
    return None


def _digest(path: Path) -> str:
    return sha256_folder(path) if path.is_dir() else sha256_file(path)
