"""One file from a server to the volume: in pieces where it broke off, checked, renamed.

A file that is being fetched lies aside (``partial_file``), so that another try, or another attempt of the stage, asks
for the rest only. Memory: one chunk.
"""

import contextlib
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import httpx

from llava_trainer.files import check_space, make_folder
from llava_trainer.retrying import Patience, Retrier, StoppedError, TransientError
from llava_trainer.sources.fetched import Fetched
from llava_trainer.sources.journal import Journal
from llava_trainer.sources.partial_file import PartialFile
from llava_trainer.sources.progress import Progress
from llava_trainer.sources.refusals import refused, unavailable
from llava_trainer.sources.remote import Checksum, Digest, RemoteFile, bare_etag
from llava_trainer.sources.responses import (
    Body,
    check_encoding,
    explain_answer,
    explain_transport,
    is_tag_opaque,
    open_response,
    read_body_headers,
    version_of,
)

CHUNK_BYTES = 1 << 20
RESUMABLE_BYTES = 8 << 20
"""Shorter files are begun anew: asking for the rest of them would save nothing."""
_SYNC_BYTES = 64 << 20
"""How much a crash of the node may cost of a file."""
_GAIN_BYTES = 16 << 20
"""A try that got so much further is no failure in a row."""
_SPACE_BYTES = 64 << 20
"""How often the volume's free space is looked at while a file of unknown length comes in."""


class _PieceError(Exception):
    """A piece has come in as promised, and the next one is to be asked for."""


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

    def fetch(self, remote: RemoteFile, journal: Journal) -> Fetched:
        """Fetch one file to its name in the journal's folder, unless it is there already.

        Raises:
            StageError: SourceRefused (MissingError, where the server has no such file), SourceUnavailable or
                StorageFull, naming field, address and fix.
            StoppedError: ``stop`` was set.
        """
        found = journal.find_whole(remote)
        if found is not None:
            self.progress.add(found.size, remote.name)
            return found
        what = f"{self.field}: {remote.address}"
        if (other := journal.claim(remote.name)) != remote.name:
            raise refused(
                f"{what} and {other} are one file on the run's volume, which does not tell capitals from small "
                "letters: rename one of them, or take another StorageClass"
            )
        path = journal.folder / remote.name
        try:
            make_folder(path.parent)
        except (FileExistsError, NotADirectoryError) as error:
            raise refused(f"{what} needs a folder where the source has a file: {error}") from error
        journal.take_over_partial(remote.name)
        transfer = _Transfer(self, remote, path, PartialFile(journal.partial_of(remote.name)))
        fetched = self.retrier(remote.address)(transfer.attempt, transfer.take_gain)
        journal.add(fetched)
        return fetched

    def retrier(self, address: str) -> Retrier:
        """Tries again what is asked of an address of this source."""
        return Retrier(what=f"{self.field}: {address}", patience=self.patience, stop=self.stop)


class _Transfer:
    """The tries of one file."""

    def __init__(self, downloader: Downloader, remote: RemoteFile, path: Path, partial: PartialFile) -> None:
        self._by = downloader
        self._remote = remote
        self._what = f"{downloader.field}: {remote.address}"
        self._path = path
        self._partial = partial
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
        offset, version = self._partial.find(has_digest=self._remote.digest is not None)
        if self._remote.read is not None:
            return self._read(self._remote.read, offset if version == self._remote.version else 0)
        headers = {}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if version:
                headers["If-Range"] = version
        try:
            with open_response(self._by.client, self._remote.url(), headers, self._remote.credential) as response:
                return self._receive(response, offset, version)
        except httpx.RequestError as error:
            raise explain_transport(error, self._by.field, self._remote.address) from error

    def _read(self, read: Callable[[int], Generator[bytes]], offset: int) -> Fetched:
        size = self._remote.size
        with contextlib.closing(read(offset)) as chunks:
            body = Body(begin=offset, end=size, total=size, has_end=True)
            return self._store(chunks, body, size, self._remote.version, self._remote.digest)

    def _receive(self, response: httpx.Response, offset: int, version: str) -> Fetched:
        body = self._accept(response, offset, version)
        version = version_of(response)
        told = bare_etag(response.headers.get("ETag", ""))
        if self._remote.etag and told and told != self._remote.etag:
            self._partial.discard()
            raise unavailable(
                f"{self._what} has changed since it was listed (ETag {told} instead of {self._remote.etag}): create "
                "the run again when nobody writes there any more"
            )
        digest = self._remote.digest
        if digest is not None and digest.algorithm == "md5" and is_tag_opaque(response):
            digest = None
        return self._store(response.iter_raw(), body, self._expected_size(body), version, digest)

    def _store(
        self, chunks: Iterator[bytes], body: Body, size: int | None, version: str, digest: Digest | None
    ) -> Fetched:  # fmt: skip
        self._check_space(size - body.begin if size is not None else 0)
        resumable = size is None or size >= RESUMABLE_BYTES
        come = Checksum(digest, size)
        self._count(body.begin - self._counted)
        with self._partial.open(body.begin) as stream:
            while chunk := stream.read(min(CHUNK_BYTES, body.begin - come.size)):
                come.update(chunk)
            if come.size < body.begin:
                raise TransientError("what had been fetched is gone")
            stream.truncate()
            try:
                self._write(chunks, stream, come, body.end if size is None else size, version if resumable else None)
                _check_end(body, come.size, size)
            except BaseException:
                if resumable and self._partial.path.exists():
                    self._partial.keep(stream, version, come.size)
                raise
        return self._finish(come, version)

    def _write(self, chunks: Iterator[bytes], stream: BinaryIO, come: Checksum, most: int | None, version: str | None
    ) -> None:  # fmt: skip
        unchecked = unsynced = 0
        for chunk in chunks:
            if self._by.stop.is_set():
                raise StoppedError
            if most is not None and come.size + len(chunk) > most:
                raise self._mismatch(f"more than {most:,} bytes")
            unchecked += len(chunk)
            if most is None and unchecked >= _SPACE_BYTES:
                # Nobody has said how much will come.
                self._check_space(unchecked)
                unchecked = 0
            stream.write(chunk)
            come.update(chunk)
            self._gained += len(chunk)
            self._count(len(chunk))
            unsynced += len(chunk)
            if unsynced >= _SYNC_BYTES and version is not None:
                self._partial.keep(stream, version, come.size)
                unsynced = 0

    def _finish(self, come: Checksum, version: str) -> Fetched:
        problem = come.find_mismatch()
        if problem is not None:
            raise self._mismatch(problem)
        try:
            self._partial.publish(self._path)
        except IsADirectoryError as error:
            raise refused(f"{self._what} is a file where the source has a folder too") from error
        return Fetched(
            name=self._remote.name, address=self._remote.address, size=come.size, sha256=come.sha256,
            version=self._remote.version or version,
        )  # fmt: skip

    def _accept(self, response: httpx.Response, offset: int, version: str) -> Body:
        """What the body that follows holds.

        Raises:
            TransientError, StageError: there is no such body.
        """
        if response.status_code == 200 or (response.status_code == 206 and offset):
            check_encoding(response, self._by.field, self._remote.address)
            body = read_body_headers(response, offset)
            told = version_of(response)
            # Servers that know no If-Range answer with a piece of whatever there is now.
            if body is not None and (not body.begin or not version or told in ("", version)):
                return body
            self._partial.discard()
            raise TransientError("the file changed while it was fetched, or the server sent another part of it")
        if response.status_code == 416 and offset:
            self._partial.discard()
            raise TransientError("the file is shorter than what had been fetched of it")
        raise explain_answer(response, self._by.field, self._remote.address, role=self._remote.role)

    def _expected_size(self, body: Body) -> int | None:
        """Of the whole, by the server's word and the listing's; None where nobody tells."""
        if self._remote.size is not None and body.total is not None and body.total != self._remote.size:
            self._partial.discard()
            raise TransientError(f"{body.total:,} bytes are offered instead of {self._remote.size:,}")
        size = self._remote.size if body.total is None else body.total
        if size is not None or self._remote.digest is not None:
            return size
        if body.begin:
            # bytes 5-9/*: the end of this piece may be the file's or not. Asked for as a whole, it tells.
            self._partial.discard()
            raise TransientError("the server does not tell how long the file is")
        if not body.has_end:
            raise refused(
                f"{self._what}: the server tells neither how long the file is nor where it ends (no Content-Length, no "
                "chunks): whether all of it came could not be told; have the server tell its length, or add "
                "#sha256=DIGEST where the source is one file"
            )
        return None

    def _mismatch(self, problem: str) -> Exception:
        """Not what it should be: once it may be an accident."""
        self._partial.discard()
        self._num_mismatches += 1
        if self._num_mismatches > 1:
            return refused(
                f"{self._what} is not what it should be, fetched twice: {problem}; correct the digest or the file"
            )
        return TransientError(problem)

    def _check_space(self, needed_bytes: int) -> None:
        check_space(self._by.volume, needed_bytes, self._what)

    def _count(self, num_bytes: int) -> None:
        self._counted += num_bytes
        self._by.progress.add(num_bytes, self._remote.name)


def _check_end(body: Body, size: int, whole: int | None) -> None:
    """Hold what is there against where the body was to end, and the file.

    Raises:
        TransientError: it broke off.
        _PieceError: the body has come in, and there is more.
    """
    if body.end is not None and size < body.end:
        raise TransientError(f"the connection ended after {size:,} of {body.end:,} bytes")
    if whole is not None and size < whole:
        if size - body.begin < CHUNK_BYTES:
            raise TransientError(f"only {size - body.begin:,} bytes of the rest at a time")
        raise _PieceError
