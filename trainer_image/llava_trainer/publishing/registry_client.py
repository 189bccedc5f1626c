"""A repository of a registry, by the distribution specification: blobs and manifests are looked for and pushed.

https://github.com/opencontainers/distribution-spec/blob/main/spec.md

Our own, because oras' library for Python (0.2) goes by requests: around the run's proxies, authorities and least rate,
to wherever a server redirects it, with a chunk in memory, and from a blob's beginning after every failure. Here a blob
goes in chunks, each tried again by itself, and goes on where the registry says that it stands. Across attempts it is
the blob that counts: one that is there is not sent again. An upload that an attempt has left behind is the registry's
to clear away: what continues it is as good as a credential, and those do not lie on the run's volume.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urljoin

import httpx

from llava_trainer.publishing.destination import Place
from llava_trainer.publishing.exchange import MAX_ANSWER_BYTES, Answer, Body, address_of, exchange, explain, try_again
from llava_trainer.publishing.model_layers import INDEX_TYPE, MANIFEST_TYPE, Document
from llava_trainer.publishing.refusals import refused, unavailable
from llava_trainer.publishing.registry_access import Access, Login
from llava_trainer.retrying import TransientError
from llava_trainer.sources.refusals import MissingError
from llava_trainer.sources.responses import TooLargeError, origin_of

CHUNK_BYTES = 64 << 20
"""Of a blob that is larger; it is read and sent by the megabyte. A registry may want larger ones, and says so."""
_MAX_CHUNK_BYTES = 5 << 30
_MANIFEST_TYPES = (
    MANIFEST_TYPE, INDEX_TYPE,
    "application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.distribution.manifest.list.v2+json",
)  # fmt: skip
_RANGE = re.compile(r"(?:bytes=)?0-(\d{1,18})")
_LOST = frozenset({400, 404, 410, 416})
"""What a registry says of an upload that it does not know, or that stands elsewhere than it thought."""
_CHUNKS_REFUSED = frozenset({405, 411, 501})

Read = Callable[[int, int], Iterator[bytes]]
"""Bytes from the first number to the second."""


@dataclass(frozen=True, kw_only=True)
class Blob:
    """Something to push."""

    digest: str
    """``sha256:HEX``."""
    size: int
    read: Read
    check: Callable[[], None] = lambda: None
    """Looks at what was read again, where the registry says that it has another digest.

    Raises:
        StageError: ResultDamaged.
    """


class RegistryClient:
    """One repository.

    Args:
        place: field and address for messages, the way out, how often something is tried.
        base: scheme and host of the registry.
        repository: its name there.
        login: as whom; None as nobody.
        chunk_bytes: the size of chunks.
    """

    def __init__(
        self, place: Place, base: str, repository: str, login: Login | None, *, chunk_bytes: int = CHUNK_BYTES
    ) -> None:
        self._place = place
        self._root = f"{base}/v2/{repository}"
        self._origin = origin_of(base)
        self._access = Access(place, self._origin, repository, login)
        self.chunk_bytes = chunk_bytes

    def find_manifest(self, reference: str) -> bytes | None:
        """What stands under a tag or digest; None if nothing does.

        Raises:
            StageError: DestinationRefused, DestinationUnavailable or those of sources.
        """
        headers = {"Accept": ", ".join(_MANIFEST_TYPES)}

        def ask() -> Answer:
            try:
                return self.ask("GET", f"{self._root}/manifests/{reference}", headers, wanted=(200, 404))
            except TooLargeError:
                raise refused(
                    f"{self._place.what}: {reference} is taken by something of more than {MAX_ANSWER_BYTES:,} bytes, "
                    "which this project has not published: name another tag, or delete that one"
                ) from None

        answer = self._place.repeatedly(ask)
        return answer.content if answer.status == 200 else None

    def push_manifest(self, reference: str, document: Document) -> None:
        """Make a manifest or an index stand under a tag or digest.

        Raises:
            StageError: as ``find_manifest``.
        """
        url = f"{self._root}/manifests/{reference}"
        headers = {"Content-Type": document.media_type}
        body = Body.of(document.body)
        answer = self._place.repeatedly(lambda: self.ask("PUT", url, headers, body, wanted=(201, 200)))
        if answer.headers.get("Docker-Content-Digest", document.digest) != document.digest:
            raise unavailable(
                f"{self._place.what}: the registry has stored {reference} with another digest than {document.digest}, "
                "which it was sent: look at what stands before it"
            )

    def has_blob(self, digest: str) -> bool:
        """Whether a blob is there. One that the registry keeps elsewhere, where it sends readers on to, is.

        Raises:
            TransientError: the registry does not answer for now.
            StageError: as ``find_manifest``.
        """
        return self.ask("HEAD", f"{self._root}/blobs/{digest}", wanted=(200, 302, 307, 404)).status != 404

    def push_blob(self, blob: Blob, on_bytes: Callable[[int], None]) -> int:
        """Push a blob that is not there.

        Args:
            blob: what to push.
            on_bytes: told how much of it stands there.

        Returns:
            Bytes that were sent for it, 0 where it was there.

        Raises:
            StageError: as ``find_manifest``; what ``blob.read`` and ``blob.check`` raise.
        """
        upload = _Upload(self, blob, on_bytes, f"{self._root}/blobs/uploads/")
        self._place.repeatedly(upload.go_on, upload.has_progressed)
        return upload.num_sent

    def ask(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, body: Body | None = None,
        *, wanted: tuple[int, ...],
    ) -> Answer:  # fmt: skip
        """One request; a second where the registry asks who it is.

        Args:
            method: of HTTP.
            url: of the registry; nothing is asked for elsewhere.
            headers: besides who it is.
            body: what is sent.
            wanted: statuses that are no failure.

        Raises:
            TransientError: worth another try.
            StageError: as ``find_manifest``.
        """
        answer = self._send(method, url, headers or {}, body)
        if answer.status == 401:
            # Tokens last for minutes.
            answer = self._send(method, url, headers or {}, body)
        if answer.status in wanted:
            return answer
        raise self._explain(answer)

    def _send(self, method: str, url: str, headers: Mapping[str, str], body: Body | None) -> Answer:
        answer = exchange(self._place, method, url, {**headers, **self._access.headers}, body)
        if answer.status == 401:
            self._access.take_challenge(answer)
        return answer

    def follow(self, url: str, answer: Answer) -> str:
        """Where an answer says that an upload goes on.

        Raises:
            StageError: DestinationRefused; that is at another host, or without TLS.
            TransientError: it says nothing.
        """
        location = str(answer.headers.get("Location", ""))
        if not location:
            raise TransientError(f"HTTP {answer.status} without Location")
        try:
            address, (scheme, host, port) = address_of(urljoin(url, location))
        except ValueError:
            raise refused(f"{self._place.what}: the registry wants uploads at what is no address: look at it") from None
        if (scheme, host, port) != self._origin:
            raise refused(
                f"{self._place.what}: the registry wants uploads at {scheme}://{self._access.show_host(host)}:{port}, "
                "where nothing is sent: have it name its own address (behind a proxy, by X-Forwarded-Proto and Host), "
                "or name that one"
            )
        return str(address)

    def _explain(self, answer: Answer) -> Exception:
        if answer.status == 413:
            return refused(
                f"{self._place.what}: what stands before the registry takes no bodies of {self.chunk_bytes:,} bytes "
                "(HTTP 413): raise its limit (client_max_body_size of nginx)"
            )
        if answer.code == "MANIFEST_BLOB_UNKNOWN":
            return try_again(answer)
        error = explain(self._place, answer)
        if isinstance(error, MissingError):
            return refused(
                f"{self._place.what}: there is no such repository, and none is made (HTTP {answer.status}): create it "
                "in the registry, or correct the address"
            )
        return error


class _Upload:
    """A blob on its way."""

    def __init__(self, client: RegistryClient, blob: Blob, on_bytes: Callable[[int], None], begin: str) -> None:
        self.num_sent = 0
        self._client = client
        self._blob = blob
        self._on_bytes = on_bytes
        self._begin = begin
        self._location: str | None = None
        self._offset = 0
        """Bytes of the blob that stand there."""
        self._is_sure = True
        """Whether the registry has said so since the last failure."""
        self._in_chunks = True
        self._least_bytes = 0
        self._farthest = self._reported = 0

    def has_progressed(self) -> bool:
        """Whether more stands there than ever before."""
        progressed, self._reported = self._farthest > self._reported, self._farthest
        return progressed

    def go_on(self) -> None:
        """One try, from where it stands."""
        if self._location is not None and not self._is_sure:
            self._ask_offset(self._location)
        if self._location is None:
            if self._client.has_blob(self._blob.digest):
                self._tell(self._blob.size)
                return
            self._open()
        while self._location is not None:
            self._is_sure = False
            self._location = self._send_next(self._location)
            self._is_sure = True

    def _open(self) -> None:
        answer = self._client.ask("POST", self._begin, wanted=(202,))
        least = answer.headers.get("OCI-Chunk-Min-Length", "")
        self._least_bytes = min(int(least), _MAX_CHUNK_BYTES) if least.isdecimal() and len(least) < 16 else 0
        self._location, self._offset, self._is_sure = self._client.follow(self._begin, answer), 0, True

    def _send_next(self, location: str) -> str | None:
        """Send what comes next; where the upload goes on then, None if it is done."""
        size = self._blob.size
        chunk_bytes = max(self._client.chunk_bytes, self._least_bytes) if self._in_chunks else size
        begin, end = self._offset, min(self._offset + chunk_bytes, size)
        if (begin, end) == (0, size) or begin == size:
            self._finish(location, begin)
            return None
        headers = {"Content-Type": "application/octet-stream", "Content-Range": f"{begin}-{end - 1}"}
        body = self._read(begin, end)
        answer = self._client.ask("PATCH", location, headers, body, wanted=(202, *_LOST, *_CHUNKS_REFUSED))
        if answer.status in _CHUNKS_REFUSED:
            self._in_chunks = False
        if answer.status != 202:
            raise self._forget(answer)
        self.num_sent += end - begin
        self._tell(end)
        return self._client.follow(location, answer)

    def _finish(self, location: str, begin: int) -> None:
        url = str(httpx.URL(location).copy_add_param("digest", self._blob.digest))
        headers = {"Content-Type": "application/octet-stream"}
        answer = self._client.ask("PUT", url, headers, self._read(begin, self._blob.size), wanted=(201, 204, *_LOST))
        if answer.status in _LOST:
            if answer.code == "DIGEST_INVALID":
                self._blob.check()
            raise self._forget(answer)
        self.num_sent += self._blob.size - begin
        self._tell(self._blob.size)

    def _ask_offset(self, location: str) -> None:
        """Where the upload stands after a failure; what is unknown begins anew."""
        answer = self._client.ask("GET", location, wanted=(204, *_LOST, 405))
        self._location = None
        found = _RANGE.fullmatch(answer.headers.get("Range", ""))
        # 0-0 is one byte, or none: registries do not agree.
        offset = int(found[1]) + 1 if found and found[1] != "0" else 0
        if answer.status == 204 and self._offset <= offset <= self._blob.size:
            self._location = self._client.follow(location, answer)
            self._tell(offset)

    def _forget(self, answer: Answer) -> TransientError:
        self._location, self._offset = None, 0
        return try_again(answer)

    def _read(self, begin: int, end: int) -> Body:
        return Body(read=lambda: self._blob.read(begin, end), size=end - begin)

    def _tell(self, offset: int) -> None:
        self._offset = offset
        self._farthest = max(self._farthest, offset)
        self._on_bytes(self._farthest)
