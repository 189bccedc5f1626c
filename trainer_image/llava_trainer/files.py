"""Files that are either whole or not there: written aside, synced, renamed. What they hash to, and whether they fit.

Everything goes by path, so that nothing can be made, renamed or deleted any more in the folder of an attempt that a
later one has renamed away.
"""

import ctypes
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from llava_api.failures import Reason
from llava_api.text import show
from llava_api.volume import find_attempt_dir, is_try_dir
from llava_trainer.errors import StageError

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
"""Endings of archives."""
SPARE_BYTES = 64 << 20
"""What a download leaves free on the volume for logs and reports."""
_NAMES_TOLD = 8
_READABLE_FILE = 0o644
_READABLE_FOLDER = 0o755


def aside_of(path: Path) -> Path:
    """Where the file or folder ``path`` is written until it is whole."""
    return path.with_name(f".{path.name}.partial")


def write_whole(path: Path, text: str) -> None:
    """Write a text file under its name only when it is whole and on the disk; parents are made."""
    make_folder(path.parent)
    aside = aside_of(path)
    with aside.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    aside.chmod(_READABLE_FILE)
    aside.rename(path)
    sync(path.parent)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents where they are missing, but never an attempt's or a pod's: who claims it makes it.

    Raises:
        FileNotFoundError: it would lie in such a folder that is not there: who came later has taken it over.
        FileExistsError, NotADirectoryError: there is a file.
    """
    if folder.is_dir():
        return
    if folder == find_attempt_dir(folder):
        raise FileNotFoundError(errno.ENOENT, "the attempt's folder is gone", str(folder))
    if is_try_dir(folder):
        raise FileNotFoundError(errno.ENOENT, "the pod's folder is gone", str(folder))
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder with all that is in it.

    Not by ``shutil.rmtree``: that holds on to the folder wherever it is moved.

    Raises:
        OSError: something cannot be removed; FileNotFoundError if somebody else moves or removes it meanwhile.
    """
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            remove_folder(path)
        else:
            path.unlink()
    folder.rmdir()


def tell_names(folder: Path) -> str:
    """What lies in a folder, for a message about something that does not: the first names, folders with a slash."""
    names = sorted(f"{show(path.name)}/" if path.is_dir() else show(path.name) for path in folder.iterdir())
    more = f" and {len(names) - _NAMES_TOLD:,} more" if len(names) > _NAMES_TOLD else ""
    return f"{', '.join(names[:_NAMES_TOLD])}{more}" if names else "nothing"


def begin_folder(folder: Path) -> Path:
    """Make an empty folder aside of ``folder``; what was left there before is removed."""
    aside = aside_of(folder)
    if aside.exists():
        remove_folder(aside)
    make_folder(aside)
    return aside


def publish_folder(folder: Path, *, at_once: bool = False) -> None:
    """Give the folder written aside of ``folder`` its name, synced and readable by every user of the volume.

    What stood there before, of the same attempt, is replaced. safetensors makes files that only their owner can read;
    whoever serves the model from the volume is another user.

    Args:
        folder: its name.
        at_once: sync its whole file system once instead of file by file. Half a million images of their own would
            take from ten minutes to hours; a checkpoint should not wait for what others write.
    """
    aside = aside_of(folder)
    for path in aside.rglob("*"):
        mode = _READABLE_FOLDER if path.is_dir() else _READABLE_FILE
        # Of a file that is linked from another run, somebody else may be the owner.
        if stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)
        if not at_once:
            sync(path)
    aside.chmod(_READABLE_FOLDER)
    if at_once:
        sync_file_system(aside)
    else:
        sync(aside)
    if folder.exists():
        remove_folder(folder)
    aside.rename(folder)
    sync(folder.parent)


def sha256_file(path: Path) -> str:
    """``sha256:`` and the hex digest of a file's content."""
    with path.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


def sha256_folder(folder: Path) -> str:
    """``sha256:`` and one digest of everything in a folder.

    It is that of the list of its files in the order of their names, a line ``DIGEST  NAME`` each, as ``sha256sum``
    prints it: ``(cd FOLDER && find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum)`` gives the same.
    """
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sha256_listing({name: sha256_file(folder / name) for name in names})


def sha256_listing(digests: Mapping[str, str]) -> str:
    """``sha256_folder`` of a folder whose files' digests (``sha256_file``) are known, by path below it."""
    lines = (f"{digests[name].removeprefix('sha256:')}  {name}\n" for name in sorted(digests, key=os.fsencode))
    return f"sha256:{hashlib.sha256(os.fsencode(''.join(lines))).hexdigest()}"


class Space(NamedTuple):
    """Of a file system, in bytes."""

    size: int
    free: int


def find_space(path: Path) -> Space | None:
    """What the file system of ``path`` has; None where it does not tell: some in user space say 0 of 0."""
    usage = shutil.disk_usage(path)
    return Space(usage.total, usage.free) if usage.total else None


def find_free_bytes(path: Path) -> int | None:
    """Room that the file system of ``path`` has left; None where it does not tell."""
    space = find_space(path)
    return space.free if space else None


def check_space(volume: Path, needed_bytes: int, what: str) -> None:
    """Make sure that something fits on the run's volume, as far as that tells.

    Raises:
        StageError: StorageFull, with what is needed and what is there.
    """
    free = find_free_bytes(volume)
    if free is not None and needed_bytes + SPARE_BYTES > free and needed_bytes:
        raise StageError(
            Reason.STORAGE_FULL,
            f"{what} needs {needed_bytes / 1e9:,.2f} GB more, but the run's volume has {free / 1e9:,.2f} GB free: "
            "raise spec.storage.size",
        )


def sync_file_system(path: Path) -> None:
    """Wait until everything that was written to the file system of ``path`` is on the disk."""
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:
        # Only Linux has it; this one waits for the other file systems, too.
        os.sync()
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if syncfs(descriptor):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(path))
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Wait until a file, or what a folder lists, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def resolve_inside(root: Path, folder: Path, relative: str) -> Path:
    """Where ``relative`` (to ``folder``) lies, if that is a file inside ``root``.

    Raises:
        PermissionError: it would lead outside.
        FileNotFoundError: there is no such file.
        ValueError: it is no usable path.
    """
    parts = Path(relative).parts
    if not parts or relative.startswith("/") or ".." in parts:
        raise PermissionError("must be a path inside the dataset, without a leading / and without .. parts")
    try:
        path = (folder / relative).resolve()
        is_file = path.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"is no usable path: {error}") from error
    if not path.is_relative_to(root.resolve()):
        raise PermissionError("leads outside the dataset through a symbolic link: put the file itself there")
    if not is_file:
        raise FileNotFoundError("does not exist" if not path.exists() else "is not a file")
    return path
