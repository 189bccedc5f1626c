"""Repositories of the hub: the commit behind a revision, and the files of it.

huggingface_hub resolves and lists, by our own client; files are fetched as everything else is: the library begins a
download that broke off anew in another attempt and checks sizes only. What a repository holds is data here.
"""

import functools
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import httpx
from huggingface_hub import HfApi, hf_hub_url, set_client_factory
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from llava_api.text import show
from llava_trainer.retrying import Retrier, TransientError
from llava_trainer.sources.address import HubAddress
from llava_trainer.sources.network import Network, build_client
from llava_trainer.sources.refusals import (
    READING,
    Access,
    MissingError,
    explain_failure,
    refused,
    secret_field,
    unavailable,
)
from llava_trainer.sources.remote import Digest, Listed, RemoteFile, check_name
from llava_trainer.sources.responses import (
    Origin,
    describe_transport,
    explain_transport,
    origin_of,
    parse_wait_s,
    read_bounded,
)
from llava_trainer.sources.xet import XetStore, is_valid_xet_hash

RepositoryType = Literal["model", "dataset"]
_Result = TypeVar("_Result")
_SHA256_BYTES = 32
_STRANGE_ANSWERS = (httpx.RequestError, KeyError, TypeError, ValueError, AttributeError, RecursionError)
"""What the library and httpx raise on answers that are none of a hub's; of connections the transport tells."""
_ROUTES = ("/api/models/", "/api/datasets/", "/api/repos/create")
_BUSY = b"another conflicting operation is in progress"


class Repository:
    """One repository at one commit.

    Args:
        address: what the source says; its revision is a branch, a tag, a commit or None.
        kind: model or dataset repository.
        token: of an account that may read it; None for public ones.
        network: names the hub and the way to it.
        field: the source's field, for messages.
        repeatedly: tries a request again; each by itself, so that a listing of many pages goes on where it broke off.
        uses_xet: whether files that the hub keeps in Xet are read by its client (``xet``).

    Raises:
        StageError: SourceRefused, if the hub's address is none.
    """

    def __init__(
        self, address: HubAddress, *, kind: RepositoryType, token: str | None, network: Network, field: str,
        repeatedly: Retrier, uses_xet: bool = False,
    ) -> None:  # fmt: skip
        self._address = address
        self._kind = kind
        self._field = field
        self._told = f"hf://{address.repository}"
        self._what = f"{field}: {self._told}"
        self._api = open_hub(network, token, told=self._told, field=field, repeatedly=repeatedly)
        self._credential = {"Authorization": f"Bearer {token}"} if token else {}
        self._xet = (
            XetStore(self._api.endpoint, address.repository, kind, self._credential, f"{self._what}")
            if uses_xet else None
        )  # fmt: skip

    def resolve(self) -> str:
        """The commit that the revision is now.

        Raises:
            StageError: SourceRefused or SourceUnavailable, naming field, address and fix.
        """
        ask = self._api.model_info if self._kind == "model" else self._api.dataset_info
        info = self._call(lambda: ask(self._address.repository, revision=self._address.revision, expand=["sha"]))
        if not info.sha:
            raise refused(f"{self._field}: the hub tells no commit of {self._told}")
        return str(info.sha)

    def list_files(self, commit: str, is_wanted: Callable[[str], bool] = lambda name: True) -> Iterator[Listed]:
        """The files of a commit.

        Raises:
            StageError: as ``resolve``.
        """
        place = f"{self._told}@{commit}"
        entries = iter(
            self._api.list_repo_tree(self._address.repository, revision=commit, repo_type=self._kind, recursive=True)
        )
        while (entry := self._call(lambda: next(entries, None))) is not None:
            if isinstance(entry, RepoFile) and is_wanted(entry.path):
                yield self._call(functools.partial(self._describe, entry, place))

    def _describe(self, entry: RepoFile, place: str) -> Listed:
        tag = bytes.fromhex(entry.lfs.sha256 if entry.lfs else entry.blob_id)
        if self._xet is not None and entry.lfs and entry.xet_hash and is_valid_xet_hash(entry.xet_hash):
            tag += bytes.fromhex(entry.xet_hash)
        return Listed(check_name(entry.path, self._field, place), int(entry.size), tag)

    def locate(self, listed: Listed, commit: str) -> RemoteFile:
        """How to fetch a file of a commit: of LFS with its SHA-256, another with git's own SHA-1."""
        digest, xet_hash = listed.tag[:_SHA256_BYTES], listed.tag[_SHA256_BYTES:]
        algorithm: Literal["sha256", "git"] = "sha256" if len(digest) == _SHA256_BYTES else "git"
        return RemoteFile(
            name=listed.name,
            address=f"{self._told}@{commit}/{listed.name}",
            url=lambda: hf_hub_url(
                self._address.repository, listed.name, repo_type=self._kind, revision=commit,
                endpoint=self._api.endpoint,
            ),
            credential=self._credential,
            version=commit,
            size=listed.size,
            digest=Digest(algorithm=algorithm, hex=digest.hex()),
            read=functools.partial(self._read, commit, xet_hash.hex(), listed.size) if xet_hash else None,
        )  # fmt: skip

    def _read(self, commit: str, xet_hash: str, size: int, offset: int) -> Generator[bytes]:
        store = self._xet
        assert store is not None, "without it no hash of Xet's is kept"
        try:
            place = self._call(lambda: store.ask_place(commit))
        except MissingError as error:
            # The file is there: whoever fetches it would take it for one that is gone.
            raise unavailable(
                f"{self._what}: the hub lists files that it keeps in Xet and does not tell where: have xet switched "
                "off in the installation"
            ) from error
        yield from store.read(place, xet_hash, size, offset)

    def _call(self, ask: Callable[[], _Result]) -> _Result:
        return call_hub(ask, self._explain, f"{self._what}: {self._api.endpoint}")

    def _explain(self, error: HfHubHTTPError) -> Exception:
        if isinstance(error, GatedRepoError):
            return refused(
                f"{self._what} is gated: accept its terms on the hub and put a token of that account into "
                f"{secret_field(self._field)} (key token)"
            )
        if isinstance(error, RevisionNotFoundError):
            return refused(
                f"{self._what} has no revision {self._address.revision!r}: name a branch, tag or commit of it"
            )
        if isinstance(error, RepositoryNotFoundError):
            return refused(
                f"{self._what} does not exist as a {self._kind} repository, or is private: correct the "
                f"name, or put a token that may read it into {secret_field(self._field)} (key token)"
            )
        return explain_failure(error.response.status_code, self._field, self._told)


def open_hub(
    network: Network, token: str | None, *, told: str, field: str, repeatedly: Retrier, access: Access = READING
) -> HfApi:
    """The library, asking by our own client; there is one client for the whole process.

    Args:
        network: names the hub and the way to it.
        token: goes to the hub's own address alone; None asks as nobody.
        told: the address, for messages.
        field: its field, for messages.
        repeatedly: tries a request again.
        access: what is asked for, for messages.

    Raises:
        StageError: SourceRefused, if the hub's address is none.
    """
    # False: a token that lies about on the machine is never sent.
    api = HfApi(endpoint=network.hub_endpoint, token=token or False)
    try:
        pinned = origin_of(api.endpoint)
    except ValueError as error:
        raise refused(
            "spec.download.hubEndpoint must be an address like https://hub.example, without credentials"
        ) from error

    def through(way_out: httpx.BaseTransport) -> httpx.BaseTransport:
        return _HubTransport(way_out, pinned, told, field, repeatedly, access)

    # The library closes the client that it had. Redirects: a renamed repository.
    set_client_factory(lambda: build_client(network, through=through, follow_redirects=True))
    return api


def call_hub(ask: Callable[[], _Result], explain: Callable[[HfHubHTTPError], Exception], what: str) -> _Result:
    """What the library answers.

    Args:
        ask: calls it.
        explain: what a refusal of the hub's means.
        what: field, address and the hub's own address, for messages.

    Raises:
        StageError: SourceUnavailable, if that is no hub's answer; what ``explain`` gives.
    """
    try:
        return ask()
    except HfHubHTTPError as error:
        # Not "from error": it repeats the hub's words, which may be what it was sent.
        raise explain(error) from None
    except _STRANGE_ANSWERS as error:
        # The library's own repeat what was sent, which may be the token.
        told = describe_transport(error) if isinstance(error, httpx.RequestError) else type(error).__name__
        raise unavailable(f"{what} does not answer as a hub does ({told}); look at spec.download.hubEndpoint") from None


@dataclass(frozen=True)
class _HubTransport(httpx.BaseTransport):
    """Requests about repositories, each tried again by itself; the token goes to the hub's own address alone."""

    way_out: httpx.BaseTransport
    pinned: Origin
    told: str
    field: str
    repeatedly: Retrier
    access: Access

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if not any(route in request.url.path for route in _ROUTES):
            # By itself the library would also ask its maker's host which tools it may be run by: a network without
            # that host would hold the run up.
            raise httpx.ConnectError("another host is not asked for this", request=request)
        # A listing's next page, too, is where the server says.
        if "authorization" in request.headers and origin_of(str(request.url)) != self.pinned:
            host = show(request.url.netloc.decode("ascii", "replace"), max_chars=100)
            raise refused(
                f"{self.field}: {self.told}: the hub at {self.pinned[1]} sends on to {host}, where the token is not "
                "sent: if that is the same hub, set spec.download.hubEndpoint to it"
            )
        return self.repeatedly(lambda: self._ask(request))

    def _ask(self, request: httpx.Request) -> httpx.Response:
        try:
            response = self.way_out.handle_request(request)
            response.request = request
            try:
                content = read_bounded(response)
            finally:
                response.close()
        except httpx.RequestError as error:
            # Its text may hold what was sent.
            raise explain_transport(error, self.field, self.told) from None
        found = explain_failure(response.status_code, self.field, self.told, wait_s=parse_wait_s(response.headers),
                                access=self.access)  # fmt: skip
        if isinstance(found, TransientError):
            raise found
        if response.status_code == 409 and _BUSY in content:
            # The library asks again at once, and without end.
            raise TransientError("HTTP 409")
        # What is read is whole and plain.
        kept = [(name, value) for name, value in response.headers.multi_items()
                if name not in ("content-encoding", "content-length", "transfer-encoding")]  # fmt: skip
        return httpx.Response(response.status_code, headers=kept, content=content, request=request)

    def close(self) -> None:
        self.way_out.close()
