"""Files of the hub by Xet's own client, from a real local store: where it is switched on, checked as every file."""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub.utils import _xet

from llava_api.constants import ENV_DISABLE_XET
from llava_api.failures import Reason
from llava_trainer.sources import transfer
from tests.trainer.servers.authority import Authority
from tests.trainer.servers.files import Fault
from tests.trainer.servers.hub import HubRepository, HubServer
from tests.trainer.servers.xet import BLOCK_BYTES, TOKEN, XetServer
from tests.trainer.test_sources import COMMIT, World, assert_same

LARGE = random.Random(0).randbytes(20 << 20)
MODEL = {"config.json": b"{}", "model.safetensors": LARGE, "tokenizer.json": b"a tokenizer of more than ten bytes"}
KEPT = ["model.safetensors", "tokenizer.json"]
HUB_TOKEN = "hf_secret"


@pytest.fixture
def xet(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[XetServer]:
    # Its client knows nothing of the run's authorities; this is its own way to be told of some.
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_file))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    # Kept by address for the whole process; the next test's hub may get the port of the last one's.
    _xet.XET_CONNECTION_INFO_CACHE.clear()
    with XetServer().run(authority) as server:
        yield server


@pytest.fixture
def hub(authority: Authority, xet: XetServer, world: World) -> Iterator[HubServer]:
    with HubServer().run(authority) as server:
        server.xet = xet
        server.repositories["models", "me/it"] = HubRepository(
            commits={COMMIT: MODEL}, revisions={"main": COMMIT}, token=HUB_TOKEN
        )
        world.download["hub_endpoint"] = server.base
        world.model["source"] = "hf://me/it"
        world.secret("model", token=HUB_TOKEN)
        world.environ[ENV_DISABLE_XET] = "0"
        yield server


@pytest.fixture
def world(tmp_path: Path, authority: Authority) -> World:
    return World(tmp_path, authority)


def plans_of(xet: XetServer) -> list[str | None]:
    """The ranges of files that were asked for."""
    return [request.range for request in xet.requests if request.path.startswith("/v1/")]


def test_files_come_by_xet_and_are_journalled_as_others_are(world: World, hub: HubServer, xet: XetServer) -> None:
    folder = world.fetch()["model"].path
    assert_same(folder, MODEL, sorted(MODEL))
    read = {request.path.split("/")[2] for request in xet.requests if request.path.startswith("/blocks/")}
    assert read == {xet.keep(MODEL[name]) for name in KEPT}
    fetched = [request.path for request in hub.requests if "/resolve/" in request.path or "/cdn/" in request.path]
    assert fetched == [f"/me/it/resolve/{COMMIT}/config.json"], "what is no file of LFS comes as always"
    total = sum(map(len, MODEL.values()))
    assert world.recorder.steps[-1] == (total, total)
    xet.requests.clear()
    world.fetch()
    assert xet.requests == []


@pytest.mark.parametrize("said", ["1", "", None, "true"])
def test_it_is_off_unless_the_operator_says_so(world: World, hub: HubServer, xet: XetServer, said: str | None) -> None:
    world.environ.pop(ENV_DISABLE_XET)
    if said is not None:
        world.environ[ENV_DISABLE_XET] = said
    assert_same(world.fetch()["model"].path, MODEL, sorted(MODEL))
    assert xet.requests == []
    assert not [request for request in hub.requests if "xet" in request.path]


def test_its_server_gets_no_token_of_the_hub(world: World, hub: HubServer, xet: XetServer) -> None:
    world.fetch()
    sent = {request.authorization for request in xet.requests}
    assert sent == {f"Bearer {TOKEN}", None}
    assert HUB_TOKEN not in str(xet.requests)
    assert [r.authorization for r in hub.requests if "xet-read-token" in r.path] == [f"Bearer {HUB_TOKEN}"]
    assert xet.posts == [], "and nobody is told who reads what"


def test_what_broke_off_is_continued(world: World, hub: HubServer, xet: XetServer) -> None:
    block = f"/blocks/{xet.keep(LARGE)}/3"
    xet.faults[block] = [Fault(break_after=1000)]
    assert_same(world.fetch()["model"].path, MODEL, sorted(MODEL))
    whole = f"bytes=0-{len(LARGE) - 1}"
    [first, again] = [one for one in plans_of(xet) if one is not None and one != "bytes=0-33"]
    # Where the client tells of the failure before it has given out what came before, that comes once more.
    begin = int(again.removeprefix("bytes=").partition("-")[0])
    assert first == whole
    assert again == whole or (begin + 1) % BLOCK_BYTES == 0


def test_another_attempt_continues_what_the_first_left(
    world: World, hub: HubServer, xet: XetServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after the end of a pod: what is on the disk is not asked for again."""
    write = transfer._Transfer._write
    calls = []

    def stop(self: transfer._Transfer, chunks: Iterator[bytes], *args: object) -> None:
        def cut() -> Iterator[bytes]:
            left = 12 << 20
            for chunk in chunks:
                calls.append(len(chunk))
                yield chunk
                left -= len(chunk)
                if left < 0:
                    raise KeyboardInterrupt

        write(self, cut() if self._remote.name == "model.safetensors" else chunks, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(transfer._Transfer, "_write", stop)
    with pytest.raises(KeyboardInterrupt):
        world.fetch()
    monkeypatch.undo()
    monkeypatch.setenv("SSL_CERT_FILE", str(world.ca_file))
    monkeypatch.setenv("HF_HOME", str(world.root / "home"))
    xet.requests.clear()
    assert_same(world.fetch()["model"].path, MODEL, sorted(MODEL))
    [begin] = {one.partition("-")[0] for one in plans_of(xet) if one is not None and one != "bytes=0-33"}
    assert int(begin.removeprefix("bytes=")) >= sum(calls) - 1 >= 12 << 20


@pytest.mark.parametrize("status", [401, 403, 500, 503])
def test_a_file_that_ends_early_is_not_taken_for_whole(
    world: World, hub: HubServer, xet: XetServer, status: int
) -> None:
    """The client itself often says nothing, whatever went wrong."""
    plan = xet.keep(MODEL["tokenizer.json"])
    for version in ("v1", "v2"):
        xet.faults[f"/{version}/reconstructions/{plan}"] = [Fault(status=status)] * 20
    error = world.failure()
    assert error.reason is Reason.SOURCE_UNAVAILABLE
    assert f"spec.model.source: hf://me/it@{COMMIT}/tokenizer.json could not be fetched, 3 times" in error.message
    assert "in a row: Xet's client: " in error.message
    assert not (world.config.volume.download_dir("model") / "tokenizer.json").exists()


@pytest.mark.parametrize("status", [403, 503, None])
def test_signatures_of_its_addresses_are_not_shown(
    world: World, hub: HubServer, xet: XetServer, status: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    block = f"/blocks/{xet.keep(MODEL['tokenizer.json'])}/0"
    if status is None:
        xet.blocks_at = "https://127.0.0.1:1"
    xet.faults[block] = [Fault(status=status)] * 20
    error = world.failure()
    assert error.reason is Reason.SOURCE_UNAVAILABLE
    assert "3 times in a row: Xet's client: " in error.message
    assert "Signature" not in error.message + caplog.text


@pytest.mark.parametrize("name", KEPT)
def test_content_that_is_not_what_the_hub_listed(world: World, hub: HubServer, name: str) -> None:
    hub.repositories["models", "me/it"].lies_about.add(name)
    error = world.failure()
    assert error.reason is Reason.SOURCE_REFUSED
    assert f"hf://me/it@{COMMIT}/{name} is not what it should be, fetched twice: its sha256 is " in error.message


@pytest.mark.parametrize(
    ("endpoint", "told"),
    [
        ("http://127.0.0.1:1/hf_TOKEN", "http://127.0.0.1:1"),
        ("ftp://x", "a place that is not shown"),
        ("hf_TOKEN", "a place that is not shown"),
    ],
)
def test_a_store_without_tls_is_not_asked(
    world: World, hub: HubServer, xet: XetServer, endpoint: str, told: str
) -> None:
    xet.endpoint = endpoint
    error = world.failure()
    assert error.reason is Reason.SOURCE_REFUSED
    assert f"spec.model.source: hf://me/it: the hub keeps its files at {told}, which is no https" in error.message


@pytest.mark.parametrize("key", ["zz" * 32, "ab", ""])
def test_a_hash_that_is_none_leaves_the_file_to_https(
    world: World, hub: HubServer, xet: XetServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xet, "keep", lambda content: key)
    assert_same(world.fetch()["model"].path, MODEL, sorted(MODEL))
    assert xet.requests == []


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (200, "does not answer as a hub does (ValueError); look at spec.download.hubEndpoint"),
        (404, "the hub lists files that it keeps in Xet and does not tell where: have xet switched off"),
        (503, "3 times in a row: HTTP 503"),
    ],
)
def test_hub_that_tells_no_store(world: World, hub: HubServer, status: int, told: str) -> None:
    path = f"/api/models/me/it/xet-read-token/{COMMIT}"
    hub.faults[path] = [Fault(status=status)] * 20
    error = world.failure()
    assert error.reason is Reason.SOURCE_UNAVAILABLE
    assert error.message.startswith("spec.model.source: hf://me/it")
    assert told in error.message


def test_authorities_of_the_run_are_not_its_clients(
    world: World, hub: HubServer, xet: XetServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit that docs/security.md states."""
    monkeypatch.delenv("SSL_CERT_FILE")
    error = world.failure()
    assert error.reason is Reason.SOURCE_UNAVAILABLE
    assert "3 times in a row: Xet's client: " in error.message
    assert xet.requests == []


def test_image_without_its_client(world: World, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hf_xet", None)
    error = world.failure()
    assert error.reason is Reason.SOURCE_REFUSED
    assert error.message == (
        "spec.model.source: hf://me/it: this image has no hf_xet: have xet switched off in the installation"
    )
