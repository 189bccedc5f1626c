"""Shards that an earlier attempt, or container, of merging has left whole: moved here and verified, not made again.

A shard counts once the record beside it says its digest, which is written when the shard is on the disk. The record
says what the shards are made from, too: those of another adapter or layout are no use.
"""

import logging
import re
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from llava_api.base import Strict
from llava_trainer.attempts.takeover import earlier_of
from llava_trainer.files import aside_of, make_folder, remove_folder, sha256_file, write_whole

RECORD = "shards.json"
_MAX_RECORD_BYTES = 1 << 20
_SHARD_NAME = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")

logger = logging.getLogger(__name__)


class ShardRecord(Strict):
    """What the record in a folder that is being written holds."""

    version: Literal[1] = 1
    made_from: str
    """Digest of everything that decides about the shards' contents."""
    digests: dict[str, str]
    """Of the files that are whole (``files.sha256_file``), by name."""


def begin_shards(folder: Path, made_from: str) -> dict[str, str]:
    """Make the folder aside of ``folder``, with the whole shards that earlier attempts have left for it and no more.

    What was moved is verified afterwards: nothing that goes by path can change it any more.

    Args:
        folder: where the merged model will be.
        made_from: what it is made from.

    Returns:
        Digests of the shards that are there, by name.

    Raises:
        OSError: the volume cannot be written.
    """
    aside = aside_of(folder)
    left = [*_set_aside(aside), *earlier_of(aside)]
    make_folder(aside)
    whole: dict[str, str] = {}
    for place in left:
        record = _read(place / RECORD)
        if record is None:
            continue
        if record.made_from != made_from:
            logger.info("the shards in %s are made from something else, and are left out", place)
            continue
        for name, digest in record.digests.items():
            if name not in whole and _SHARD_NAME.fullmatch(name) and _move(place / name, aside / name, digest):
                whole[name] = digest
    for place in left:
        if place.parent == aside.parent:
            remove_folder(place)
    record_shards(aside, made_from, whole)
    return whole


def record_shards(aside: Path, made_from: str, digests: dict[str, str]) -> None:
    """Record which shards in ``aside`` are whole.

    Raises:
        OSError: the volume cannot be written.
    """
    write_whole(aside / RECORD, ShardRecord(made_from=made_from, digests=digests).model_dump_json() + "\n")


def _set_aside(aside: Path) -> list[Path]:
    """Rename what an earlier container of this attempt has left; where it is then."""
    before = aside.with_name(f"{aside.name}.before")
    if aside.exists():
        if before.exists():
            remove_folder(before)
        aside.rename(before)
    return [before] if before.exists() else []


def _move(source: Path, target: Path, digest: str) -> bool:
    if source.is_symlink() or not source.is_file():
        return False
    source.rename(target)
    found = sha256_file(target)
    if found != digest:
        logger.warning("%s is %s, and was %s: it is made again", source, found, digest)
        target.unlink()
        return False
    logger.info("%s is whole, and is taken over", source)
    return True


def _read(file: Path) -> ShardRecord | None:
    try:
        with file.open("rb") as stream:
            return ShardRecord.model_validate_json(stream.read(_MAX_RECORD_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        logger.warning("the record %s cannot be read: %s", file, error)
        return None
