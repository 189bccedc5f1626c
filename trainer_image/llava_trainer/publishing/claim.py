"""A folder of a claim, which the operator has mounted.

The model is written aside, into a hidden folder beside the address, and renamed when all of it is on the disk. A folder
that is renamed replaces none that has something in it.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

from llava_api.text import show
from llava_trainer.errors import StageError
from llava_trainer.publishing.content import CHUNK_BYTES, Content, Item, read_chunks
from llava_trainer.publishing.destination import Place, Sent
from llava_trainer.publishing.folders import (
    FILE_MODE,
    FOLDER_MODE,
    allow,
    create_file,
    has_file,
    list_entries,
    make_folders,
    open_folder,
    remove,
)
from llava_trainer.publishing.refusals import refused, unavailable

_MOST_DEPTH = 8
"""Of folders at the address that are looked into."""
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_LED_ASTRAY = frozenset({errno.ELOOP, errno.ENOTDIR})
_MAY_PASS = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EEXIST, errno.ENOENT})
"""The last two: another pod of the run, which has outlived its attempt, is still at it."""


class ClaimDestination:
    """A folder of a claim; see ``Destination``."""

    def __init__(self, place: Place) -> None:
        self._place = place
        claim, _, path = place.address.removeprefix("pvc://").partition("/")
        *self._above, self._last = PurePosixPath(path).parts
        self._root = place.claims / claim
        told = f"pvc://{claim}/{path}{f'/{place.folder}' if place.folder else ''}"
        self._what = f"{place.field}: {told}"
        key = hashlib.sha256(f"{place.owner}\0{told}".encode()).hexdigest()[:16]
        self._hidden = f".publishing-{key}"
        """The same for every attempt of the run, and no other run's."""

    def publish(self, content: Content, on_bytes: Callable[[int], None]) -> Sent:
        """See ``Destination.publish``."""
        with self._explaining(), self._open_parents() as above:
            if self._stands(above, content, on_bytes):
                remove(above, self._hidden)
                return Sent(sent_bytes=0, was_there=True)
            try:
                self._make_hidden(above)
                with open_folder(above, [self._hidden]) as hidden:
                    sent = self._write_all(hidden, content, on_bytes)
                self._place.check_attempt()
                self._rename(above)
            except OSError as error:
                if error.errno in _NO_ROOM:
                    # Others need the room, and what is written now is quickly written again.
                    remove(above, self._hidden)
                raise
            return Sent(sent_bytes=sent)

    @contextmanager
    def _open_parents(self) -> Iterator[int]:
        """The folder that holds the address, made where it is missing."""
        try:
            claim = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise refused(f"{self._what}: the claim is not mounted at {self._root}") from error
        try:
            with make_folders(claim, self._above) as above:
                yield above
        finally:
            os.close(claim)

    @contextmanager
    def _open_home(self, above: int) -> Iterator[tuple[int, str]]:
        """The folder that the content's own is in, and its name there."""
        if not self._place.folder:
            yield above, self._last
            return
        with make_folders(above, [self._last]) as home:
            yield home, self._place.folder

    def _stands(self, above: int, content: Content, on_bytes: Callable[[int], None]) -> bool:
        """Whether the content stands at the address already; an empty folder is nothing.

        Raises:
            StageError: DestinationRefused; something else does.
        """
        with self._open_home(above) as (home, name):
            try:
                if not stat.S_ISDIR(os.lstat(name, dir_fd=home).st_mode):
                    raise self._refuse_other("a file or a symbolic link")
            except FileNotFoundError:
                return False
            with open_folder(home, [name]) as folder:
                found = self._list(folder, beside=self._place.beside)
                if not found:
                    return False
                self._check_names(found, content)
                done = 0
                for item in content.items:
                    if not has_file(folder, item.name, item.size, item.sha256):
                        raise self._refuse_other(f"another {item.name}")
                    done += item.size
                    on_bytes(done)
                return True

    def _check_names(self, found: set[str], content: Content) -> None:
        wanted = [item.name for item in content.items]
        if other := found.difference(wanted):
            raise self._refuse_other(f"{show(min(other), max_chars=100)}, which is no part of this publication")
        if missing := [name for name in wanted if name not in found]:
            raise self._refuse_other(f"a part of this model only, without {missing[0]}")

    def _list(self, folder: int, prefix: str = "", *, beside: str = "") -> set[str]:
        """Names of the files in a folder and below it; empty folders are nothing.

        Raises:
            StageError: DestinationRefused; something there is neither a file nor a folder.
        """
        found = set()
        for entry, mode, _ in list_entries(folder):
            name = f"{prefix}{entry}"
            if name == beside:
                continue
            if stat.S_ISREG(mode):
                found.add(name)
            elif stat.S_ISDIR(mode) and prefix.count("/") < _MOST_DEPTH:
                with open_folder(folder, [entry]) as inner:
                    found |= self._list(inner, f"{name}/")
            else:
                raise self._refuse_other(f"{show(name, max_chars=100)}, which is no file of a model")
        return found

    def _make_hidden(self, above: int) -> None:
        """Make the hidden folder, unless an earlier attempt has left it."""
        try:
            is_folder = stat.S_ISDIR(os.lstat(self._hidden, dir_fd=above).st_mode)
        except FileNotFoundError:
            is_folder = False
        if not is_folder:
            # Whatever has our name.
            remove(above, self._hidden)
            os.mkdir(self._hidden, FOLDER_MODE, dir_fd=above)

    def _write_all(self, hidden: int, content: Content, on_bytes: Callable[[int], None]) -> int:
        """Write what is missing of the content; returns the bytes written."""
        folders = {
            tuple(item.name.split("/")[:depth]) for item in content.items for depth in range(item.name.count("/") + 1)
        }
        self._clean(hidden, {item.name for item in content.items}, {"/".join(folder) for folder in folders})
        missing = [item for item in content.items if not has_file(hidden, item.name, item.size, item.sha256)]
        size = sum(item.size for item in missing)
        _check_space(hidden, size)
        done = content.size - size
        on_bytes(done)
        for item in missing:
            *above, name = item.name.split("/")
            with make_folders(hidden, above) as folder:
                for written in self._write(folder, name, item):
                    on_bytes(done + written)
            done += item.size
        for parts in sorted(folders, reverse=True):
            with open_folder(hidden, parts) as folder:
                allow(folder, FOLDER_MODE)
                os.fsync(folder)
        return size

    def _write(self, folder: int, name: str, item: Item) -> Iterator[int]:
        """Write one file, which gets its name when it is whole and on the disk; bytes so far."""
        aside = f".{hashlib.sha256(name.encode()).hexdigest()[:16]}.partial"
        remove(folder, aside)
        with os.fdopen(create_file(folder, aside), "wb") as stream:
            written = 0
            for chunk in read_chunks(item, 16 * CHUNK_BYTES):
                self._place.check_attempt()
                stream.write(chunk)
                written += len(chunk)
                yield written
            stream.flush()
            allow(stream.fileno(), FILE_MODE)
            os.fsync(stream.fileno())
        os.rename(aside, name, src_dir_fd=folder, dst_dir_fd=folder)

    def _clean(self, folder: int, files: set[str], folders: set[str], prefix: str = "") -> None:
        """Remove what is no file of the content: half of one that an earlier attempt has left, or somebody else's."""
        for entry, mode, _ in list_entries(folder):
            name = f"{prefix}{entry}"
            if stat.S_ISDIR(mode) and name in folders:
                with open_folder(folder, [entry]) as inner:
                    self._clean(inner, files, folders, f"{name}/")
            elif name not in files or not stat.S_ISREG(mode):
                remove(folder, entry)

    def _rename(self, above: int) -> None:
        """Give the hidden folder its name, unless something stands there by now."""
        with self._open_home(above) as (home, name):
            try:
                os.rename(self._hidden, name, src_dir_fd=above, dst_dir_fd=home)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    # The run ends by it, and nobody would see what is left.
                    remove(above, self._hidden)
                    raise self._refuse_other("something that was put there meanwhile") from error
                raise
            os.fsync(home)
        os.fsync(above)

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._explain(error) from error

    def _explain(self, error: OSError) -> StageError:
        why = error.strerror or type(error).__name__
        if error.errno in _NO_ROOM:
            return refused(f"{self._what}: the claim is full ({why}): make room there, and raise spec.retry")
        if error.errno in _LED_ASTRAY:
            return refused(
                f"{self._what} leads through a file or a symbolic link, which is not followed: name a folder of the "
                "claim itself"
            )
        if error.errno in _MAY_PASS:
            return unavailable(f"{self._what}: the claim cannot be written now ({why}): look at its PersistentVolume")
        return refused(
            f"{self._what} cannot be written ({why}): the pod's user must be allowed to write to the claim, which must "
            "not be mounted read-only"
        )

    def _refuse_other(self, what: str) -> StageError:
        return refused(
            f"{self._what} holds {what}: name another folder, or empty this one if nobody needs it, and raise "
            "spec.retry"
        )


def _check_space(folder: int, needed_bytes: int) -> None:
    known = os.fstatvfs(folder)
    free = known.f_bavail * known.f_frsize
    # Some file systems in user space say 0 of 0.
    if known.f_blocks and needed_bytes > free:
        raise OSError(errno.ENOSPC, f"{needed_bytes:,} bytes are needed, and {free:,} are free")
