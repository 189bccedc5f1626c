"""Files that are named by a pattern, as the shards of a Hub's dataset are: ``data/train-*.parquet``."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from llava_trainer.data.json_file import is_writable

MAX_SHARDS = 10_000


def is_pattern(name: str) -> bool:
    """Whether a name stands for all files that fit it: ``*`` is any part of a file's or folder's name."""
    return "*" in name


def match_shards(names: Iterable[str], pattern: str) -> list[str]:
    """Those of a source's files that fit a pattern, in the order of their names; a plain name is its own."""
    if not is_pattern(pattern):
        return [pattern]
    return sorted(name for name in names if fits(name, pattern))


def fits(name: str, pattern: str) -> bool:
    """Whether a name, relative to a source, fits a pattern."""
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(_fits, parts, wanted))


def find_shards(root: Path, pattern: str) -> list[str]:
    """The files below ``root`` that fit a pattern, in the order of their names; a plain name is its own.

    Raises:
        ValueError: they are more than MAX_SHARDS, or the name of one is not UTF-8.
        OSError: a folder cannot be read.
    """
    if not is_pattern(pattern):
        return [pattern]
    found = [""]
    for part in pattern.split("/"):
        found = [f"{folder}{name}/" for folder in found for name in _list(root, folder, part)]
        if len(found) > MAX_SHARDS:
            raise ValueError(f"fits more than {MAX_SHARDS:,} files: join them, or name fewer")
    names = sorted(name.rstrip("/") for name in found)
    if not is_writable(*names):
        raise ValueError("fits a file whose name is not UTF-8: rename it")
    return [name for name in names if (root / name).is_file()]


def _list(root: Path, folder: str, part: str) -> list[str]:
    """Names in a folder that fit one part of a pattern; none of a folder that lies outside."""
    place = (root / folder).resolve()
    if not place.is_dir() or not place.is_relative_to(root.resolve()):
        return []
    if not is_pattern(part):
        return [part] if part not in ("", "..") and (place / part).exists() else []
    return sorted(path.name for path in place.iterdir() if _fits(path.name, part))


def _fits(name: str, part: str) -> bool:
    # Of fnmatch's signs only * is one here: names of files hold brackets now and then.
    return fnmatchcase(name, part.replace("[", "[[]").replace("?", "[?]"))
