"""One file from a server to the volume: in pieces where it broke off, checked, renamed.

A file that is being fetched lies aside of its name; beside it stands which version of it that is, so that another
try, or another attempt of the stage, asks for the rest only. Memory: one chunk.
"""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import httpx

from llava_trainer.files import aside_of
from llava_trainer.sources.exchange import (
    Body,
    check_encoding,
    explain_answer,
    explain_transport,
    open_response,
    read_body_headers,
    version_of,
)
from llava_trainer.sources.journal import Fetched, Journal
from llava_trainer.sources.progress import Progress
from llava_trainer.sources.refusals import TransientError, refused, unavailable
from llava_trainer.sources.remote import RemoteFile, bare_etag
from llava_trainer.sources.retrying import Patience, Retrier, StoppedError
from llava_trainer.sources.room import check_space
from llava_trainer.sources.sums import Sums

CHUNK_BYTES = 1 << 20
RESUMABLE_BYTES = 8 << 20
"""Shorter files are begun anew: asking for the rest of them would save nothing."""
_GAIN_BYTES = 16 << 20
"""A try that got so much further is no failure in a row."""
_SPACE_BYTES = 64 << 20
"""How often the volume's free space is looked at while a file of unknown length comes in."""


class _PieceError(Exception):
    """A piece has come in as promised, and the next one is to be asked for."""


class MissingError(Exception):
    """The server knows no such file, and the caller can do without."""


@dataclass(frozen=True, kw_only=True)
class Downloader:
    """Fetches files of one source.

    Attributes:
        client: see ``network``.
        field: the source's field, for messages.
        volume: the run's volume; its free space is the limit.
        stop: set by whoever no longer waits.
    """

    client: httpx.Client
    field: str
    volume: Path
    progress: Progress
    patience: Patience
    stop: threading.Event

    def fetch(self, remote: RemoteFile, folder: Path, journal: Journal, *, may_miss: bool = False) -> Fetched:
        """Fetch one file to ``folder / remote.name``, unless it is there already.

        Raises:
            StageError: SourceRefused, SourceUnavailable or StorageFull, naming field, address and fix.
            MissingError: the server knows no such file (only with ``may_miss``).
            StoppedError: ``stop`` was set.
        """
        found = journal.find_whole(remote.name, remote.address, remote.version)
        if found is not None:
            self.progress.add(found.size, remote.name)
            return found
        path = folder / remote.name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise refused(
                f"{self.field}: {remote.address} needs a folder where the source has a file: {error}"
            ) from error
        transfer = _Transfer(self, remote, path, may_miss=may_miss)
        repeatedly = Retrier(what=f"{self.field}: {remote.address}", patience=self.patience, stop=self.stop)
        fetched = repeatedly(transfer.attempt, transfer.take_gain)
        journal.add(fetched)
        return fetched


class _Transfer:
    """The tries of one file."""

    def __init__(self, downloader: Downloader, remote: RemoteFile, path: Path, *, may_miss: bool) -> None:
        self._by = downloader
        self._remote = remote
        self._path = path
        self._aside = aside_of(path)
        self._version_file = self._aside.with_name(f"{self._aside.name}-version")
        self._may_miss = may_miss
        self._num_mismatches = 0
        self._gained = 0
        self._counted = 0
        """Bytes of this file that the progress knows of."""

    def take_gain(self) -> bool:
        """Whether the last try got a good way further."""
        gained, self._gained = self._gained, 0
        return gained >= _GAIN_BYTES

    def attempt(self) -> Fetched:
        """One try, in as many pieces as the server makes of the file.

        Raises:
            TransientError: another try may help.
        """
        while True:
            with contextlib.suppress(_PieceError):
                return self._ask()

    def _ask(self) -> Fetched:
        offset, version = self._find_partial()
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if version:
                headers["If-Range"] = version
        try:
            with open_response(self._by.client, self._remote.url(), headers, self._remote.credential) as response:
                return self._receive(response, offset, version)
        except httpx.RequestError as error:
            raise explain_transport(error, self._by.field, self._remote.address) from error

    def _receive(self, response: httpx.Response, offset: int, version: str) -> Fetched:
        body = self._accept(response, offset, version)
        version = version_of(response)
        told = bare_etag(response.headers.get("ETag", ""))
        if self._remote.etag and told and told != self._remote.etag:
            self._discard()
            raise unavailable(
                f"{self._by.field}: {self._remote.address} has changed since it was listed (ETag {told} instead of "
                f"{self._remote.etag}): create the run again when nobody writes there any more"
            )
        size = self._expected_size(body)
        self._check_space(size - body.begin if size is not None else 0)
        if size is None or size >= RESUMABLE_BYTES:
            self._version_file.write_text(version, encoding="ascii", errors="ignore")
        sums = Sums(self._remote.digest, size)
        self._count(body.begin - self._counted)
        with self._aside.open("r+b" if body.begin else "wb") as stream:
            for chunk in _read_chunks(stream, body.begin):
                sums.update(chunk)
            stream.truncate()
            self._write(response, stream, sums, body.end if size is None else size)
        if body.end is not None and sums.size < body.end:
            raise TransientError(f"the connection ended after {sums.size:,} of {body.end:,} bytes")
        return self._finish(response, sums, size, body.begin)

    def _write(self, response: httpx.Response, stream: BinaryIO, sums: Sums, most: int | None) -> None:
        unchecked = 0
        for chunk in response.iter_raw():
            if self._by.stop.is_set():
                raise StoppedError
            if most is not None and sums.size + len(chunk) > most:
                raise self._mismatch(f"more than {most:,} bytes")
            unchecked += len(chunk)
            if most is None and unchecked >= _SPACE_BYTES:
                # Nobody has said how much will come.
                self._check_space(unchecked)
                unchecked = 0
            stream.write(chunk)
            sums.update(chunk)
            self._gained += len(chunk)
            self._count(len(chunk))

    def _finish(self, response: httpx.Response, sums: Sums, size: int | None, begin: int) -> Fetched:
        if size is not None and sums.size < size:
            if sums.size - begin >= CHUNK_BYTES:
                raise _PieceError
            raise TransientError(f"only {sums.size - begin:,} bytes of the rest at a time")
        problem = sums.find_mismatch(self._remote.digest, size, response)
        if problem is not None:
            raise self._mismatch(problem)
        self._aside.chmod(0o644)
        try:
            self._aside.rename(self._path)
        except IsADirectoryError as error:
            raise refused(
                f"{self._by.field}: {self._remote.address} is a file where the source has a folder too"
            ) from error
        self._version_file.unlink(missing_ok=True)
        return Fetched(
            name=self._remote.name, address=self._remote.address, size=sums.size, sha256=sums.sha256,
            version=self._remote.version or version_of(response),
        )  # fmt: skip

    def _find_partial(self) -> tuple[int, str]:
        """Bytes that are there already, and of which version; 0 if it has to be begun anew."""
        try:
            size = self._aside.stat().st_size
        except FileNotFoundError:
            return 0, ""
        try:
            version = self._version_file.read_text(encoding="ascii")
        except (FileNotFoundError, UnicodeDecodeError):
            return 0, ""
        # Without a version the digest will tell whether the pieces fit together. The last byte is asked for again: a
        # file that was all there would have no rest to ask for.
        return (max(0, size - 1), version) if version or self._remote.digest else (0, "")

    def _accept(self, response: httpx.Response, offset: int, version: str) -> Body:
        """What the body that follows holds.

        Raises:
            TransientError, MissingError, StageError: there is no such body.
        """
        if response.status_code == 200 or (response.status_code == 206 and offset):
            check_encoding(response, self._by.field, self._remote.address)
            body = read_body_headers(response, offset)
            told = version_of(response)
            # Servers that know no If-Range answer with a piece of whatever there is now.
            if body is not None and (not body.begin or not version or told in ("", version)):
                return body
            self._discard()
            raise TransientError("the file changed while it was fetched, or the server sent another part of it")
        if response.status_code == 416 and offset:
            self._discard()
            raise TransientError("the file is shorter than what had been fetched of it")
        if response.status_code in (404, 410) and self._may_miss:
            raise MissingError
        raise explain_answer(response, self._by.field, self._remote.address)

    def _expected_size(self, body: Body) -> int | None:
        """Of the whole, by the server's word and the listing's; None where nobody tells."""
        if self._remote.size is not None and body.total is not None and body.total != self._remote.size:
            self._discard()
            raise TransientError(f"{body.total:,} bytes are offered instead of {self._remote.size:,}")
        size = self._remote.size if body.total is None else body.total
        if size is not None or self._remote.digest is not None:
            return size
        if body.begin:
            # bytes 5-9/*: the end of this piece may be the file's or not. Asked for as a whole, it tells.
            self._discard()
            raise TransientError("the server does not tell how long the file is")
        if not body.has_end:
            raise refused(
                f"{self._by.field}: {self._remote.address}: the server tells neither how long the file is nor where it "
                "ends (no Content-Length, no chunks): whether all of it came could not be told; have the server tell "
                "its length, or add #sha256=DIGEST where the source is one file"
            )
        return None

    def _mismatch(self, problem: str) -> Exception:
        """Not what it should be: once it may be an accident."""
        self._discard()
        self._num_mismatches += 1
        if self._num_mismatches > 1:
            return refused(
                f"{self._by.field}: {self._remote.address} is not what it should be, fetched twice: {problem}; "
                "correct the digest or the file"
            )
        return TransientError(problem)

    def _check_space(self, needed_bytes: int) -> None:
        check_space(self._by.volume, needed_bytes, f"{self._by.field}: {self._remote.address}")

    def _count(self, num_bytes: int) -> None:
        self._counted += num_bytes
        self._by.progress.add(num_bytes, self._remote.name)

    def _discard(self) -> None:
        self._aside.unlink(missing_ok=True)
        self._version_file.unlink(missing_ok=True)


def _read_chunks(stream: BinaryIO, num_bytes: int) -> Iterator[bytes]:
    while num_bytes > 0:
        chunk = stream.read(min(CHUNK_BYTES, num_bytes))
        if not chunk:
            raise TransientError("what had been fetched is gone")
        num_bytes -= len(chunk)
        yield chunk
