"""One file from a server to the volume: in pieces where it broke off, checked, synced, renamed.

A file that is being fetched lies aside of its name; beside it stands which version of it that is, so that another
try, or another attempt of the stage, asks for the rest only. Memory: one chunk.
"""

import contextlib
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import httpx

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.files import aside_of
from llava_trainer.sources.journal import Fetched, Journal
from llava_trainer.sources.progress import Progress
from llava_trainer.sources.refusals import TransientError, explain_status, refused, unavailable
from llava_trainer.sources.remote import Digest, RemoteFile
from llava_trainer.sources.retrying import Patience, StoppedError, try_repeatedly

CHUNK_BYTES = 1 << 20
RESUMABLE_BYTES = 8 << 20
"""Shorter files are begun anew: asking for the rest of them would save nothing."""
SPARE_BYTES = 64 << 20
"""Room that a download leaves on the volume for logs and reports."""
_GAIN_BYTES = 16 << 20
"""A try that got so much further is no failure in a row."""
_MAX_REDIRECTS = 5
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_RATE_LIMIT = re.compile(r";\s*t=(\d{1,6})")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


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
        fetched = try_repeatedly(
            transfer.attempt, what=f"{self.field}: {remote.address}", patience=self.patience, stop=self.stop,
            has_progressed=transfer.take_gain,
        )  # fmt: skip
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
        """One try.

        Raises:
            TransientError: another try may help.
        """
        offset, version = self._find_partial()
        headers = {"Accept-Encoding": "identity", **self._remote.headers}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if version:
                headers["If-Range"] = version
        try:
            with _open(self._by.client, self._remote.url(), headers) as response:
                return self._receive(response, offset, version)
        except httpx.TransportError as error:
            raise explain_transport(error, self._by.field, self._remote.address) from error

    def _receive(self, response: httpx.Response, offset: int, version: str) -> Fetched:
        offset = self._accept(response, offset, version)
        version = version_of(response)
        size = self._expected_size(response, offset)
        self._check_space(size - offset if size is not None else 0)
        if size is None or size >= RESUMABLE_BYTES:
            self._version_file.write_text(version, encoding="ascii", errors="ignore")
        sums = _Sums(self._remote.digest, size)
        self._count(offset - self._counted)
        with self._aside.open("r+b" if offset else "wb") as stream:
            for chunk in _read_chunks(stream, offset):
                sums.update(chunk)
            stream.truncate()
            for chunk in response.iter_raw(CHUNK_BYTES):
                if self._by.stop.is_set():
                    raise StoppedError
                stream.write(chunk)
                sums.update(chunk)
                self._gained += len(chunk)
                self._count(len(chunk))
            stream.flush()
            os.fsync(stream.fileno())
        return self._finish(response, sums, size, version)

    def _finish(self, response: httpx.Response, sums: "_Sums", size: int | None, version: str) -> Fetched:
        if size is not None and sums.size < size:
            raise TransientError(f"the connection ended after {sums.size:,} of {size:,} bytes")
        problem = sums.find_mismatch(self._remote.digest, size, response)
        if problem is not None:
            self._discard()
            self._num_mismatches += 1
            if self._num_mismatches > 1:
                raise refused(
                    f"{self._by.field}: {self._remote.address} is not what it should be, fetched twice: {problem}; "
                    "correct the digest or the file"
                )
            raise TransientError(problem)
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
            version=self._remote.version or version,
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

    def _accept(self, response: httpx.Response, offset: int, version: str) -> int:
        """Where the body that follows belongs in the file.

        Raises:
            TransientError, MissingError, StageError: there is no such body.
        """
        if response.status_code == 206 and offset:
            match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            told = version_of(response)
            # Servers that know no If-Range answer with a piece of whatever there is now.
            if match and int(match[1]) == offset and (not version or told in ("", version)):
                return offset
            self._discard()
            raise TransientError("the file changed while it was fetched")
        if response.status_code == 200:
            return 0
        if response.status_code == 416 and offset:
            self._discard()
            raise TransientError("the file is shorter than what had been fetched of it")
        if response.status_code in (404, 410) and self._may_miss:
            raise MissingError
        raise self._explain(response)

    def _explain(self, response: httpx.Response) -> Exception:
        status = response.status_code
        if status in _TRANSIENT_STATUS:
            return TransientError(f"HTTP {status}", wait_s=_asked_wait_s(response))
        return explain_status(status, self._by.field, self._remote.address)

    def _expected_size(self, response: httpx.Response, offset: int) -> int | None:
        length = response.headers.get("Content-Length", "")
        told = offset + int(length) if length.isdecimal() else None
        if self._remote.size is not None and told is not None and told != self._remote.size:
            self._discard()
            raise TransientError(f"{told:,} bytes are offered instead of {self._remote.size:,}")
        return self._remote.size if told is None else told

    def _check_space(self, needed_bytes: int) -> None:
        check_space(self._by.volume, needed_bytes, f"{self._by.field}: {self._remote.address}")

    def _count(self, num_bytes: int) -> None:
        self._counted += num_bytes
        self._by.progress.add(num_bytes, self._remote.name)

    def _discard(self) -> None:
        self._aside.unlink(missing_ok=True)
        self._version_file.unlink(missing_ok=True)


class _Sums:
    """Size and hashes of what has come in."""

    def __init__(self, digest: Digest | None, size: int | None) -> None:
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._other = digest.begin(size or 0) if digest is not None and digest.algorithm != "sha256" else None

    def update(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self._sha256.update(chunk)
        if self._other is not None:
            self._other.update(chunk)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def find_mismatch(self, digest: Digest | None, size: int | None, response: httpx.Response) -> str | None:
        """What is wrong with the content; None if nothing is."""
        if size is not None and self.size != size:
            return f"{self.size:,} bytes instead of {size:,}"
        if digest is None or (digest.algorithm == "md5" and _is_tag_opaque(response)):
            return None
        found = self.sha256 if self._other is None else self._other.hexdigest()
        if found != digest.hex:
            name = {"git": "git blob id"}.get(digest.algorithm, digest.algorithm)
            return f"its {name} is {found} instead of {digest.hex}"
        return None


def check_space(volume: Path, needed_bytes: int, what: str) -> None:
    """Make sure that something fits on the run's volume.

    Raises:
        StageError: StorageFull, with what is needed and what is there.
    """
    free = shutil.disk_usage(volume).free
    if needed_bytes + SPARE_BYTES > free and needed_bytes:
        raise StageError(
            Reason.STORAGE_FULL,
            f"{what} needs {needed_bytes / 1e9:,.2f} GB more, but the run's volume has {free / 1e9:,.2f} GB free: "
            "raise spec.storage.size",
        )


def version_of(response: httpx.Response) -> str:
    """What tells this version of a file from another: its strong ETag, else its time of change; empty if neither."""
    tag = response.headers.get("ETag", "")
    if tag and not tag.startswith("W/"):
        return str(tag)
    return str(response.headers.get("Last-Modified", ""))


def explain_transport(error: httpx.TransportError, field: str, address: str) -> Exception:
    """A failed connection: worth another try, or one that no try will mend."""
    text = f"{type(error).__name__}: {error}"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return unavailable(
            f"{field}: {address}: the server's certificate is not trusted ({error}); put its authority into the "
            "ConfigMap that spec.download.caConfigMap names"
        )
    if isinstance(error, httpx.ProxyError):
        if "407" in text:
            return explain_status(407, field, address)
        return TransientError(f"the proxy refused ({error}); look at spec.download.httpsProxy and noProxy")
    if isinstance(error, httpx.UnsupportedProtocol):
        return refused(f"{field}: {address}: {error}")
    return TransientError(text)


@contextlib.contextmanager
def _open(client: httpx.Client, url: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
    """Ask for ``url``; redirects are followed, but never from https to http. Credentials stay with their host."""
    request = client.build_request("GET", url, headers=headers)
    for _ in range(_MAX_REDIRECTS):
        response = client.send(request, stream=True)
        try:
            following = response.next_request
            if following is None:
                yield response
                return
        finally:
            response.close()
        if urlsplit(url).scheme == "https" and following.url.scheme != "https":
            raise TransientError("the server sends on from https to another protocol, which is not followed")
        request = following
    raise TransientError(f"the server sends on more than {_MAX_REDIRECTS} times")


def _read_chunks(stream: BinaryIO, num_bytes: int) -> Iterator[bytes]:
    while num_bytes > 0:
        chunk = stream.read(min(CHUNK_BYTES, num_bytes))
        if not chunk:
            raise TransientError("what had been fetched is gone")
        num_bytes -= len(chunk)
        yield chunk


def _asked_wait_s(response: httpx.Response) -> float | None:
    asked = response.headers.get("Retry-After", "")
    if asked.isdecimal():
        return float(asked)
    # The hub's own way to say it: RateLimit: "resolvers";r=0;t=123
    reset = _RATE_LIMIT.search(response.headers.get("RateLimit", ""))
    return float(reset[1]) if reset else None


def _is_tag_opaque(response: httpx.Response) -> bool:
    """Whether an S3 ETag is no MD5 although it looks like one: with keys of KMS or of the client."""
    headers = response.headers
    return (
        headers.get("x-amz-server-side-encryption", "").startswith("aws:kms")
        or "x-amz-server-side-encryption-customer-algorithm" in headers
    )
