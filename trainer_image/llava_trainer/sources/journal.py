"""What has been fetched into a folder, so that another attempt of the stage fetches nothing twice."""

import contextlib
import hashlib
import os
import shutil
import threading
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from pydantic import ValidationError

from llava_trainer.attempts.takeover import earlier_of
from llava_trainer.files import make_folder, sha256_file, sync_file_system
from llava_trainer.sources.fetched import JOURNAL, Fetched, state_of
from llava_trainer.sources.other_journals import OtherJournals
from llava_trainer.sources.remote import RemoteFile

_PARTIAL = "partial"
_TAKEN = ".taken"
_NAME_DIGITS = 40


class Journal:
    """The files of one folder. Lines are appended; what a crash cut off is passed over.

    Files are synced all at once when the journal is closed: one by one, half a million images would take from ten
    minutes to hours. Until then a crash may take some that have a line already: ``find_whole`` hashes them.

    What earlier attempts of the stage have fetched is taken over file by file, when its turn comes: whole files are
    moved, what has come in of others is copied, since an old pod may still be writing there. Whole files that another
    run has fetched are linked (``OtherJournals``).
    """

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self.folder = folder
        self._state = state_of(folder)
        make_folder(self._state / _PARTIAL)
        self._file = self._state / JOURNAL
        # Where the line of a file begins: what a million of them say would fill the memory.
        self._known = dict(_read(self._file))
        self._earlier = [_EarlierJournal(one) for one in earlier_of(folder) if (state_of(one) / JOURNAL).exists()]
        self._others = OtherJournals(folder)
        # Files by their names without capitals, where the volume does not tell them.
        self._names = dict(map(_pair_folded, self._known)) if _is_caseless(self._state) else None
        self._lock = threading.Lock()
        self._stream = self._file.open("a+b")
        if self._stream.seek(0, os.SEEK_END):
            # A line that was cut off must not swallow the next one.
            self._stream.write(b"\n")

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock, self._stream, contextlib.ExitStack() as stack:
            stack.enter_context(self._others)
            for earlier in self._earlier:
                stack.enter_context(earlier.stream)
            self._stream.flush()
            if error is None:
                sync_file_system(self.folder)
            os.fsync(self._stream.fileno())

    def partial_of(self, name: str) -> Path:
        """Where a file of this name is written until it is whole. A hash, because names may be as long as they can."""
        return self._state / _PARTIAL / hashlib.sha256(name.encode()).hexdigest()[:_NAME_DIGITS]

    def add(self, fetched: Fetched) -> None:
        """A file has got its name."""
        with self._lock:
            self._known[fetched.name] = self._stream.seek(0, os.SEEK_END)
            self._stream.write(fetched.model_dump_json(exclude_defaults=True).encode() + b"\n")
            self._stream.flush()

    def claim(self, name: str) -> str:
        """Take a name for a file; returns the one that has its place on the volume already, mostly itself.

        On a volume that does not tell capitals (SMB, Azure Files) ``a.jpg`` would replace ``A.jpg``.
        """
        if self._names is None:
            return name
        with self._lock:
            return self._names.setdefault(*_pair_folded(name))

    def find_whole(self, remote: RemoteFile) -> Fetched | None:
        """The file, if it is there and hashes to what it did when it was fetched.

        Where its version is known, another one than then means that it has changed.
        """
        known = self._look_up(remote.name)
        if known is not None and _is_of(known, remote) and _is_whole(self.folder, known):
            return known
        return self._take_over(remote) or self._take_up(remote)

    def take_over_partial(self, name: str) -> None:
        """Copy what an earlier attempt has fetched of a file that it could not fetch whole, if this one has nothing."""
        own = self.partial_of(name)
        if own.exists():
            return
        for earlier in self._earlier:
            partial = state_of(earlier.folder) / _PARTIAL / own.name
            with contextlib.suppress(FileNotFoundError):
                # What it says first: all that it promises was there then, and nothing of it is written again.
                state = partial.with_suffix(".json").read_bytes()
                shutil.copyfile(partial, own)
                own.with_suffix(".json").write_bytes(state)
                return

    def size_of(self, remote: RemoteFile) -> int:
        """Bytes of a file that the volume holds already.

        They lie here, or in an earlier attempt; or all of them in another run, where the volume has links.
        """
        if remote.size is not None and self._others.can_link(remote):
            return remote.size
        return max(_size_of(folder / remote.name) for folder in (self.folder, *(one.folder for one in self._earlier)))

    def _look_up(self, name: str) -> Fetched | None:
        with self._lock:
            return _read_line(self._stream, self._known.get(name))

    def _take_over(self, remote: RemoteFile) -> Fetched | None:
        """Move a file here that an earlier attempt has fetched whole; what is in the way is the caller's to tell."""
        for earlier in self._earlier:
            with self._lock:
                known = _read_line(earlier.stream, earlier.known.get(remote.name))
            if known is not None and _is_of(known, remote) and _is_whole(earlier.folder, known):
                return known if self._move_in(earlier.folder / remote.name, known) else None
        return None

    def _take_up(self, remote: RemoteFile) -> Fetched | None:
        """Link a file here that another run has fetched whole. What cannot be taken up is fetched."""
        aside = self.partial_of(remote.name).with_suffix(_TAKEN)
        known = self._others.take_up(remote, aside)
        if known is None:
            return None
        try:
            return known if self._move_in(aside, known) else None
        finally:
            # Two names of one file are left as they are when one is to take the place of the other.
            aside.unlink(missing_ok=True)

    def _move_in(self, file: Path, known: Fetched) -> bool:
        """Give a whole file its name here, and note it; not where another has that name."""
        if self.claim(known.name) != known.name:
            return False
        with contextlib.suppress(FileExistsError, NotADirectoryError, IsADirectoryError):
            make_folder((self.folder / known.name).parent)
            file.rename(self.folder / known.name)
            self.add(known)
            return True
        return False


class _EarlierJournal:
    """What an earlier attempt has fetched into a folder; only read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        file = state_of(folder) / JOURNAL
        self.known = dict(_read(file))
        self.stream = file.open("rb")


def find_damaged(folder: Path) -> str | None:
    """A file that was fetched into ``folder`` and is not there as it came; None if all are."""
    file = state_of(folder) / JOURNAL
    with file.open("rb") as stream:
        for name, begin in dict(_read(file)).items():
            known = _read_line(stream, begin)
            if known is None or not _is_whole(folder, known):
                return name
    return None


def _is_of(known: Fetched, remote: RemoteFile) -> bool:
    return known.address == remote.address and not (remote.version and known.version != remote.version)


def _is_whole(folder: Path, known: Fetched) -> bool:
    path = folder / known.name
    with contextlib.suppress(OSError):
        return path.stat().st_size == known.size and sha256_file(path) == f"sha256:{known.sha256}"
    return False


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _read_line(stream: BinaryIO, begin: int | None) -> Fetched | None:
    if begin is None:
        return None
    stream.seek(begin)
    return Fetched.model_validate_json(stream.readline())


def _pair_folded(name: str) -> tuple[str, str]:
    return unicodedata.normalize("NFC", name).casefold(), name


def _is_caseless(folder: Path) -> bool:
    """Whether the folder's file system takes names that differ in their capitals for one."""
    probe = folder / "Case"
    probe.touch()
    found = (folder / "cASE").exists()
    probe.unlink()
    return found


def _read(file: Path) -> Iterator[tuple[str, int]]:
    """Names, and where their lines begin; the last line of a name counts."""
    if not file.exists():
        return
    begin = 0
    with file.open("rb") as stream:
        for line in stream:
            with contextlib.suppress(ValidationError):
                yield Fetched.model_validate_json(line).name, begin
            begin += len(line)
