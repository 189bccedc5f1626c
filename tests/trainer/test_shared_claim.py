"""Runs one after another on a claim that was there before: each in its folder, from what the others have fetched and
trained where it is the same, and nothing of theirs changes.

Real processes of the stages; files are fetched from a real local server.
"""

import errno
import hashlib
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llava_api.constants import StageName
from llava_api.failures import Reason
from llava_api.run_config import RunConfig
from llava_api.volume import RunVolume, run_folder
from llava_trainer.attempts import foreign, other_runs
from llava_trainer.attempts.other_runs import list_attempts_of_others, others_of
from llava_trainer.data.samples import write_samples
from llava_trainer.files import SPARE_BYTES, make_folder
from llava_trainer.sources import other_journals
from llava_trainer.sources.fetched import JOURNAL, Fetched, state_of
from llava_trainer.sources.journal import Journal
from llava_trainer.sources.other_journals import OtherJournals
from llava_trainer.sources.remote import Digest, RemoteFile
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


def lead_elsewhere(downloads: Path) -> None:
    """All of it is there, by a link."""
    elsewhere = downloads.parents[5] / "elsewhere"
    downloads.rename(elsewhere)
    downloads.symlink_to(elsewhere)


def lead_the_journal_elsewhere(downloads: Path) -> None:
    journal = state_of(downloads / "model") / JOURNAL
    elsewhere = journal.rename(downloads.parents[5] / "elsewhere")
    journal.symlink_to(elsewhere)


def make_the_journal_a_pipe(downloads: Path) -> None:
    journal = state_of(downloads / "model") / JOURNAL
    journal.unlink()
    os.mkfifo(journal)


def make_the_journal_a_folder(downloads: Path) -> None:
    journal = state_of(downloads / "model") / JOURNAL
    journal.unlink()
    journal.mkdir()


def make_the_run_a_pipe(downloads: Path) -> None:
    run = downloads.parents[3]
    shutil.rmtree(run)
    os.mkfifo(run)


def lead_files_elsewhere(downloads: Path) -> None:
    for name in NEEDED:
        elsewhere = (downloads / "model" / name).rename(downloads.parents[5] / f"elsewhere-{name}")
        (downloads / "model" / name).symlink_to(elsewhere)


def make_files_pipes(downloads: Path) -> None:
    for name in NEEDED:
        (downloads / "model" / name).unlink()
        os.mkfifo(downloads / "model" / name)


def make_files_other_than_they_were(downloads: Path) -> None:
    for name in NEEDED:
        content = (downloads / "model" / name).read_bytes()
        (downloads / "model" / name).unlink()
        (downloads / "model" / name).write_bytes(content[::-1])


def tell_other_digests(downloads: Path) -> None:
    """The files are others, and the journal says so: the hub does not."""
    journal = Journal(downloads / "model")
    with journal:
        for line in (state_of(downloads / "model") / JOURNAL).read_bytes().splitlines():
            known = Fetched.model_validate_json(line)
            file = downloads / "model" / known.name
            content = file.read_bytes()[::-1]
            file.unlink()
            file.write_bytes(content)
            journal.add(known.model_copy(update={"sha256": hashlib.sha256(content).hexdigest()}))


@pytest.mark.parametrize(
    "harm",
    [
        lead_elsewhere, lead_the_journal_elsewhere, make_the_journal_a_pipe, make_the_journal_a_folder,
        make_the_run_a_pipe, lead_files_elsewhere, make_files_pipes, make_files_other_than_they_were,
        tell_other_digests,
    ],
)  # fmt: skip
@pytest.mark.timeout(60)
def test_whatever_another_run_has_put_there_is_not_read_and_not_waited_for(
    tmp_path: Path, authority: Authority, hub: HubServer, caplog: pytest.LogCaptureFixture,
    harm: Callable[[Path], None],
):  # fmt: skip
    first, second = (make_guest(tmp_path, authority, hub, uid) for uid in ("first", "second"))
    first.fetch()
    sent_files(hub)
    harm(first.config.volume.download_dir("model").parent)
    with caplog.at_level(logging.WARNING, logger="llava_trainer"):
        assert_same(second.fetch()["model"].path, MODEL, NEEDED)
    assert sent_files(hub) == NEEDED
    assert any(str(tmp_path / "volume") in record.getMessage() for record in caplog.records)
    partial = state_of(second.config.volume.download_dir("model")) / "partial"
    assert list(partial.iterdir()) == [], "nothing is left of what was tried"


_on_open: list[Callable[[str], None]] = []


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(args[0], str) and _on_open:
        _on_open[0](args[0])


@cache
def _hook() -> None:
    """For good: Python takes no hook away."""
    sys.addaudithook(_watch)


@contextmanager
def before_each_open(action: Callable[[str], None]) -> Iterator[None]:
    """Call ``action`` with the path of each file that is about to be opened; those it opens itself are not told."""
    _hook()

    def act(path: str) -> None:
        _on_open.clear()
        action(path)
        _on_open.append(act)

    _on_open.append(act)
    try:
        yield
    finally:
        _on_open.clear()


@pytest.mark.parametrize("name", [JOURNAL, "model.safetensors"])
def test_another_run_may_go_away_at_any_moment(tmp_path: Path, authority: Authority, hub: HubServer, name: str):
    first, second = (make_guest(tmp_path, authority, hub, uid) for uid in ("first", "second"))
    first.fetch()
    sent_files(hub)
    other, own = first.config.volume_root, str(second.config.volume_root)

    def go_away(path: str) -> None:
        if Path(path).name == name and not path.startswith(own):
            shutil.rmtree(other, ignore_errors=True)

    with before_each_open(go_away):
        assert_same(second.fetch()["model"].path, MODEL, NEEDED)
    assert not other.exists()
    assert sent_files(hub) == NEEDED if name == JOURNAL else "model.safetensors" in sent_files(hub)


def leave_free(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    """Bytes that may be written to any volume."""
    usage = SimpleNamespace(total=1 << 40, free=SPARE_BYTES + num_bytes)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def refuse_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: object, **how: object) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(foreign.os, "link", refuse)


def test_what_is_linked_needs_no_space(
    tmp_path: Path, authority: Authority, hub: HubServer, monkeypatch: pytest.MonkeyPatch
):
    first, second, third = (make_guest(tmp_path, authority, hub, uid) for uid in ("first", "second", "third"))
    first.fetch()
    leave_free(monkeypatch, 100)
    assert_same(second.fetch()["model"].path, MODEL, NEEDED)
    refuse_links(monkeypatch)
    assert third.failure().reason is Reason.STORAGE_FULL, "copies do"


def test_without_a_version_nobody_can_tell_what_is_old(tmp_path: Path, authority: Authority):
    remote = RemoteFile(name="a", address="https://somewhere/a", url=str, size=7, version="1")
    folders = []
    for uid in ("first", "second"):
        config = Guest(tmp_path, authority, uid).config
        folders.append(config.volume.download_dir("model"))
        make_folder(folders[-1])
    with Journal(folders[0]) as journal:
        (folders[0] / "a").write_bytes(b"content")
        sha256 = hashlib.sha256(b"content").hexdigest()
        known = Fetched(name="a", address=remote.address, size=7, sha256=sha256, version="1")
        journal.add(known)
    with Journal(folders[1]) as journal:
        assert journal.find_whole(replace(remote, version="")) is None
        assert journal.find_whole(replace(remote, size=None)) is None, "nor how much to read"
        assert journal.find_whole(replace(remote, version="2")) is None
        assert journal.find_whole(replace(remote, digest=Digest(algorithm="md5", hex="0"))) is None
        assert journal.find_whole(replace(remote, digest=Digest(algorithm="sha256", hex=sha256))) == known


class Journals:
    """A run with a journal, and another that reads it."""

    def __init__(self, tmp_path: Path, authority: Authority) -> None:
        first, self.second = (Guest(tmp_path, authority, uid).config.volume for uid in ("first", "second"))
        self.folder = first.download_dir("model")
        make_folder(state_of(self.folder))
        make_folder(self.folder)
        make_folder(state_of(self.second.download_dir("model")))

    def write(self, *names: str, before: bytes = b"") -> None:
        lines = [self._line(name) for name in names]
        (state_of(self.folder) / JOURNAL).write_bytes(before + b"".join(lines))

    def _line(self, name: str) -> bytes:
        return Fetched(name=name, address=name, size=1, sha256="0", version="1").model_dump_json().encode() + b"\n"

    def known(self, *names: str) -> list[str]:
        wanted = [RemoteFile(name=name, address=name, url=str, size=1, version="1") for name in names]
        with OtherJournals(self.second.download_dir("model")) as others:
            return [remote.name for remote in wanted if others.can_link(remote)]


@pytest.fixture
def journals(tmp_path: Path, authority: Authority) -> Journals:
    return Journals(tmp_path, authority)


def test_of_a_journal_so_much_is_read(journals: Journals, monkeypatch: pytest.MonkeyPatch):
    names = ("a", "b", "c")
    journals.write(*names)
    assert journals.known(*names) == ["a", "b", "c"]
    with monkeypatch.context() as patched:
        patched.setattr(other_journals, "_MOST_FILES", 2)
        assert journals.known(*names) == ["a", "b"]
    with monkeypatch.context() as patched:
        patched.setattr(other_journals, "_MOST_BYTES", 10)
        assert journals.known(*names) == ["a"]


def test_a_line_without_end_and_one_that_is_none_are_passed_over(journals: Journals):
    """The middle of a long line is not the beginning of another, whatever it looks like."""
    most = other_journals._MOST_LINE_BYTES
    journals.write("b", before=b"x" * most + journals._line("a") + b"[" * 5000 + b"\nnot JSON \xff\n")
    assert journals.known("a", "b") == ["b"]
    with (state_of(journals.folder) / JOURNAL).open("ab") as stream:
        stream.truncate(1 << 40)
    assert journals.known("b") == ["b"]


def test_a_journal_that_is_written_anew_meanwhile_is_not_believed(journals: Journals):
    journals.write("a")
    remote = RemoteFile(name="a", address="a", url=str, size=1, version="1")
    with OtherJournals(journals.second.download_dir("model")) as others:
        assert others.can_link(remote)
        for content in (journals._line("b"), b"", b"\xff"):
            (state_of(journals.folder) / JOURNAL).write_bytes(content)
            assert not others.can_link(remote)


def test_where_others_are_looked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    claim = tmp_path / "claim"
    names = ("attempts/train-1", "attempts/prepare-3", "runs/a/attempts/train-2/before/train-1", "runs/b/attempts/x",
             "runs/own/attempts/train-1", "runs/file", "runs/link")  # fmt: skip
    for name in names[:-2]:
        (claim / name).mkdir(parents=True)
    (claim / "runs" / "file").touch()
    (claim / "runs" / "link").symlink_to(claim / "runs" / "a")
    for age, folder in enumerate(("runs/a/attempts", "attempts")):
        os.utime(claim / folder, (1000 - age, 1000 - age))
    own = RunVolume(root=claim / "runs" / "own")
    found = list_attempts_of_others(own, TRAIN)
    assert [folder.path.relative_to(claim).as_posix() for folder in found] == [
        "runs/a/attempts/train-2", "runs/a/attempts/train-2/before/train-1", "attempts/train-1",
    ]  # fmt: skip
    others = others_of(own.attempt_dir(PREPARE, 1) / "inputs")
    assert [folder.path for folder in others] == [claim / "attempts" / "prepare-3" / "inputs"]
    assert others_of(claim / "elsewhere") == []
    # A run that has made its claim itself is alone there.
    assert list_attempts_of_others(RunVolume(root=claim), TRAIN) == []
    told = {record.getMessage().partition(",")[0] for record in caplog.records}
    assert told == {str(claim / "runs" / name / "attempts") for name in ("file", "link")}


def test_so_many_others_are_looked_at(tmp_path: Path) -> None:
    claim = tmp_path / "claim"
    for number in range(other_runs._MOST_RUNS + 3):
        attempts = claim / "runs" / f"run-{number}" / "attempts"
        attempts.mkdir(parents=True)
        if number % 2:
            # Without an attempt of the stage it takes no place.
            (attempts / "train-1").mkdir()
        os.utime(attempts, (1000 + number, 1000 + number))
    for number in range(1, other_runs._MOST_ATTEMPTS + 3):
        (claim / "attempts" / f"train-{number}").mkdir(parents=True)
    found = [
        one.path.relative_to(claim).as_posix()
        for one in list_attempts_of_others(RunVolume(root=claim / "runs" / "own"), TRAIN)
    ]
    own = [name for name in found if not name.startswith("runs")]
    assert own == [f"attempts/train-{number}" for number in range(other_runs._MOST_ATTEMPTS + 2, 2, -1)]
    assert [name for name in found if name not in own] == [
        f"runs/run-{number}/attempts/train-1" for number in range(other_runs._MOST_RUNS + 1, 0, -2)
    ]
    for number in range(0, other_runs._MOST_RUNS + 3, 2):
        (claim / "runs" / f"run-{number}" / "attempts" / "train-1").mkdir()
    runs = {one.path.parent for one in list_attempts_of_others(RunVolume(root=claim / "runs" / "own"), TRAIN)}
    assert len(runs) == other_runs._MOST_RUNS
