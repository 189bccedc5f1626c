"""Folders on a claim that others write to, by open descriptors: each part of a path is opened from the one before.

None may be a link, so nothing can be put in the place of what has been looked at, and nothing leads out of the claim.
Whatever is asked for raises OSError where it is not there or not what it should be.
"""

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from llava_trainer.publishing.content import CHUNK_BYTES

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
FOLDER_MODE, FILE_MODE = 0o755, 0o644
"""Whoever serves a model is another user."""


@contextmanager
def open_folder(folder: int, parts: Sequence[str]) -> Iterator[int]:
    """A folder below another; with no parts that one itself."""
    inner = os.dup(folder)
    try:
        for part in parts:
            deeper = os.open(part, _FOLDER, dir_fd=inner)
            os.close(inner)
            inner = deeper
        yield inner
    finally:
        os.close(inner)


@contextmanager
def make_folders(folder: int, parts: Sequence[str]) -> Iterator[int]:
    """A folder below another, made where it is missing."""
    inner = os.dup(folder)
    try:
        for part in parts:
            is_new = True
            try:
                os.mkdir(part, FOLDER_MODE, dir_fd=inner)
            except FileExistsError:
                is_new = False
            deeper = os.open(part, _FOLDER, dir_fd=inner)
            os.close(inner)
            inner = deeper
            if is_new:
                allow(inner, FOLDER_MODE)
        yield inner
    finally:
        os.close(inner)


def allow(descriptor: int, mode: int) -> None:
    """Set who may read, whatever the process' umask is. Some file systems have one mode for all, by their mount."""
    with contextlib.suppress(PermissionError, NotImplementedError):
        os.fchmod(descriptor, mode)


def create_file(folder: int, name: str) -> int:
    """A new file, open for writing."""
    return os.open(name, _WRITE, FILE_MODE, dir_fd=folder)


def has_file(folder: int, name: str, size: int, sha256: str) -> bool:
    """Whether a plain file below a folder has this size and content (hex digest)."""
    *above, last = name.split("/")
    try:
        with open_folder(folder, above) as inner:
            descriptor = os.open(last, _READ, dir_fd=inner)
    except (FileNotFoundError, NotADirectoryError):
        return False
    with os.fdopen(descriptor, "rb") as stream:
        known = os.fstat(descriptor)
        if not stat.S_ISREG(known.st_mode) or known.st_size != size:
            return False
        digest, left = hashlib.sha256(), size
        # Somebody may write on.
        while left and (chunk := stream.read(min(CHUNK_BYTES, left))):
            digest.update(chunk)
            left -= len(chunk)
        return digest.hexdigest() == sha256 and not stream.read(1)


def list_entries(folder: int) -> list[tuple[str, int, int]]:
    """Name, mode and size of everything in a folder; of a link, its own."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                known = entry.stat(follow_symlinks=False)
                found.append((entry.name, known.st_mode, known.st_size))
    return found


def remove(folder: int, name: str) -> None:
    """Remove a file, a link or a folder with all that is in it; nothing where there is nothing."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
            os.unlink(name, dir_fd=folder)
            return
        with open_folder(folder, [name]) as inner:
            for entry, *_ in list_entries(inner):
                remove(inner, entry)
        os.rmdir(name, dir_fd=folder)
