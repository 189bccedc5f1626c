"""A model repository of the hub, written to.

huggingface_hub makes repositories and branches, resolves and lists. Sending is our own: the library's create_commit
reads each file again, sends by Xet's own network stack around the run's proxies and authorities where that is
installed, writes signed addresses to the log, begins a file anew when one of its parts fails, and leaves out without an
error what the repository's .gitignore names. The routes are those of the hub's API
(https://huggingface.co/spaces/huggingface/openapi).
"""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, NoReturn, TypeVar
from urllib.parse import quote

import httpx
from huggingface_hub import hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from pydantic import Field, ValidationError

from llava_api.base import Lenient
from llava_trainer.publishing.content import Item, read_span
from llava_trainer.publishing.destination import Place
from llava_trainer.publishing.exchange import Answer, Body, address_of, exchange, explain
from llava_trainer.publishing.refusals import refused, unavailable
from llava_trainer.retrying import TransientError
from llava_trainer.sources.hub import call_hub, open_hub
from llava_trainer.sources.refusals import WRITING, MissingError, explain_failure
from llava_trainer.sources.responses import explain_answer, explain_transport, open_response, origin_of, read_bounded

MAX_ENTRIES = 100_000
"""Files and folders of a repository that is published to; the hub itself recommends fewer."""
_SAMPLE_BYTES = 512
_MODES_AT_ONCE = 256
_JSON = "application/json"
_JSON_LINES = "application/x-ndjson"
_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})
_COMMIT = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]

Mode = Literal["lfs", "regular"]
_Answer = TypeVar("_Answer", bound=Lenient)
_Result = TypeVar("_Result")


class MovedError(Exception):
    """Somebody else has committed meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A file that is in the repository."""

    size: int
    sha256: str | None
    """Of a file of LFS; None for one of git."""
    blob_id: str
    """Git's SHA-1."""


class _Mode(Lenient):
    path: str
    mode: Annotated[Mode, Field(alias="uploadMode")]
    is_ignored: Annotated[bool, Field(alias="shouldIgnore")] = False


class Modes(Lenient):
    """The hub's answer to what files it would be sent."""

    files: list[_Mode]


class _Committed(Lenient):
    oid: Annotated[_COMMIT, Field(alias="commitOid")]


class HubClient:
    """One branch of a repository.

    Args:
        place: field and address for messages, the way out, how often something is tried.
        repository: OWNER/NAME.
        branch: its branch.
        token: of an account that may write to it; None asks as nobody.

    Raises:
        StageError: SourceRefused, if the hub's address is none.
    """

    def __init__(self, place: Place, repository: str, branch: str, token: str | None) -> None:
        self._place = place
        self._repository = repository
        self._branch = branch
        self._api = open_hub(
            place.network, token, told=place.address, field=place.field, repeatedly=place.repeatedly, access=WRITING
        )
        self._what = f"{place.what}: {self._api.endpoint}"
        self._credential = {"Authorization": f"Bearer {token}"} if token else {}

    @property
    def endpoint(self) -> str:
        """The hub's address."""
        return str(self._api.endpoint)

    def prepare_branch(self) -> str:
        """The commit that the branch is at. A repository that is not there is made, private; a branch out of ``main``.

        Raises:
            StageError: DestinationRefused, DestinationUnavailable or those of sources.
        """
        for _ in range(3):
            try:
                info = call_hub(
                    lambda: self._api.model_info(self._repository, revision=self._branch, expand=["sha"]),
                    self._explain_missing, self._what,
                )  # fmt: skip
            except _NoRepositoryError:
                self._call(lambda: self._api.create_repo(self._repository, private=True, exist_ok=True))
            except _NoBranchError:
                self._call(lambda: self._api.create_branch(self._repository, branch=self._branch, exist_ok=True))
            else:
                return self.parse(_Head, {"sha": info.sha}).sha
        raise refused(
            f"{self._place.what} cannot be seen, although it is there: put a token that may read and write it into "
            f"{self._place.secret_field} (key token), and name a branch, no tag and no commit"
        )

    def list_files(self, commit: str) -> dict[str, Standing]:
        """The files of a commit, by their paths.

        Raises:
            StageError: as ``prepare_branch``.
        """
        entries = iter(self._api.list_repo_tree(self._repository, revision=commit, recursive=True))
        found: dict[str, Standing] = {}
        for _ in range(MAX_ENTRIES):
            entry = self._call(lambda: next(entries, None))
            if entry is None:
                return found
            if isinstance(entry, RepoFile):
                found[entry.path] = Standing(
                    size=entry.size, sha256=entry.lfs.sha256 if entry.lfs else None, blob_id=entry.blob_id
                )
        raise refused(
            f"{self._place.what} has more than {MAX_ENTRIES:,} files and folders: publish to another repository"
        )

    def read_file(self, commit: str, path: str, most: int) -> bytes:
        """A small file of a commit.

        Raises:
            StageError: as ``prepare_branch``.
        """
        url = hf_hub_url(self._repository, path, revision=commit, endpoint=self.endpoint)

        def ask() -> bytes:
            try:
                with open_response(self._place.client, url, {}, self._credential) as response:
                    if response.status_code != 200:
                        raise explain_answer(response, self._place.field, self._place.address, access=WRITING)
                    return read_bounded(response, most)
            except httpx.RequestError as error:
                raise explain_transport(error, self._place.field, self._place.address) from None

        return self._place.repeatedly(ask)

    def ask_modes(self, names: Mapping[str, Item]) -> dict[str, Mode]:
        """How the hub wants each file, by its path in the repository.

        Raises:
            StageError: as ``prepare_branch``; the repository ignores one of them.
        """
        modes: dict[str, Mode] = {}
        paths = list(names)
        for begin in range(0, len(paths), _MODES_AT_ONCE):
            batch = paths[begin : begin + _MODES_AT_ONCE]
            files = [{"path": path, "size": names[path].size, "sample": _sample(names[path])} for path in batch]
            answer = self.post(self._route("preupload"), {"files": files}, _JSON)
            told = {one.path: one for one in self.parse(Modes, answer).files}
            for path in batch:
                if path not in told:
                    self._refuse_answer()
                if told[path].is_ignored:
                    raise refused(
                        f"{self._place.what}: the repository's .gitignore leaves {path} out: take that out of it"
                    )
                # Storage takes no empty file.
                modes[path] = told[path].mode if names[path].size else "regular"
        return modes

    def commit(self, parent: str, summary: str, operations: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
        """Commit on top of ``parent``; the new commit.

        Args:
            parent: what the branch has to be at.
            summary: the commit's message.
            operations: kind (``file``, ``lfsFile``, ``deletedFile``) and what the hub wants of it.

        Raises:
            MovedError: the branch is at another commit.
            StageError: as ``prepare_branch``.
        """
        lines = [("header", {"summary": summary, "description": "", "parentCommit": parent}), *operations]
        content = b"".join(json.dumps({"key": key, "value": value}).encode() + b"\n" for key, value in lines)
        answer = self._send(self._route("commit"), _JSON_LINES, Body.of(content), wanted=(200, 409, 412))
        if answer.status != 200:
            raise MovedError
        return self.parse(_Committed, answer.content).oid

    def post(self, url: str, value: Any, content_type: str) -> bytes:
        """Ask the hub itself something.

        Raises:
            StageError: as ``prepare_branch``; the address is another host's, which gets no token.
        """
        headers = {"Accept": content_type}
        return self._send(url, content_type, Body.of(json.dumps(value).encode()), headers, wanted=(200,)).content

    def _send(
        self, url: str, content_type: str, body: Body, headers: Mapping[str, str] = _NO_HEADERS,
        *, wanted: tuple[int, ...],
    ) -> Answer:  # fmt: skip
        if not _has_origin(url, self.endpoint):
            self._refuse_answer()
        sent = {"Content-Type": content_type, **headers, **self._credential}

        def ask() -> Answer:
            answer = exchange(self._place, "POST", url, sent, body)
            if answer.status in wanted:
                return answer
            raise self._explain_answer(answer)

        return self._place.repeatedly(ask)

    def _explain_answer(self, answer: Answer) -> Exception:
        if answer.status == 400:
            return refused(
                f"{self._place.what} was refused with HTTP 400: the hub does not take what it was sent; look at "
                "spec.publish.license, which has to be one of its licences, and at the branch"
            )
        error = explain(self._place, answer)
        if isinstance(error, MissingError):
            return refused(
                f"{self._place.what} was refused with HTTP {answer.status}: it is gone, or the token in "
                f"{self._place.secret_field} may not write it"
            )
        return error

    def parse(self, kind: type[_Answer], content: Any) -> _Answer:
        """An answer in the hub's own form: JSON, or values of the library's.

        Raises:
            StageError: DestinationUnavailable; it is none.
        """
        try:
            return kind.model_validate_json(content) if isinstance(content, bytes) else kind.model_validate(content)
        except ValidationError:
            # Its text holds the answer.
            self._refuse_answer()

    @property
    def batch_url(self) -> str:
        """Where git-lfs asks."""
        return f"{self.endpoint}/{self._repository}.git/info/lfs/objects/batch"

    def _route(self, action: str) -> str:
        return f"{self.endpoint}/api/models/{self._repository}/{action}/{quote(self._branch, safe='')}"

    def _refuse_answer(self) -> NoReturn:
        raise unavailable(f"{self._what} does not answer as a hub does; look at spec.download.hubEndpoint") from None

    def _call(self, ask: Callable[[], _Result]) -> _Result:
        return call_hub(ask, self._explain, self._what)

    def _explain(self, error: HfHubHTTPError) -> Exception:
        status = error.response.status_code
        told = explain_failure(status, self._place.field, self._place.address, access=WRITING)
        if isinstance(told, TransientError):
            return unavailable(f"{self._place.what}: {told}")
        return told

    def _explain_missing(self, error: HfHubHTTPError) -> Exception:
        if isinstance(error, RevisionNotFoundError):
            return _NoBranchError()
        if isinstance(error, RepositoryNotFoundError):
            return _NoRepositoryError()
        return self._explain(error)


class _NoRepositoryError(Exception):
    pass


class _NoBranchError(Exception):
    pass


class _Head(Lenient):
    sha: _COMMIT


def _has_origin(url: str, endpoint: str) -> bool:
    try:
        return address_of(url)[1] == origin_of(endpoint)
    except ValueError:
        return False


def _sample(item: Item) -> str:
    return base64.b64encode(b"".join(read_span(item, 0, min(item.size, _SAMPLE_BYTES)))).decode()
