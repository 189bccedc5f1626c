"""Runs one after another on a claim that was there before: each in its folder, from what the others have fetched and
trained where it is the same, and nothing of theirs changes.

Real processes of the stages; files are fetched from a real local server.
"""

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llava_api.constants import StageName
from llava_api.run_config import RunConfig
from llava_api.volume import RunVolume, run_folder
from llava_trainer.attempts import other_runs
from llava_trainer.attempts.other_runs import link_file, link_folder, list_attempts_of_others, others_of
from llava_trainer.data.samples import write_samples
from llava_trainer.files import make_folder
from llava_trainer.sources.journal import Fetched, Journal
from llava_trainer.training.curve import read_curve
from llava_trainer.training.retention import list_checkpoints, step_of
from tests.ports import free_port
from tests.trainer.attempts import begin
from tests.trainer.pods import Pod, list_contents
from tests.trainer.servers.authority import Authority
from tests.trainer.servers.hub import HubRepository, HubServer
from tests.trainer.test_sources import COMMIT, MODEL, NEEDED, NEWER, World, assert_same
from tests.trainer.trainings import configure, make_dataset

PREPARE, TRAIN = StageName.PREPARE, StageName.TRAIN
Make = Callable[..., RunConfig]


@pytest.fixture
def make(tmp_path: Path, toy_model_dir: Path) -> Make:
    """Trainings of runs on one claim, as the operator describes them; the first has made the claim itself."""
    samples = make_dataset(tmp_path / "dataset")[:16]

    def make(run: str, **training: Any) -> RunConfig:
        settings = {"epochs": 2, "checkpoint": {"everySteps": 1, "keep": 2}, **training}
        config = configure(
            tmp_path, toy_model_dir, attempt=2, training=settings, workers={"rendezvousPort": free_port()}
        )
        root = config.volume_root if run == "first" else config.volume_root / run_folder(run)
        identity = config.run.model_copy(update={"uid": run, "attempt": 1})
        config = config.model_copy(update={"volume_root": root, "run": identity})
        make_parent(config)
        write_samples(config.volume.train_file, samples)
        return config

    return make


def make_parent(config: RunConfig) -> None:
    """What prepare has made before."""
    config.volume.result_dir(PREPARE).mkdir(parents=True, exist_ok=True)


def end_well(config: RunConfig) -> str:
    """Run a stage to its end, at its first attempt; what it has logged."""
    with Pod(config, config.run.uid) as pod:
        assert pod.wait() == 0, pod.output
        assert pod.result.attempt == 1
        return pod.output


def test_a_later_run_goes_on_from_the_same_training_and_leaves_every_other_alone(make: Make):
    first, same, other = make("first"), make("same"), make("other", seed=7)
    end_well(first)
    made = list_contents(first.volume.attempts_dir)
    steps = [step_of(folder) for folder in list_checkpoints(first.volume.checkpoints_dir(TRAIN, 1))]
    curve = read_curve(first.volume.history_file(TRAIN, 1))

    log = end_well(same)
    taken_up = first.volume.checkpoints_dir(TRAIN, 1) / f"step-{steps[-1]:08d}"
    assert f"{taken_up}, which another run has made of the same training, is taken up" in log
    assert f"after step {steps[-1]} of {curve[-1].step}" in log
    # The curve goes on where that one was, and comes to the same.
    again = read_curve(same.volume.history_file(TRAIN, 1))
    assert [entry.step for entry in again] == [one.step for one in curve]
    assert again[-1].loss == pytest.approx(curve[-1].loss, rel=1e-5)
    assert (same.volume_root / "adapter").resolve() == same.volume.attempt_dir(TRAIN, 1) / "adapter"

    log = end_well(other)
    assert "taken up" not in log
    assert "resuming from" not in log
    assert list_contents(first.volume.attempts_dir) == made, "nothing of another run changes"


class Guest(World):
    """A run on a claim that others use."""

    def __init__(self, root: Path, authority: Authority, uid: str) -> None:
        super().__init__(root, authority)
        self.uid = uid

    @property
    def config(self) -> RunConfig:
        config = super().config.model_copy(update={"volume_root": self.root / "volume" / run_folder(self.uid)})
        return begin(config)


@pytest.fixture
def hub(authority: Authority) -> Iterator[HubServer]:
    with HubServer().run(authority) as server:
        files = {COMMIT: MODEL, NEWER: {**MODEL, "tokenizer.json": b"a newer tokenizer"}}
        server.repositories["models", "llava-hf/tiny"] = HubRepository(commits=files, revisions={"main": COMMIT})
        yield server


def make_guest(tmp_path: Path, authority: Authority, hub: HubServer, uid: str) -> Guest:
    guest = Guest(tmp_path, authority, uid)
    guest.download["hub_endpoint"] = hub.base
    guest.model["source"] = "hf://llava-hf/tiny"
    return guest


def sent_files(hub: HubServer) -> list[str]:
    """Files whose content was asked for since the last time."""
    asked = [request.path for request in hub.requests if "/resolve/" in request.path]
    hub.requests.clear()
    return sorted(path.rpartition("/")[2] for path in asked)


def test_files_that_another_run_has_fetched_are_not_fetched_again(tmp_path: Path, authority: Authority, hub: HubServer):
    first, second, third = (make_guest(tmp_path, authority, hub, uid) for uid in ("first", "second", "third"))
    assert_same(first.fetch()["model"].path, MODEL, NEEDED)
    assert sent_files(hub) == NEEDED
    made = list_contents(first.config.volume_root)
    found = second.fetch()["model"].path
    assert_same(found, MODEL, NEEDED)
    assert found.is_relative_to(second.config.volume_root)
    assert sent_files(hub) == []
    assert (found / "model.safetensors").stat().st_nlink == 2
    # What has changed since is fetched, and so is what is not whole there.
    hub.repositories["models", "llava-hf/tiny"].revisions["main"] = NEWER
    for guest in (first, second):
        weights = guest.config.volume.download_dir("model") / "model.safetensors"
        weights.unlink()
        weights.write_bytes(MODEL["model.safetensors"][::-1])
    made |= {name: sha256 for name, sha256 in list_contents(first.config.volume_root).items() if "safetensors" in name}
    newer = {**MODEL, "tokenizer.json": b"a newer tokenizer"}
    assert_same(third.fetch()["model"].path, newer, NEEDED)
    assert sent_files(hub) == NEEDED, "each is at another commit"
    assert list_contents(first.config.volume_root) == made, "nothing of another run changes"


def test_what_another_server_calls_the_same_is_not_taken_up(tmp_path: Path, authority: Authority, hub: HubServer):
    """Addresses of the hub do not say which hub it was; what ours says of the content does."""
    evil = {**MODEL, "model.safetensors": MODEL["model.safetensors"][::-1]}
    with HubServer().run(authority) as other:
        other.repositories["models", "llava-hf/tiny"] = HubRepository(
            commits={COMMIT: evil}, revisions={"main": COMMIT}
        )
        assert_same(make_guest(tmp_path, authority, other, "first").fetch()["model"].path, evil, NEEDED)
    assert_same(make_guest(tmp_path, authority, hub, "second").fetch()["model"].path, MODEL, NEEDED)
    assert sent_files(hub) == ["model.safetensors"]


def test_without_a_version_nobody_can_tell_what_is_old(tmp_path: Path, authority: Authority):
    folders = []
    for uid in ("first", "second"):
        config = Guest(tmp_path, authority, uid).config
        folders.append(config.volume.download_dir("model"))
        make_folder(folders[-1])
    with Journal(folders[0]) as journal:
        (folders[0] / "a").write_bytes(b"content")
        sha256 = hashlib.sha256(b"content").hexdigest()
        journal.add(Fetched(name="a", address="https://somewhere/a", size=7, sha256=sha256))
    with Journal(folders[1]) as journal:
        assert journal.find_whole("a", "https://somewhere/a") is None


def test_where_others_are_looked_for(tmp_path: Path) -> None:
    claim = tmp_path / "claim"
    names = ("attempts/train-1", "attempts/prepare-3", "runs/a/attempts/train-2/before/train-1", "runs/b/attempts/x",
             "runs/own/attempts/train-1", "runs/file")  # fmt: skip
    for name in names[:-1]:
        (claim / name).mkdir(parents=True)
    (claim / names[-1]).touch()
    for age, folder in enumerate(("runs/a/attempts", "attempts")):
        os.utime(claim / folder, (1000 - age, 1000 - age))
    own = RunVolume(root=claim / "runs" / "own")
    found = list_attempts_of_others(own, TRAIN)
    assert [folder.relative_to(claim).as_posix() for folder in found] == [
        "runs/a/attempts/train-2", "runs/a/attempts/train-2/before/train-1", "attempts/train-1",
    ]  # fmt: skip
    assert others_of(own.attempt_dir(PREPARE, 1) / "inputs") == [claim / "attempts" / "prepare-3" / "inputs"]
    assert others_of(claim / "elsewhere") == []
    # A run that has made its claim itself is alone there.
    assert list_attempts_of_others(RunVolume(root=claim), TRAIN) == []


@pytest.mark.parametrize("has_links", [True, False])
def test_a_volume_without_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool) -> None:
    (tmp_path / "step" / "adapter").mkdir(parents=True)
    (tmp_path / "step" / "state.json").write_text("{}")
    (tmp_path / "step" / "adapter" / "weights").write_text("w")

    def refuse(*paths: object) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    if not has_links:
        monkeypatch.setattr(other_runs.os, "link", refuse)
    link_folder(tmp_path / "step", tmp_path / "taken")
    assert list_contents(tmp_path / "taken") == list_contents(tmp_path / "step")
    assert (tmp_path / "taken" / "state.json").stat().st_nlink == (2 if has_links else 1)


def test_links_of_others_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "state.json").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="is a link"):
        link_folder(tmp_path / "step", tmp_path / "taken")
    assert not (tmp_path / "taken").exists()
    with pytest.raises(FileExistsError):
        link_file(tmp_path / "secret", tmp_path / "secret")
