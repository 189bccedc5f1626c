"""Folders of programs in the cache, checked at every use against the SHA-256 sums that lie beside them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.localcluster.errors import ClusterError

_MANIFEST = "manifest.json"


def sha256(path: Path) -> str:
    """The digest of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: Path) -> str | None:
    """None when the folder's programs are those of its manifest, otherwise what is wrong."""
    try:
        expected: dict[str, str] = json.loads((folder / _MANIFEST).read_text())["sha256"]
    except FileNotFoundError:
        return f"{folder / _MANIFEST} is missing"
    except (ValueError, KeyError, TypeError):
        return f"{folder / _MANIFEST} is not readable"
    for name, digest in expected.items():
        program = folder / name
        if not program.is_file():
            return f"{program} is missing"
        if sha256(program) != digest:
            return f"{program} differs from its manifest"
    return None


def keep(filled: Path, folder: Path, programs: Iterable[str], origin: Mapping[str, str]) -> None:
    """Write the manifest into a folder filled aside and rename it to `folder`, replacing what is there.

    `origin` says where the programs are from. Raises ClusterError when one of them is missing.
    """
    names = list(programs)
    if missing := [name for name in names if not (filled / name).is_file()]:
        raise ClusterError(f"{folder.name}: no {', '.join(missing)} among what was made in {filled}")
    manifest = {**origin, "sha256": {name: sha256(filled / name) for name in names}}
    (filled / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    if folder.exists():
        shutil.rmtree(folder)
    filled.rename(folder)


@contextmanager
def locked(path: Path, mode: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold a lock file, so that the same programs are not made twice at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, mode)
        yield
