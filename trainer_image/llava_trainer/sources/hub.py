"""Repositories of the hub: the commit behind a revision, and the files of it.

Only listed and addressed: what a repository holds is data here.
"""

from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

import httpx
from huggingface_hub import HfApi, hf_hub_url, set_client_factory
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from llava_trainer.sources.address import HubAddress
from llava_trainer.sources.exchange import explain_transport
from llava_trainer.sources.network import Network, build_client
from llava_trainer.sources.refusals import TransientError, explain_status, refused, secret_field
from llava_trainer.sources.remote import Digest, RemoteFile, check_name

RepositoryType = Literal["model", "dataset"]
_Result = TypeVar("_Result")
_CLIENT_ERRORS = range(400, 500)
_TRANSIENT = frozenset({408, 425, 429})


class Repository:
    """One repository at one commit.

    Args:
        address: what the source says; its revision is a branch, a tag, a commit or None.
        kind: model or dataset repository.
        token: of an account that may read it; None for public ones.
        network: names the hub and the way to it.
        field: the source's field, for messages.
    """

    def __init__(
        self, address: HubAddress, *, kind: RepositoryType, token: str | None, network: Network, field: str,
    ) -> None:  # fmt: skip
        self._address = address
        self._kind = kind
        self._endpoint = network.hub_endpoint
        self._field = field
        # False: a token that lies about on the machine is never sent.
        self._token: str | Literal[False] = token or False
        self._api = HfApi(endpoint=network.hub_endpoint, token=self._token)
        # One client for the whole process; the library closes the one that it had. By itself it would also ask its
        # maker's host which tools it may be run by: a network without that host would hold the run up.
        set_client_factory(lambda: build_client(network, may_ask=_is_about_a_repository))

    def resolve(self) -> str:
        """The commit that the revision is now.

        Raises:
            StageError: SourceRefused, naming field, address and fix.
            TransientError: another try may help.
        """
        ask = self._api.model_info if self._kind == "model" else self._api.dataset_info
        info = self._call(lambda: ask(self._address.repository, revision=self._address.revision, expand=["sha"]))
        if not info.sha:
            raise refused(f"{self._field}: the hub tells no commit of hf://{self._address.repository}")
        return str(info.sha)

    def list_files(self, commit: str, is_wanted: Callable[[str], bool] = lambda name: True) -> dict[str, RemoteFile]:
        """The files of a commit, by name.

        Raises:
            StageError, TransientError: as ``resolve``.
        """
        return self._call(lambda: {file.name: file for file in self._list(commit, is_wanted)})

    def _list(self, commit: str, is_wanted: Callable[[str], bool]) -> Iterator[RemoteFile]:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        place = f"hf://{self._address.repository}@{commit}"
        entries = self._api.list_repo_tree(
            self._address.repository, revision=commit, repo_type=self._kind, recursive=True
        )
        for entry in entries:
            if not isinstance(entry, RepoFile) or not is_wanted(entry.path):
                continue
            yield RemoteFile(
                name=check_name(entry.path, self._field, place),
                address=f"{place}/{entry.path}",
                url=self._locate(entry.path, commit),
                headers=headers,
                version=commit,
                size=entry.size,
                digest=Digest(algorithm="sha256", hex=entry.lfs.sha256) if entry.lfs else
                       Digest(algorithm="git", hex=entry.blob_id),
            )  # fmt: skip

    def _locate(self, name: str, commit: str) -> Callable[[], str]:
        return lambda: hf_hub_url(
            self._address.repository, name, repo_type=self._kind, revision=commit, endpoint=self._endpoint
        )

    def _call(self, ask: Callable[[], _Result]) -> _Result:
        told = f"hf://{self._address.repository}"
        try:
            return ask()
        except httpx.TransportError as error:
            raise explain_transport(error, self._field, told) from error
        except HfHubHTTPError as error:
            raise self._explain(error, told) from error

    def _explain(self, error: HfHubHTTPError, told: str) -> Exception:
        status = error.response.status_code
        if isinstance(error, GatedRepoError):
            return refused(
                f"{self._field}: {told} is gated: accept its terms on the hub and put a token of that account into "
                f"{secret_field(self._field)} (key token)"
            )
        if isinstance(error, RevisionNotFoundError):
            return refused(f"{self._field}: {told} has no revision {self._address.revision!r}: name a branch, tag or "
                           "commit of it")  # fmt: skip
        if isinstance(error, RepositoryNotFoundError):
            return refused(
                f"{self._field}: {told} does not exist as a {self._kind} repository, or is private: correct the name, "
                f"or put a token that may read it into {secret_field(self._field)} (key token)"
            )
        if status in _CLIENT_ERRORS and status not in _TRANSIENT:
            return explain_status(status, self._field, told)
        return TransientError(f"HTTP {status}")


def _is_about_a_repository(url: httpx.URL) -> bool:
    return "/api/models/" in url.path or "/api/datasets/" in url.path
