"""Files that other runs on the same claim have fetched.

Their journals may hold anything: a file is the one that is wanted if its size and digest are those that this run's own
source lists, as far as it lists any.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from pydantic import ValidationError

from llava_trainer.attempts.foreign import ForeignFolder, has_links
from llava_trainer.attempts.other_runs import others_of
from llava_trainer.sources.fetched import JOURNAL, Fetched, state_of
from llava_trainer.sources.remote import Checksum, RemoteFile

_CHUNK_BYTES = 1 << 20
_MOST_FILES = 500_000
"""Of all journals together of which it is kept where their lines begin: some 100 MB of memory."""
_MOST_BYTES = 256 << 20
"""Of all journals together that are read for that."""
_MOST_LINE_BYTES = 16 << 10
"""A longer line is none of a journal's: names and addresses are bounded."""

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class _OtherJournal:
    folder: ForeignFolder
    """Of the files."""
    stream: BinaryIO
    lines: dict[str, int]
    """Where the last line of each file begins."""
    is_told: bool = False
    """Whether the log says that something of it could not be used: there may be a million files."""


class OtherJournals:
    """What other runs have fetched for the same purpose as ``folder`` is fetched for."""

    def __init__(self, folder: Path) -> None:
        """Read where the files of each stand, the newest run's first, as far as the bounds allow."""
        self._lock = threading.Lock()
        self._journals: list[_OtherJournal] = []
        self._num_files, self._num_bytes = _MOST_FILES, _MOST_BYTES
        with ExitStack() as stack:
            for other in others_of(folder):
                if (journal := self._open(other, stack)) is not None:
                    self._journals.append(journal)
            self._streams = stack.pop_all()
        self._has_links = bool(self._journals) and has_links(state_of(folder))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._streams.close()

    def can_link(self, remote: RemoteFile) -> bool:
        """Whether a file seems to be there for a link.

        It is looked at when its turn comes: if it is not as it should be, it is fetched, and space is looked at again.
        """
        return self._has_links and any(True for _ in self._find(remote))

    def take_up(self, remote: RemoteFile, target: Path) -> Fetched | None:
        """Link, or copy, a file to ``target`` that another run has fetched whole; None without one."""
        for journal, known in self._find(remote):
            try:
                journal.folder.take_file(remote.name, target, known.size)
                if _is_as_listed(target, remote, known):
                    return known
                problem = "it is not what its journal or this run's source says"
            except OSError as error:
                problem = str(error)
            target.unlink(missing_ok=True)
            self._tell(journal, remote.name, problem)
        return None

    def _find(self, remote: RemoteFile) -> Iterator[tuple[_OtherJournal, Fetched]]:
        """Journals that say that they have a file.

        Without a version nobody can tell whether it is old, and without a size how much there may be of it.
        """
        if not remote.version or remote.size is None:
            return
        wanted = (remote.name, remote.address, remote.version, remote.size)
        for journal in self._journals:
            known = self._read(journal, remote.name)
            if known is not None and (known.name, known.address, known.version, known.size) == wanted:
                yield journal, known

    def _read(self, journal: _OtherJournal, name: str) -> Fetched | None:
        begin = journal.lines.get(name)
        if begin is None:
            return None
        # Whoever writes there may have written something else since.
        with self._lock, suppress(OSError, ValidationError):
            journal.stream.seek(begin)
            return Fetched.model_validate_json(journal.stream.readline(_MOST_LINE_BYTES))
        return None

    def _open(self, folder: ForeignFolder, stack: ExitStack) -> _OtherJournal | None:
        state = folder.at(state_of(folder.path))
        try:
            stream = stack.enter_context(state.open_file(JOURNAL))
            lines = self._index(stream)
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("the journal %s of another run is passed over: %s", state.path / JOURNAL, error)
            return None
        return _OtherJournal(folder=folder, stream=stream, lines=lines)

    def _index(self, stream: BinaryIO) -> dict[str, int]:
        lines: dict[str, int] = {}
        begin = 0
        is_begin = True
        while self._num_files and self._num_bytes > 0 and (line := stream.readline(_MOST_LINE_BYTES)):
            if is_begin:
                with suppress(ValidationError):
                    lines[Fetched.model_validate_json(line).name] = begin
                    self._num_files -= 1
            is_begin = line.endswith(b"\n")
            begin += len(line)
            self._num_bytes -= len(line)
        return lines

    def _tell(self, journal: _OtherJournal, name: str, problem: str) -> None:
        if not journal.is_told:
            journal.is_told = True
            logger.warning(
                "%s, which another run has fetched, is fetched again: %s (of others there the log says nothing)",
                journal.folder.path / name, problem,
            )  # fmt: skip


def _is_as_listed(file: Path, remote: RemoteFile, known: Fetched) -> bool:
    """Whether a file has the size and digest that the source lists, and hashes to what its journal says."""
    checksum = Checksum(remote.digest, remote.size)
    with file.open("rb") as stream:
        # No further than its end should be: whoever has fetched it may write on.
        while checksum.size <= known.size and (chunk := stream.read(_CHUNK_BYTES)):
            checksum.update(chunk)
    return checksum.sha256 == known.sha256 and checksum.find_mismatch() is None
