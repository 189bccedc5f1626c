"""Publishing to the hub: a hub-compatible server, asked through a relay that speaks TLS and fails as it is told.

Whatever happens to whichever request, the branch shows what it did or the whole, and the repeat sends what is missing.
"""

import dataclasses
import json
import logging
import shutil
import ssl
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import disable_progress_bars

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.publishing import hub_client
from llava_trainer.publishing.content import Content, Item
from llava_trainer.publishing.destination import Place, Sent
from llava_trainer.publishing.hub import HubDestination
from llava_trainer.publishing.refusals import told_of_destinations
from llava_trainer.retrying import Patience
from tests.trainer.fault_table import check_row, describe_visible
from tests.trainer.killing import Victim
from tests.trainer.places import CARD, FIELD, MERGED, QUICK, make_content, make_place, texts_behind, write_secret
from tests.trainer.servers.authority import Authority
from tests.trainer.servers.echo import ECHOES, run_echo
from tests.trainer.servers.hub_writing import Stored, WritableHub
from tests.trainer.servers.relay import Fault, Relay, Relayed

TOKEN, READER = "hf_writes-of-a-test", "hf_reads-of-a-test"
PART = 200_000
ONCE = Patience(tries=1)
REPOSITORY = "team/invoices"


@dataclass
class Hosted:
    """A hub behind a relay, and what a test publishes there."""

    hub: WritableHub
    relay: Relay
    authority: Authority
    root: Path
    clients: ExitStack
    address: str = f"hf://{REPOSITORY}"

    def place(self, **more: Any) -> Place:
        more = {"address": self.address, "hub_endpoint": self.relay.base, **more}
        place = make_place(root=self.root, ca_pem=self.authority.pem, **more)
        self.clients.callback(place.client.close)
        return place

    def publish(self, content: Content, **more: Any) -> Sent:
        with told_of_destinations():
            return HubDestination(self.place(**more)).publish(content, lambda num_bytes: None)

    def fail(self, content: Content, **more: Any) -> StageError:
        with pytest.raises(StageError) as caught:
            self.publish(content, **more)
        return caught.value

    @property
    def stored(self) -> Stored:
        return self.hub.repositories[REPOSITORY]

    def has(self, content: Content, branch: str = "main") -> bool:
        """Whether the branch shows the content; anything else is nothing, for who has published nothing before."""
        files = self.hub.repositories[REPOSITORY].files(branch) if REPOSITORY in self.hub.repositories else {}
        assert files in ({}, whole(content)), "half of it is visible"
        return bool(files)

    def bodies(self, part: str) -> list[Relayed]:
        return [
            request for request in self.relay.requests if part in request.path and request.method in ("PUT", "POST")
        ]


def whole(content: Content) -> dict[str, bytes]:
    return {item.name: item.path.read_bytes() for item in content.items}


@pytest.fixture(scope="module")
def relay(authority: Authority) -> Iterator[tuple[WritableHub, Relay]]:
    with WritableHub().run() as hub, Relay(hub.base).run(authority) as relay:
        yield hub, relay


@pytest.fixture
def hosted(relay: tuple[WritableHub, Relay], authority: Authority, tmp_path: Path) -> Iterator[Hosted]:
    hub, front = relay
    front.begin()
    hub.tokens = {TOKEN: True, READER: False}
    hub.repositories, hub.uploads = {}, {}
    hub.ignored, hub.before_commit, hub.part_bytes = set(), [], PART
    write_secret(tmp_path, token=TOKEN)
    with ExitStack() as clients:
        yield Hosted(hub, front, authority, tmp_path, clients)


@pytest.fixture
def content(tmp_path: Path) -> Content:
    """Two weights, of which one goes in two parts."""
    return make_content(tmp_path / "model", MERGED)


# --- what stands there


def test_one_commit_in_a_new_private_repository(hosted: Hosted, content: Content) -> None:
    told: list[int] = []
    sent = HubDestination(hosted.place()).publish(content, told.append)
    assert hosted.has(content)
    assert sent == Sent(revision=hosted.stored.branches["main"], sent_bytes=content.size)
    assert hosted.stored.log() == ["Publish the merged model", "initial commit"]
    assert hosted.stored.is_private
    assert told == sorted(told)
    assert told[-1] == content.size
    # The token goes to the hub, and not to its storage.
    assert {request.authorization for request in hosted.relay.requests if request.path.startswith("/api/models")} == {
        f"Bearer {TOKEN}"
    }
    assert {request.authorization for request in hosted.bodies("/storage/")} == {None}
    assert [request.size for request in hosted.bodies("/storage/")] == [PART, 307_200 - PART, 117_000]


def use_librarys_own_client(authority: Authority) -> None:
    """As its users have it, but for the authority."""
    context = ssl.create_default_context(cafile=str(authority.ca_file))
    huggingface_hub.set_client_factory(lambda: httpx.Client(verify=context, follow_redirects=True))


def test_the_library_reads_it_back(hosted: Hosted, content: Content, tmp_path: Path, authority: Authority) -> None:
    hosted.publish(content)
    use_librarys_own_client(authority)
    folder = huggingface_hub.snapshot_download(
        REPOSITORY, endpoint=hosted.relay.base, token=READER, cache_dir=tmp_path / "cache"
    )
    found = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    assert found.pop(".gitattributes")
    assert found == whole(content)
    huggingface_hub.close_session()


@pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning")
def test_the_server_is_a_hub_for_the_library(
    hosted: Hosted, content: Content, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its own upload makes there is what ours makes, to the byte: the server is not our idea of a hub alone."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    disable_progress_bars()
    use_librarys_own_client(authority)
    api = HfApi(endpoint=hosted.relay.base, token=TOKEN)
    api.create_repo(REPOSITORY)
    api.upload_folder(repo_id=REPOSITORY, folder_path=content.items[0].path.parent)
    huggingface_hub.close_session()
    assert hosted.has(content)
    assert len(hosted.bodies("/storage/")) == 3
    hosted.relay.begin()
    assert hosted.publish(content).sent_bytes == 0
    assert not hosted.bodies("/")


def test_the_repeat_makes_no_commit(hosted: Hosted, content: Content) -> None:
    first = hosted.publish(content)
    hosted.relay.begin()
    assert hosted.publish(content) == Sent(revision=first.revision, sent_bytes=0, was_there=True)
    assert {request.method for request in hosted.relay.requests} == {"GET"}


def test_branch_that_is_not_there_is_made(hosted: Hosted, content: Content) -> None:
    hosted.address = f"hf://{REPOSITORY}@v1.0"
    sent = hosted.publish(content)
    assert hosted.has(content, "v1.0")
    assert hosted.stored.branches["v1.0"] == sent.revision
    assert hosted.stored.files("main") == {}


def test_adapter_lies_in_its_folder(hosted: Hosted, content: Content, tmp_path: Path) -> None:
    files = {"adapter_model.safetensors": b"low rank", "README.md": b"an adapter"}
    adapter = make_content(tmp_path / "adapter", files, what="adapter")
    hosted.publish(content)
    hosted.publish(adapter, folder="adapter")
    beside = {f"adapter/{name}": body for name, body in whole(adapter).items()}
    assert hosted.stored.files() == {**whole(content), **beside}
    assert hosted.stored.log()[0] == "Publish the adapter model"
    # Neither is part of the other.
    assert hosted.publish(content).sent_bytes == hosted.publish(adapter, folder="adapter").sent_bytes == 0


def test_what_an_earlier_publication_had_is_replaced_and_what_others_have_stays(
    hosted: Hosted, content: Content, tmp_path: Path
) -> None:
    hosted.publish(content)
    hosted.stored.commit("main", {**hosted.stored.commits[hosted.stored.branches["main"]].files, "NOTES.txt": b"mine"})
    other = make_content(
        tmp_path / "other", {"model.safetensors": b"one shard", "config.json": b"{}", "README.md": CARD}
    )
    hosted.relay.begin()
    sent = hosted.publish(other)
    assert hosted.stored.files() == {**whole(other), "NOTES.txt": b"mine"}
    # The card is the same.
    assert sent.sent_bytes == other.size - len(CARD)
    assert len(hosted.stored.log()) == 4


# --- faults


def _publish_in_a_process(place: dict[str, Any], folder: Path) -> None:
    logging.disable()
    HubDestination(make_place(**place)).publish(make_content(folder, MERGED), lambda num_bytes: None)


class Faults:
    """The same is published again and again, with one fault each; what is visible afterwards."""

    def __init__(self, hosted: Hosted, content: Content) -> None:
        self._hosted, self._content = hosted, content
        hosted.publish(content)
        self.requests = hosted.relay.requests
        self._seen: list[str] = []

    def begin(self) -> None:
        """Go to a hub where nothing is."""
        self._hosted.hub.repositories = {}
        self._hosted.relay.begin()

    def complete(self) -> None:
        """See what is visible, and have the repeat send the large files that are missing, and no other."""
        hosted, content = self._hosted, self._content
        self._seen.append("the whole model" if hosted.has(content) else "nothing that loads")
        objects = set(hosted.stored.objects) if REPOSITORY in hosted.hub.repositories else set()
        hosted.relay.begin()
        hosted.publish(content)
        assert hosted.has(content)
        sent = {request.path.split("?")[0].rpartition("/")[2] for request in hosted.bodies("/storage/")}
        assert not sent & objects
        assert len(hosted.stored.log()) == 2

    def check_row(self, fault: str) -> None:
        """Hold it against docs/publishing.md."""
        check_row("hf", fault, describe_visible(self._seen), "completes it, and sends only the files that were missing")


AT_EACH: dict[str, Callable[[Victim, Relayed], Fault]] = {
    "SIGKILL before each request gets through": lambda victim, request: Fault(before=victim.kill),
    "SIGKILL before each answer comes": lambda victim, request: Fault(after=victim.kill),
    "the connection is cut within each request": lambda victim, request: Fault(cut_after=request.size // 2),
    "the answer to each request is lost": lambda victim, request: Fault(loses_answer=True),
}


@pytest.mark.parametrize("name", AT_EACH)
def test_fault_at_each_request(hosted: Hosted, content: Content, name: str) -> None:
    victim, faults = Victim([__name__]), Faults(hosted, content)
    place = {
        "address": hosted.address, "root": hosted.root, "ca_pem": hosted.authority.pem,
        "hub_endpoint": hosted.relay.base,
    }  # fmt: skip
    for number, request in enumerate(faults.requests):
        faults.begin()
        hosted.relay.faults = {number: AT_EACH[name](victim, request)}
        if "SIGKILL" in name:
            assert victim.run(_publish_in_a_process, place, content.items[0].path.parent) == -9
        else:
            assert hosted.fail(content, patience=ONCE).reason == Reason.DESTINATION_UNAVAILABLE
        assert len(hosted.relay.requests) == number + 1
        faults.complete()
    faults.check_row(f"{name}, {len(faults.requests)} in turn")


KINDS: dict[str, Callable[[Relayed], bool]] = {
    "repository is made": lambda request: request.path.endswith("/repos/create"),
    "branch is looked at": lambda request: "/revision/main" in request.path,
    "files are listed": lambda request: "/tree/" in request.path,
    "files are announced": lambda request: "/preupload/" in request.path,
    "upload is begun": lambda request: request.path.endswith("/batch"),
    "part": lambda request: "partNumber=2" in request.path,
    "parts are put together": lambda request: "/complete_multipart/" in request.path,
    "file in one piece": lambda request: request.method == "PUT" and "uploadId" not in request.path,
    "file is verified": lambda request: request.path.endswith("/verify"),
    "commit": lambda request: "/commit/" in request.path,
}
STORAGE = ("part", "parts are put together", "file in one piece")
ANSWERS = {
    "500": (500, Reason.DESTINATION_UNAVAILABLE, "3 times in a row: HTTP 500"),
    "403": (403, Reason.DESTINATION_REFUSED, "the credentials in spec.publish.destinations[0].secretRef may not write"),
    "507": (507, Reason.DESTINATION_REFUSED, "507"),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_answers_to_each_kind_of_request(hosted: Hosted, content: Content, answer: str) -> None:
    status, reason, told = ANSWERS[answer]
    faults = Faults(hosted, content)
    for kind, is_meant in KINDS.items():
        faults.begin()
        hosted.relay.choose = lambda request, is_meant=is_meant: Fault(status=status) if is_meant(request) else None  # type: ignore[misc]
        error = hosted.fail(content)
        if status == 403 and kind in STORAGE:
            # What the hub has signed has expired, which another attempt has signed anew.
            assert error.reason == Reason.DESTINATION_UNAVAILABLE, kind
            assert "HTTP 403 what the hub itself has signed" in error.message
        else:
            assert error.reason == reason, kind
            assert told in error.message, kind
        assert error.message.startswith(FIELD)
        assert not hosted.has(content), kind
        faults.complete()
    faults.check_row(f"HTTP {answer} to each kind of request, {len(KINDS)} in turn")


def test_trouble_that_passes_is_ridden_out(hosted: Hosted, content: Content) -> None:
    failed: set[str] = set()

    def choose(request: Relayed) -> Fault | None:
        for kind, is_meant in KINDS.items():
            if is_meant(request) and kind not in failed:
                failed.add(kind)
                return Fault(status=503) if len(failed) % 2 else Fault(cut_after=request.size // 2)
        return None

    hosted.relay.choose = choose
    hosted.publish(content)
    assert failed == set(KINDS)
    assert hosted.has(content)
    # The part that came through is not sent again.
    assert len([request for request in hosted.relay.requests if "partNumber=1" in request.path]) == 1


def test_commit_whose_answer_is_lost_is_found(hosted: Hosted, content: Content) -> None:
    lost: list[Relayed] = []

    def choose(request: Relayed) -> Fault | None:
        if KINDS["commit"](request) and not lost:
            lost.append(request)
            return Fault(loses_answer=True)
        return None

    hosted.relay.choose = choose
    assert hosted.publish(content) == Sent(revision=hosted.stored.branches["main"], sent_bytes=content.size)
    assert len(hosted.stored.log()) == 2


# --- others in the same repository


def test_somebody_else_commits_meanwhile(hosted: Hosted, content: Content) -> None:
    """Theirs stays, ours comes on top of it, and large files are not sent again."""

    def commit() -> None:
        files = dict(hosted.stored.commits[hosted.stored.branches["main"]].files)
        hosted.stored.commit("main", {**files, "NOTES.txt": b"mine"}, "theirs")

    hosted.hub.before_commit = [commit]
    hosted.publish(content)
    assert hosted.stored.files() == {**whole(content), "NOTES.txt": b"mine"}
    assert hosted.stored.log() == ["Publish the merged model", "theirs", "initial commit"]
    assert len(hosted.bodies("/storage/")) == 3


def test_somebody_else_takes_a_name_meanwhile(hosted: Hosted, content: Content) -> None:
    hosted.hub.before_commit = [lambda: hosted.stored.commit("main", {"config.json": b"mine"}, "theirs")]
    error = hosted.fail(content)
    assert error.reason == Reason.DESTINATION_REFUSED
    assert hosted.stored.files() == {"config.json": b"mine"}


def test_somebody_else_commits_all_the_time(hosted: Hosted, content: Content) -> None:
    hosted.hub.before_commit = [lambda: hosted.stored.commit("main", {}, "theirs") for _ in range(9)]  # type: ignore[misc]
    error = hosted.fail(content)
    assert error.reason == Reason.DESTINATION_UNAVAILABLE
    assert "somebody else commits to it all the time: 5 commits were late" in error.message


BARE = [b"", b"---\nlicense: mit\n---\n", b"---\r\nlicense: mit\r\n---"]


@pytest.mark.parametrize("card", BARE)
def test_card_that_the_hub_has_made_is_replaced(hosted: Hosted, content: Content, card: bytes) -> None:
    hosted.hub.repositories[REPOSITORY] = Stored()
    hosted.stored.commit("main", {".gitattributes": b"*.safetensors filter=lfs", "README.md": card})
    hosted.publish(content)
    assert hosted.has(content)


@pytest.mark.parametrize(("name", "body"), [
    ("README.md", b"---\nlicense: mit\n---\n# My model"),
    ("README.md", b"-" * 70_000),
    ("config.json", b"{}"),
    ("config.json", MERGED["config.json"].replace(b"llava", b"other")),
    ("model-00001-of-00002.safetensors", b"another's"),
    ("publication.json", b"{}"),
    ("publication.json", b'{"version": 1, "made_by": "somebody"}'),
    ("publication.json", b" " * (5 << 20)),
])  # fmt: skip
def test_file_of_somebody_else_is_left_alone(hosted: Hosted, content: Content, name: str, body: bytes) -> None:
    hosted.hub.repositories[REPOSITORY] = Stored()
    hosted.stored.commit("main", {name: body}, "theirs")
    error = hosted.fail(content)
    assert error.reason == Reason.DESTINATION_REFUSED
    assert f"holds {name}, which this project has not published" in error.message
    assert hosted.stored.log() == ["theirs"]
    assert not hosted.bodies("/storage/")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "adapter_config.json", "chat_template.json"]
)
def test_nothing_of_others_is_loaded_with_the_model(hosted: Hosted, content: Content, name: str) -> None:
    hosted.hub.repositories[REPOSITORY] = Stored()
    hosted.stored.commit("main", {name: b"another's", "training_args.bin": b"", "old/model.safetensors": b""}, "theirs")
    error = hosted.fail(content)
    assert error.reason == Reason.DESTINATION_REFUSED
    assert f"holds {name}, which this project has not published and which would be loaded with" in error.message
    assert hosted.stored.log() == ["theirs"]
    assert not hosted.bodies("/storage/")


def test_attempt_that_is_over_makes_no_commit(hosted: Hosted, content: Content) -> None:
    def end() -> None:
        raise StageError(Reason.SUPERSEDED, "a later attempt does the work")

    assert hosted.fail(content, check_attempt=end).reason == Reason.SUPERSEDED
    assert not hosted.has(content)


# --- what is sent


def item_of(path: Path, content: Content) -> Item:
    return next(item for item in content.items if item.path == path)


def test_file_that_has_changed_is_not_published(hosted: Hosted, content: Content) -> None:
    for name in ("model-00001-of-00002.safetensors", "tokenizer.json"):
        path = next(item.path for item in content.items if item.name == name)
        before = path.read_bytes()
        path.write_bytes(before[:-1] + b"x")
        hosted.relay.begin()
        assert hosted.fail(content).reason == Reason.RESULT_DAMAGED
        assert hosted.stored.files() == {}
        # Other hubs may keep under a file's digest whatever comes.
        assert not [request for request in hosted.bodies("/storage/") if item_of(path, content).sha256 in request.path]
        path.write_bytes(before)


def test_file_that_changes_while_it_is_sent_is_not_published(hosted: Hosted, content: Content) -> None:
    path = content.items[0].path

    def choose(request: Relayed) -> Fault | None:
        if "partNumber=1" in request.path:
            path.write_bytes(path.read_bytes()[:-1] + b"x")
        return None

    hosted.relay.choose = choose
    assert hosted.fail(content).reason == Reason.RESULT_DAMAGED
    assert hosted.stored.files() == {}


def test_memory_does_not_grow_with_a_file(hosted: Hosted, tmp_path: Path) -> None:
    """Counted is what publishing takes: the server in the same process holds it all."""
    content = make_content(tmp_path / "large", {"model.safetensors": b"w" * (48 << 20)})
    hosted.hub.part_bytes = 16 << 20
    tracemalloc.start()
    try:
        hosted.publish(content)
        taken = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/llava_trainer/publishing/*")])
    finally:
        tracemalloc.stop()
    assert sum(one.size for one in taken.statistics("filename")) < 4 << 20


# --- who asks


@pytest.mark.parametrize(("keys", "told"), [
    ({}, "the hub takes nothing from nobody: name a Secret with key token"),
    ({"username": "a", "password": "b"}, "the hub takes nothing from nobody"),
    ({"token": READER}, "HTTP 403: the credentials in spec.publish.destinations[0].secretRef may not write it"),
    ({"token": "hf_wrong"}, "HTTP 401: credentials are missing or wrong"),
])  # fmt: skip
def test_tokens_that_may_not_write(hosted: Hosted, content: Content, keys: dict[str, str], told: str) -> None:
    shutil.rmtree(hosted.root / "secret")
    if keys:
        write_secret(hosted.root, **keys)
    for repository in (None, Stored()):
        if repository is not None:
            hosted.hub.repositories[REPOSITORY] = repository
            repository.commit("main", {})
        error = hosted.fail(content)
        assert error.reason == Reason.DESTINATION_REFUSED
        assert told in error.message


def test_token_and_signed_addresses_are_told_nowhere(
    hosted: Hosted, content: Content, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    place = hosted.place()
    hosted.publish(content)
    texts = [repr(place)]
    for number, request in enumerate(hosted.relay.requests):
        for fault in (Fault(cut_after=request.size // 2), Fault(status=403, body=TOKEN.encode()), Fault(status=418)):
            hosted.hub.repositories = {}
            hosted.relay.begin({number: fault})
            error = hosted.fail(content, patience=ONCE)
            texts += [str(error), *texts_behind(error)]
    texts.append(caplog.text)
    found = [line for text in texts for line in text.splitlines()
             if TOKEN in line or "Signature" in line or "signed-" in line]  # fmt: skip
    assert not found


@pytest.mark.parametrize("where", ECHOES)
def test_hub_that_repeats_what_it_was_sent(
    hosted: Hosted, content: Content, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """To the library, and to what is our own."""
    caplog.set_level(logging.DEBUG, logger="llava_trainer")
    with run_echo(ECHOES[where], hosted.authority) as url:
        errors = [hosted.fail(content, hub_endpoint=url)]
        client = hub_client.HubClient(hosted.place(hub_endpoint=url), REPOSITORY, "main", TOKEN)
        for ask in (
            lambda: client.post(client.batch_url, {}, "application/json"),
            lambda: client.read_file("0" * 40, "config.json", 100),
            lambda: client.ask_modes({"config.json": content.items[0]}),
        ):
            with pytest.raises(StageError) as caught:
                client.parse(hub_client.Modes, ask())
            errors.append(caught.value)
    texts = [caplog.text, *(text for error in errors for text in (error.message, *texts_behind(error)))]
    assert not [text for text in texts if TOKEN.lower() in text.lower()]


@pytest.mark.parametrize("address", ["hf://invoices", "hf://team/", "hf://team/a/b", "hf://team/a@", "s3://team/a"])
def test_addresses_that_are_none(hosted: Hosted, address: str) -> None:
    with pytest.raises(StageError, match="must be hf://OWNER/NAME or hf://OWNER/NAME@BRANCH"):
        HubDestination(hosted.place(address=address))


def test_address_of_the_hub_that_is_none(hosted: Hosted) -> None:
    with pytest.raises(StageError, match="hubEndpoint must be an address"):
        HubDestination(hosted.place(hub_endpoint="https://user:secret@hub.example"))


# --- hubs that are none


def _answer(value: Any, status: int = 200) -> Fault:
    return Fault(status=status, body=json.dumps(value).encode(), headers=(("Content-Type", "application/json"),))


def _offer(upload: Any, verify: Any = None, oid: str | None = None) -> Callable[[str], Fault]:
    """An answer of git-lfs for the first file."""
    actions = {"upload": upload, **({"verify": verify} if verify else {})}
    return lambda digest: _answer({"objects": [{"oid": oid or digest, "size": 307_200, "actions": actions}]})


PARTS = {"1": "https://HOST/a", "2": "https://HOST/b"}
ODD: dict[str, tuple[str, Any, Reason, str]] = {
    "no commit": (
        "branch is looked at", _answer({"id": REPOSITORY, "_id": "x"}), Reason.DESTINATION_UNAVAILABLE, "as a hub does",
    ),
    "commit of text": (
        "branch is looked at", _answer({"id": "x", "_id": "x", "sha": "secret1"}), Reason.DESTINATION_UNAVAILABLE,
        "as a hub does",
    ),
    "always missing": (
        "branch is looked at", Fault(status=404, headers=(("X-Error-Code", "RevisionNotFound"),)),
        Reason.DESTINATION_REFUSED, "cannot be seen, although it is there",
    ),
    "busy": (
        "repository is made",
        _answer({"error": "Cannot create repo: another conflicting operation is in progress"}, 409),
        Reason.DESTINATION_UNAVAILABLE, "3 times in a row: HTTP 409",
    ),
    "listing of text": ("files are listed", _answer("secret1"), Reason.DESTINATION_UNAVAILABLE, "as a hub does"),
    "modes of text": ("files are announced", _answer(["secret1"]), Reason.DESTINATION_UNAVAILABLE, "as a hub does"),
    "no modes": ("files are announced", _answer({"files": []}), Reason.DESTINATION_UNAVAILABLE, "as a hub does"),
    "other modes": (
        "files are announced", _answer({"files": [{"path": "config.json", "uploadMode": "secret1"}]}),
        Reason.DESTINATION_UNAVAILABLE, "as a hub does",
    ),
    "gone": ("files are announced", Fault(status=404), Reason.DESTINATION_REFUSED, "may not write it"),
    "moved": (
        "files are announced", Fault(status=307, headers=(("Location", "https://elsewhere.invalid/secret1"),)),
        Reason.DESTINATION_REFUSED, "was refused with HTTP 307",
    ),
    "batch of text": ("upload is begun", _answer("secret1"), Reason.DESTINATION_UNAVAILABLE, "as a hub does"),
    "no batch": ("upload is begun", _answer({"objects": []}), Reason.DESTINATION_UNAVAILABLE, "speaks of other files"),
    "another file": (
        "upload is begun", _offer({"href": "https://HOST/a"}, oid="0" * 64), Reason.DESTINATION_UNAVAILABLE,
        "speaks of other files than it was asked about",
    ),
    "too large": (
        "upload is begun",
        lambda digest: _answer({"objects": [{"oid": digest, "error": {"code": 413, "message": "secret1"}}]}),
        Reason.DESTINATION_REFUSED, "does not take model-00001-of-00002.safetensors of 307,200 bytes (code 413)",
    ),
    "an error without code": (
        "upload is begun", lambda digest: _answer({"objects": [{"oid": digest, "error": {}}]}),
        Reason.DESTINATION_REFUSED, "of 307,200 bytes: look at the size that it allows",
    ),
    "storage without TLS": (
        "upload is begun", _offer({"href": "http://HOST/secret1"}), Reason.DESTINATION_REFUSED, "sent without TLS",
    ),
    "storage nowhere": (
        "upload is begun", _offer({"href": "secret1"}), Reason.DESTINATION_UNAVAILABLE, "no address to send files to",
    ),
    "storage at what cannot be": (
        "upload is begun", _offer({"href": "https://HOST/secret1" + "a" * 66_000}), Reason.DESTINATION_UNAVAILABLE,
        "no address to send files to",
    ),
    "parts of nothing": (
        "upload is begun", _offer({"href": "https://HOST/a", "header": {"chunk_size": "0", **PARTS}}),
        Reason.DESTINATION_UNAVAILABLE, "addresses for other parts than those of 307,200 bytes",
    ),
    "parts of text": (
        "upload is begun", _offer({"href": "https://HOST/a", "header": {"chunk_size": "many", **PARTS}}),
        Reason.DESTINATION_UNAVAILABLE, "addresses for other parts than those",
    ),
    "too few parts": (
        "upload is begun", _offer({"href": "https://HOST/a", "header": {"chunk_size": 100_000, **PARTS}}),
        Reason.DESTINATION_UNAVAILABLE, "addresses for other parts than those",
    ),
    "too many parts": (
        "upload is begun", _offer({"href": "https://HOST/a", "header": {"chunk_size": 10, **PARTS}}),
        Reason.DESTINATION_UNAVAILABLE, "addresses for other parts than those",
    ),
    "parts without ETag": ("part", Fault(status=200), Reason.DESTINATION_UNAVAILABLE, "tells no ETag of a part"),
    "verified elsewhere": (
        "upload is begun", _offer({"href": "https://HOST/a"}, {"href": "https://elsewhere.invalid/"}),
        Reason.DESTINATION_UNAVAILABLE, "as a hub does",
    ),
    "not taken": ("commit", Fault(status=400, body=b"secret1"), Reason.DESTINATION_REFUSED, "spec.publish.license"),
    "committed as text": ("commit", _answer({"commitOid": "secret1"}), Reason.DESTINATION_UNAVAILABLE, "as a hub does"),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_hubs_that_are_none(hosted: Hosted, content: Content, case: str) -> None:
    kind, answer, reason, told = ODD[case]
    digest, host = content.items[0].sha256, hosted.relay.base.partition("://")[2]
    if case == "always missing":
        hosted.hub.repositories[REPOSITORY] = Stored()
        hosted.stored.commit("main", {})

    def choose(request: Relayed) -> Fault | None:
        if case == "verified elsewhere" and request.path == "/a":
            return Fault(status=200)
        if not KINDS[kind](request):
            return None
        fault = answer(digest) if callable(answer) else answer
        return dataclasses.replace(fault, body=fault.body.replace(b"HOST", host.encode()))

    hosted.relay.choose = choose
    error = hosted.fail(content)
    assert error.reason == reason
    assert told in error.message
    assert "secret1" not in "".join([error.message, *texts_behind(error)])
    assert not hosted.has(content)


def test_headers_that_the_hub_names_go_along(hosted: Hosted, content: Content) -> None:
    """Those that are headers."""
    seen: list[Relayed] = []
    header = {"x-amz-acl": "private", "x: y": "z", "x-lines": "a\r\nb: c"}

    def choose(request: Relayed) -> Fault | None:
        if request.path == "/a":
            seen.append(request)
            return Fault(status=201)
        if KINDS["upload is begun"](request) and not seen:
            host = hosted.relay.base.partition("://")[2]
            return _offer({"href": f"https://{host}/a", "header": header})(content.items[0].sha256)
        return None

    hosted.relay.choose = choose
    hosted.fail(content)
    assert {"x-amz-acl", "x", "x-lines"} & set(seen[0].headers) == {"x-amz-acl"}


def test_ignored_files_are_told(hosted: Hosted, content: Content) -> None:
    hosted.hub.ignored = {"tokenizer.json"}
    error = hosted.fail(content)
    assert error.reason == Reason.DESTINATION_REFUSED
    assert "the repository's .gitignore leaves tokenizer.json out" in error.message


def test_weights_do_not_go_into_git_itself(hosted: Hosted, tmp_path: Path) -> None:
    content = make_content(tmp_path / "large", {"model.gguf": bytes(65 << 20)})
    error = hosted.fail(content)
    assert error.reason == Reason.DESTINATION_REFUSED
    assert "have its .gitattributes name *.safetensors as filter=lfs" in error.message


def test_empty_file(hosted: Hosted, tmp_path: Path) -> None:
    """Storage takes none."""
    content = make_content(tmp_path / "empty", {"empty.safetensors": b"", "config.json": b"{}"})
    hosted.relay.choose = lambda request: None
    error = hosted.fail(content)
    assert "HTTP 400" in error.message
    assert not hosted.bodies("/storage/")


def test_repository_with_too_many_files(hosted: Hosted, content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_client, "MAX_ENTRIES", 3)
    hosted.hub.repositories[REPOSITORY] = Stored()
    hosted.stored.commit("main", {f"{number}.txt": b"" for number in range(4)})
    error = hosted.fail(content)
    assert error.reason == Reason.DESTINATION_REFUSED
    assert "has more than 3 files and folders" in error.message


def test_an_attempt_with_patience_waits_between_tries(hosted: Hosted, content: Content) -> None:
    """What the hub asks to wait is waited, within reason."""
    asked: list[Relayed] = []

    def choose(request: Relayed) -> Fault | None:
        if KINDS["files are announced"](request) and len(asked) < 1:
            asked.append(request)
            return Fault(status=429, headers=(("Retry-After", "1000"),))
        return None

    hosted.relay.choose = choose
    hosted.publish(content, patience=dataclasses.replace(QUICK, most_asked_s=0.01))
    assert hosted.has(content)
