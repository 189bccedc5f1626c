"""Checkpoints of other runs on the claim: taken up where they are of the same training, and left where they are not.

Nothing that lies there ends this run's training, or is waited for.
"""

import dataclasses
import json
import logging
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llava_api.constants import StageName
from llava_api.volume import RunVolume, run_folder
from llava_trainer.attempts import foreign
from llava_trainer.files import SPARE_BYTES, begin_folder, publish_folder, sha256_file
from llava_trainer.training import taking_up
from llava_trainer.training.checkpoint import (
    MANIFEST_FILE,
    STATE_FILE,
    CheckpointState,
    checkpoint_dir,
    piece_key,
    rank_file,
    read_manifest,
    verify_files,
    write_manifest,
    write_rank,
)
from llava_trainer.training.curve import Curve, CurvePoint, read_curve
from llava_trainer.training.retention import list_checkpoints, step_of
from llava_trainer.training.taking_up import Expected, take_up_checkpoints
from tests.trainer.pods import list_contents

TRAIN = StageName.TRAIN
TRAINING = {"spec.training.seed": "1", "model": "sha256:a", "recipe": "b"}
SHAPES = {"weight": [3, 4], "bias": [3]}
TOTAL = 100
EXPECTED = Expected(TRAINING, SHAPES, TOTAL)


class Claim:
    """A claim with runs that have trained, and one that begins."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.own = self.volume("own")
        self.own.attempt_dir(TRAIN, 1).mkdir(parents=True)

    def volume(self, uid: str) -> RunVolume:
        return RunVolume(root=self.root / run_folder(uid))

    def train(self, uid: str, *steps: int, **changes: Any) -> Path:
        """Have a run leave checkpoints; returns the last."""
        volume = self.volume(uid)
        volume.attempt_dir(TRAIN, 1).mkdir(parents=True, exist_ok=True)
        with Curve(volume.history_file(TRAIN, 1)) as curve:
            for step in range(1, max(steps) + 3):
                curve.append(make_point(step))
        for step in steps:
            folder = checkpoint_dir(volume.checkpoints_dir(TRAIN, 1), step)
            write_checkpoint(folder, **{"step": step, **changes})
        return folder

    def take_up(self, expected: Expected = EXPECTED) -> list[int]:
        """Steps of the checkpoints that this run has then."""
        take_up_checkpoints(self.own, TRAIN, 1, expected)
        checkpoints = self.own.checkpoints_dir(TRAIN, 1)
        assert {path.name for path in checkpoints.glob("*")} == {path.name for path in list_checkpoints(checkpoints)}
        return [step_of(folder) for folder in list_checkpoints(checkpoints)]


def make_point(step: int) -> CurvePoint:
    return CurvePoint(
        step=step, epoch=0.1, loss=1.0, learning_rate=1e-3, grad_norm=0.5, tokens=10, samples_per_second=8.0,
        tokens_per_second=900.0,
    )  # fmt: skip


def write_checkpoint(folder: Path, **changes: Any) -> None:
    state = CheckpointState(total_steps=TOTAL, world_size=1, seed=1, parameters=SHAPES, training=TRAINING, step=1)
    state = dataclasses.replace(state, **changes)
    aside = begin_folder(folder)
    pieces = {piece_key("original", name, 0): torch.ones(math.prod(shape)) for name, shape in SHAPES.items()}
    digest = write_rank(aside, 0, pieces)
    (aside / "adapter").mkdir()
    (aside / "adapter" / "adapter_config.json").write_text("{}")
    write_manifest(aside, state, [digest])
    publish_folder(folder)


@pytest.fixture
def claim(tmp_path: Path) -> Claim:
    return Claim(tmp_path / "claim")


def test_the_newest_two_of_the_same_training_are_linked_with_the_curve(claim: Claim):
    claim.train("older", 30)
    claim.train("a", 10, 20)
    claim.train("b", 20, 25)
    before = list_contents(claim.root)
    assert claim.take_up() == [25, 30]
    taken = checkpoint_dir(claim.own.checkpoints_dir(TRAIN, 1), 30)
    verify_files(taken, read_manifest(taken))
    assert rank_file(taken, 0).stat().st_nlink == 2
    # What says what it is is no link: nobody else can make it something else.
    assert [(taken / name).stat().st_nlink for name in (MANIFEST_FILE, STATE_FILE)] == [1, 1]
    assert [point.step for point in read_curve(claim.own.history_file(TRAIN, 1))] == list(range(1, 31))
    assert {name: digest for name, digest in list_contents(claim.root).items() if name in before} == before


def test_the_owner_of_a_file_that_is_linked_may_be_another(claim: Claim, monkeypatch: pytest.MonkeyPatch):
    """Nobody else can change its mode, which is right already."""
    change = Path.chmod

    def refuse(path: Path, mode: int, **how: Any) -> None:
        if path.stat().st_nlink > 1 and path.is_file():
            raise PermissionError
        change(path, mode, **how)

    claim.train("other", 10)
    monkeypatch.setattr(Path, "chmod", refuse)
    assert claim.take_up() == [10]


@pytest.mark.parametrize(
    "changes",
    [
        {"training": TRAINING | {"recipe": "c"}},
        {"training": TRAINING | {"spec.training.seed": "2"}},
        {"training": {"spec.training.seed": "1", "model": "sha256:a"}},
        {"training": {}},
        {"parameters": {"weight": [3, 4]}},
        {"parameters": SHAPES | {"bias": [4]}},
        {"total_steps": 101},
        {"step": 11},
        {"world_size": 2},
        {"version": 99},
        {"version": 2, "training": {}},
    ],
    ids=str,
)
def test_of_another_training_it_is_left(claim: Claim, changes: dict[str, Any], caplog: pytest.LogCaptureFixture):
    claim.train("other", 10, **changes)
    with caplog.at_level(logging.INFO, logger="llava_trainer"):
        assert claim.take_up() == []
    assert "step-00000010 of another run is left" in caplog.text
    # One that is right is found behind it.
    claim.train("same", 5)
    assert claim.take_up() == [5]


def test_a_last_step_leaves_nothing_to_train(claim: Claim):
    claim.train("other", TOTAL)
    assert claim.take_up() == []


def restate(folder: Path, fields: object) -> None:
    """Another state, with the digest that the manifest should have of it."""
    (folder / STATE_FILE).write_bytes(fields if isinstance(fields, bytes) else json.dumps(fields).encode())
    files = json.loads((folder / MANIFEST_FILE).read_text()) | {STATE_FILE: sha256_file(folder / STATE_FILE)}
    (folder / MANIFEST_FILE).write_text(json.dumps(files))


def state_with(**changes: object) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        restate(folder, json.loads((folder / STATE_FILE).read_text()) | changes)

    return harm


def state_of_bytes(content: bytes) -> Callable[[Path], None]:
    return lambda folder: restate(folder, content)


def manifest_with(name: str, digest: object = "sha256:0") -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        files = json.loads((folder / MANIFEST_FILE).read_text())
        (folder / MANIFEST_FILE).write_text(json.dumps(files | {name: digest}))

    return harm


def manifest_of(content: bytes) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        (folder / MANIFEST_FILE).write_bytes(content)

    return harm


def lose_a_file(folder: Path) -> None:
    rank_file(folder, 0).unlink()


def lead_a_file_elsewhere(folder: Path) -> None:
    rank_file(folder, 0).rename(folder.parents[4] / "elsewhere")
    rank_file(folder, 0).symlink_to(folder.parents[4] / "elsewhere")


def lead_the_folder_elsewhere(folder: Path) -> None:
    folder.rename(folder.parents[4] / folder.name)
    folder.symlink_to(folder.parents[4] / folder.name)


def lead_all_of_them_elsewhere(folder: Path) -> None:
    checkpoints = folder.parent
    checkpoints.rename(checkpoints.parents[3] / "elsewhere")
    checkpoints.symlink_to(checkpoints.parents[3] / "elsewhere")


def make_pipe(name: str) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return harm


def make_endless(name: str) -> Callable[[Path], None]:
    """More than any disk holds; it takes none."""

    def harm(folder: Path) -> None:
        with (folder / name).open("ab") as stream:
            stream.truncate(1 << 42)

    return harm


HARM: dict[str, Callable[[Path], None]] = {
    "no file": lose_a_file,
    "link": lead_a_file_elsewhere,
    "folder a link": lead_the_folder_elsewhere,
    "parent a link": lead_all_of_them_elsewhere,
    "pipe": make_pipe("rank-00000.safetensors"),
    "pipe below": make_pipe("adapter/adapter_config.json"),
    "manifest a pipe": make_pipe(MANIFEST_FILE),
    "state a pipe": make_pipe(STATE_FILE),
    "endless file": make_endless("rank-00000.safetensors"),
    "endless manifest": make_endless(MANIFEST_FILE),
    "endless state": make_endless(STATE_FILE),
    "file elsewhere": manifest_with("../../elsewhere/file"),
    "file of the system": manifest_with("/etc/passwd"),
    "two names": manifest_with("./rank-00000.safetensors"),
    "itself": manifest_with(MANIFEST_FILE),
    "no name": manifest_with(""),
    "a name with a zero": manifest_with("a\0b"),
    "no text": manifest_with("\ud800"),
    "a file below a file": manifest_with("rank-00000.safetensors/inner"),
    "no digest": manifest_with(STATE_FILE, 7),
    "no manifest": manifest_of(b"[]"),
    "no JSON": manifest_of(b"{"),
    "deep manifest": manifest_of(b"[" * 200_000),
    "deep state": state_of_bytes(b"[" * 200_000),
    "no state": state_of_bytes(b"[]"),
    "state no text": state_of_bytes(b"\xff"),
    "step no number": state_with(step="10"),
    "step true": state_with(step=True),
    "ranks no number": state_with(world_size="1"),
    "ranks without end": state_with(world_size=10**15),
    "no shapes": state_with(parameters=7),
    "no training": state_with(training=["a"]),
    "of a newer image": state_with(invented=1),
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
@pytest.mark.timeout(60)
def test_whatever_another_run_has_put_there_is_left(
    claim: Claim, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
):
    harm(claim.train("other", 10))
    outside = {path for path in claim.root.rglob("*") if not path.is_relative_to(claim.own.root)}
    with caplog.at_level(logging.INFO, logger="llava_trainer"):
        assert claim.take_up() == []
    assert any("other" in record.getMessage() for record in caplog.records)
    assert {path for path in claim.root.rglob("*") if not path.is_relative_to(claim.own.root)} == outside
    assert not claim.own.history_file(TRAIN, 1).exists()
    claim.train("same", 5)
    assert claim.take_up() == [5]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("harm", ["pipe", "link", "endless", "text", "numbers"])
def test_a_curve_that_is_none_is_left(claim: Claim, harm: str, tmp_path: Path):
    claim.train("other", 10)
    file = claim.volume("other").history_file(TRAIN, 1)
    content = file.read_text()
    file.unlink()
    if harm == "pipe":
        os.mkfifo(file)
    elif harm == "link":
        (tmp_path / "elsewhere").write_text(content)
        file.symlink_to(tmp_path / "elsewhere")
    elif harm == "endless":
        with file.open("ab") as stream:
            stream.truncate(1 << 42)
    elif harm == "text":
        file.write_bytes(b"\xff[" + b"[" * 200_000)
    else:
        file.write_text(content.replace('"tokens": 10', '"tokens": -10'))
    assert claim.take_up() == [10]
    assert read_curve(claim.own.history_file(TRAIN, 1)) == []


def test_without_links_only_what_fits_is_copied(claim: Claim, monkeypatch: pytest.MonkeyPatch):
    def refuse(*paths: object, **how: object) -> None:
        raise PermissionError

    claim.train("other", 10)
    monkeypatch.setattr(foreign.os, "link", refuse)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1 << 40, free=SPARE_BYTES + 100))
        assert claim.take_up() == []
    assert claim.take_up() == [10]
    taken = checkpoint_dir(claim.own.checkpoints_dir(TRAIN, 1), 10)
    assert rank_file(taken, 0).stat().st_nlink == 1
    verify_files(taken, read_manifest(taken))


def test_of_an_attempt_the_newest_few_are_looked_at(claim: Claim):
    claim.train("other", 1)
    claim.train("other", *range(10, 10 + taking_up._MOST_LOOKED_AT), training={})
    assert claim.take_up() == []
