"""Folders that others may have written, who may have put anything there: other runs on the same claim.

Each part of a path is opened from the one before, and none may be a link: nothing can be put in the place of what has
been looked at. Only plain files are opened, and none is waited for: a pipe would never be there.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Self

from llava_trainer.files import SPARE_BYTES, find_free_bytes

_MOST_NAMES = 10_000
"""Of a folder that are looked at: there may be any number."""
_COPIED_BYTES = 1 << 20
_READABLE = 0o644
_FOLDER = os.O_RDONLY | os.O_DIRECTORY
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY


@dataclass(frozen=True, kw_only=True)
class ForeignFolder:
    """A folder on a claim.

    Whatever it is asked for raises OSError where that is not there, or not what it should be.
    """

    claim: Path
    """Where the claim is mounted; this alone is taken as it is."""
    path: Path
    """Of the folder, below the claim."""

    def at(self, path: Path) -> Self:
        """Another folder of the claim."""
        return replace(self, path=path)

    def __truediv__(self, name: str) -> Self:
        return self.at(self.path / name)

    def list_names(self) -> list[str]:
        """What lies in it; of more than ``_MOST_NAMES`` some."""
        with self._open_folder() as folder, os.scandir(folder) as entries:
            return [entry.name for entry in islice(entries, _MOST_NAMES)]

    def changed_at(self) -> float:
        """When something was last made, renamed or deleted in it, in seconds since 1970."""
        with self._open_folder() as folder:
            return os.fstat(folder).st_mtime

    @contextmanager
    def open_file(self, name: str) -> Iterator[BinaryIO]:
        """A file in it, or below it. How much of it is read is for the caller to bound: somebody may write on."""
        with self._find(name) as (folder, last), _open_plain(folder, last) as stream:
            yield stream

    def read_file(self, name: str, most_bytes: int) -> bytes:
        """What a file holds, if that is not more than ``most_bytes``."""
        with self.open_file(name) as stream:
            content = stream.read(most_bytes + 1)
        if len(content) > most_bytes:
            raise OSError(errno.EFBIG, f"more than {most_bytes:,} bytes", str(self.path / name))
        return content

    def take_file(self, name: str, target: Path, most_bytes: int) -> int:
        """Give a file, which nobody writes to any more, another name; a copy gets it where the volume has no links.

        Args:
            name: of the file, relative to the folder.
            target: appears when all of it is there; what stood there is removed, also when this fails.
            most_bytes: that it may have.

        Returns:
            Its size in bytes.
        """
        with self._find(name) as (folder, last), _open_plain(folder, last) as stream:
            known = os.fstat(stream.fileno())
            if known.st_size > most_bytes:
                raise OSError(errno.EFBIG, f"{known.st_size:,} bytes instead of {most_bytes:,}", str(self.path / name))
            target.unlink(missing_ok=True)
            try:
                if not _link(last, folder, target):
                    _copy(stream, target, known.st_size)
                elif not os.path.samestat(known, target.lstat()):
                    raise OSError(errno.ESTALE, "replaced meanwhile", str(self.path / name))
            except BaseException:
                target.unlink(missing_ok=True)
                raise
            return known.st_size

    @contextmanager
    def _find(self, name: str) -> Iterator[tuple[int, str]]:
        """The folder in which a file lies, open, and the last part of its name."""
        parts = split_name(name)
        with self._open_folder(*parts[:-1]) as folder:
            yield folder, parts[-1]

    @contextmanager
    def _open_folder(self, *below: str) -> Iterator[int]:
        parts = (*self.path.relative_to(self.claim).parts, *below)
        folder = os.open(self.claim, _FOLDER)
        try:
            for part in parts:
                inner = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
                os.close(folder)
                folder = inner
            yield folder
        finally:
            os.close(folder)


def has_links(folder: Path) -> bool:
    """Whether files on this folder's file system can have a second name; those of it are free to write to."""
    probe, other = folder / "link-a", folder / "link-b"
    other.unlink(missing_ok=True)
    probe.touch()
    try:
        os.link(probe, other)
    except OSError:
        return False
    finally:
        other.unlink(missing_ok=True)
        probe.unlink()
    return True


def split_name(name: str) -> tuple[str, ...]:
    """The parts of a name below a folder.

    Raises:
        OSError: it is none, or is written in another way than the shortest.
    """
    parts = PurePosixPath(name).parts
    try:
        name.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        parts = ()
    if not parts or parts[0] == "/" or ".." in parts or "\0" in name or "/".join(parts) != name:
        raise OSError(errno.EINVAL, f"{name!r:.100} is no name below a folder")
    return parts


@contextmanager
def _open_plain(folder: int, name: str) -> Iterator[BinaryIO]:
    descriptor = os.open(name, _FILE | os.O_NOFOLLOW, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no plain file", name)
    with os.fdopen(descriptor, "rb") as stream:
        yield stream


def _link(name: str, folder: int, target: Path) -> bool:
    try:
        os.link(name, target, src_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


def _copy(stream: BinaryIO, target: Path, size: int) -> None:
    free = find_free_bytes(target.parent)
    if free is not None and size + SPARE_BYTES > free:
        raise OSError(errno.ENOSPC, f"a copy needs {size:,} bytes, of which {free:,} are free", str(target))
    left = size
    with target.open("xb") as copy:
        while left and (chunk := stream.read(min(_COPIED_BYTES, left))):
            copy.write(chunk)
            left -= len(chunk)
    if left:
        raise OSError(errno.ESTALE, f"{left:,} of {size:,} bytes are gone", str(target))
    target.chmod(_READABLE)
