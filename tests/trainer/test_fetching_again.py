"""A later attempt of prepare fetches what an earlier one could not, and nothing else, from real local servers.

The earlier attempt's folder was renamed into its own; an old pod may still hold files of it open.
"""

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from llava_api.constants import StageName
from llava_trainer.inputs import find_damaged_input
from llava_trainer.sources.fetched import state_of
from llava_trainer.sources.journal import Journal, find_damaged
from tests.trainer.pods import list_contents
from tests.trainer.servers.authority import Authority
from tests.trainer.servers.files import Fault, FileServer
from tests.trainer.test_sources import (
    COMMIT,
    DATASET,
    FETCHED,
    MODEL,
    NEEDED,
    NEWER,
    HubRepository,
    HubServer,
    World,
    make_zip,
    names_in,
)

BIG = random.Random(1).randbytes(9 << 20)
HALF = 5 << 20


class Attempts(World):
    """A run whose prepare is tried again and again."""

    @property
    def own(self) -> Path:
        """Folder of the attempt."""
        return self.config.volume.attempt_dir(StageName.PREPARE, self.attempt)

    def begin_next(self) -> None:
        self.attempt += 1
        assert self.own.is_dir()

    def earlier(self, role: str) -> Path:
        """What the attempt before has of a role."""
        return self.own / "before" / f"prepare-{self.attempt - 1}" / "inputs" / "downloads" / role


@pytest.fixture
def world(tmp_path: Path, authority: Authority) -> Attempts:
    return Attempts(tmp_path, authority)


@pytest.fixture
def web(authority: Authority) -> Iterator[FileServer]:
    with FileServer().run(authority) as server:
        for name, content in (MODEL | {"model.safetensors": BIG}).items():
            server.add(f"/model/{name}", content)
        for name, content in DATASET.items():
            server.add(f"/set/{name}", content)
        yield server


def fetched_of(server: FileServer) -> list[str]:
    """Paths whose content was sent."""
    return sorted({request.path for request in server.requests if request.path in server.files})


def test_nothing_that_was_whole_is_fetched_again(world: Attempts, web: FileServer):
    world.model["source"] = f"{web.base}/model/"
    world.dataset["source"] = f"{web.base}/set/"
    web.faults["/set/validation.json"] = [Fault(status=403)]
    world.failure()
    # All that it could: whatever it had begun before it was told.
    there = {f"/model/{name}" for name in names_in(world.config.volume.download_dir("model"))}
    there |= {f"/set/{name}" for name in names_in(world.config.volume.download_dir("dataset"))}
    assert {f"/model/{name}" for name in NEEDED} <= there
    world.begin_next()
    web.requests.clear()
    found = world.fetch()
    assert not set(fetched_of(web)) & there
    assert "/set/validation.json" in fetched_of(web)
    assert names_in(found["dataset"].path) == FETCHED
    assert found["model"].path == world.config.volume.download_dir("model")
    assert {name: (found["model"].path / name).read_bytes() for name in NEEDED} == {
        name: (MODEL | {"model.safetensors": BIG})[name] for name in NEEDED
    }
    # And the attempt after that, of which two came before, fetches nothing at all.
    world.begin_next()
    web.requests.clear()
    again = world.fetch()
    assert fetched_of(web) == []
    assert names_in(again["dataset"].path) == FETCHED
    assert find_damaged_input(world.own) is None


def test_a_file_that_came_in_half_is_continued_in_a_copy(world: Attempts, web: FileServer):
    """Whoever has the old one open may write on: into what the new attempt does not read any more."""
    world.model["source"] = f"{web.base}/model/"
    web.faults["/model/model.safetensors"] = [Fault(break_after=HALF)] + [Fault(status=403)] * 9
    world.failure()
    with Journal(world.config.volume.download_dir("model")) as journal:
        old = journal.partial_of("model.safetensors")
    with old.open("r+b") as held_open:
        world.begin_next()
        web.faults.clear()
        web.requests.clear()
        before = list_contents(state_of(world.earlier("model")))
        held_open.seek(1000)
        found = world.fetch()["model"].path / "model.safetensors"
        (asked,) = web.asked("/model/model.safetensors")
        held_open.write(b"of an old pod" * 1000)
        held_open.flush()
    begin_at = int(asked.removeprefix("bytes=").removesuffix("-"))
    assert HALF * 0.8 < begin_at < HALF
    assert found.read_bytes() == BIG
    # Nothing is written to what the old pod may have open.
    after = list_contents(state_of(world.earlier("model")))
    assert {name for name in before if before[name] != after[name]} == {f"partial/{old.name}"}


def test_a_file_that_is_damaged_by_now_is_fetched_again(world: Attempts, web: FileServer):
    world.dataset["source"] = f"{web.base}/set/"
    world.fetch()
    damaged = world.config.volume.download_dir("dataset") / "images" / "a.jpg"
    content = bytearray(damaged.read_bytes())
    content[0] ^= 1
    damaged.write_bytes(content)
    assert find_damaged(damaged.parents[1]) == "images/a.jpg"
    assert find_damaged_input(world.own) == f"{damaged} is not what was fetched"
    world.begin_next()
    web.requests.clear()
    found = world.fetch()["dataset"].path
    assert fetched_of(web) == ["/set/images/a.jpg"]
    assert (found / "images" / "a.jpg").read_bytes() == DATASET["images/a.jpg"]


def test_what_was_unpacked_is_not_fetched_again(world: Attempts, web: FileServer):
    web.add("/set.zip", make_zip(DATASET))
    world.dataset["source"] = f"{web.base}/set.zip"
    world.fetch()
    world.begin_next()
    web.requests.clear()
    found = world.fetch()["dataset"].path
    assert web.requests == []
    assert found == world.config.volume.download_dir("dataset")
    assert names_in(found) == sorted(DATASET)
    assert find_damaged_input(world.own) is None
    world.begin_next()
    assert world.fetch()["dataset"].path == world.config.volume.download_dir("dataset")
    assert web.requests == []
    found = world.config.volume.download_dir("dataset")
    found.rename(found.with_name("elsewhere"))
    assert find_damaged_input(world.own) == f"{found} is missing"


def test_an_archive_that_was_fetched_and_not_unpacked_is_not_fetched_again(
    world: Attempts, web: FileServer, monkeypatch: pytest.MonkeyPatch
):
    content = web.add("/set.zip", make_zip(DATASET))
    world.dataset["source"] = f"{web.base}/set.zip#sha256={hashlib.sha256(content).hexdigest()}"

    def refuse(*_: object, **__: object) -> None:
        raise OSError("killed in between")

    with monkeypatch.context() as patched:
        patched.setattr("llava_trainer.sources.archive.unpack", refuse)
        with pytest.raises(OSError, match="killed in between"):
            world.fetch()
    world.begin_next()
    web.requests.clear()
    assert names_in(world.fetch()["dataset"].path) == sorted(DATASET)
    assert web.requests == []


def test_the_commit_stays_that_of_the_first_attempt(world: Attempts, authority: Authority):
    with HubServer().run(authority) as hub:
        hub.repositories["models", "me/tiny"] = HubRepository(
            commits={COMMIT: MODEL, NEWER: MODEL}, revisions={"main": COMMIT}
        )
        world.download["hub_endpoint"] = hub.base
        world.model["source"] = "hf://me/tiny"
        world.fetch()
        hub.repositories["models", "me/tiny"].revisions["main"] = NEWER
        world.begin_next()
        hub.requests.clear()
        assert world.fetch()["model"].origin == f"hf://me/tiny@{COMMIT}"
        assert not [request.path for request in hub.requests if "/resolve/" in request.path]
