"""The learning rate's course and the training curve."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import get_scheduler

from llava_api.report import LOSSES_KEPT
from llava_trainer.training.curve import Curve, CurvePoint, read_curve
from llava_trainer.training.schedule import Schedule


@pytest.mark.parametrize(
    ("kind", "theirs"), [("cosine", "cosine"), ("linear", "linear"), ("constant", "constant_with_warmup")]
)
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.03, 0.5, 1.0])
def test_the_learning_rate_takes_the_course_that_transformers_gives_it(kind, theirs: str, warmup_ratio: float):
    schedule = Schedule(kind=kind, total_steps=50, warmup_ratio=warmup_ratio)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(
        theirs, optimizer, num_warmup_steps=schedule.warmup_steps, num_training_steps=schedule.total_steps
    )
    for step in range(50):
        assert schedule.factor(step) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("warmup_ratio", [0.0, 0.03, 0.5])
def test_a_cosine_with_a_floor_is_transformers_too(warmup_ratio: float):
    schedule = Schedule(kind="cosine", total_steps=50, warmup_ratio=warmup_ratio, floor=0.1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(
        "cosine_with_min_lr", optimizer, num_warmup_steps=schedule.warmup_steps,
        num_training_steps=schedule.total_steps, scheduler_specific_kwargs={"min_lr_rate": 0.1},
    )  # fmt: skip
    for step in range(50):
        assert schedule.factor(step) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_a_line_falls_to_its_floor_and_a_constant_has_none():
    line = Schedule(kind="linear", total_steps=10, warmup_ratio=0.2, floor=0.5)
    assert [line.factor(step) for step in (0, 1, 2, 6, 10)] == [0.0, 0.5, 1.0, 0.75, 0.5]
    assert Schedule(kind="constant", total_steps=10, warmup_ratio=0.0, floor=0.5).factor(9) == 1.0


def make_entry(step: int, loss: float = 1.0) -> CurvePoint:
    return CurvePoint(
        step=step, epoch=step / 10, loss=loss, learning_rate=1e-3, grad_norm=0.5, tokens=100, samples_per_second=8.0,
        tokens_per_second=900.0,
    )  # fmt: skip


def write_history(file: Path, steps: range) -> None:
    with Curve(file) as history:
        for step in steps:
            history.append(make_entry(step))


def test_a_curve_has_a_line_for_each_step(tmp_path: Path):
    file = tmp_path / "attempts" / "history.jsonl"
    write_history(file, range(1, 4))
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2, 3]
    assert read_curve(file) == [make_entry(step) for step in (1, 2, 3)]


def test_what_a_newer_image_tells_besides_is_passed_over(tmp_path: Path):
    file = tmp_path / "history.jsonl"
    write_history(file, range(1, 4))
    lines = [json.loads(line) | {"invented": {"by": "a newer one"}} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_curve(file) == [make_entry(step) for step in (1, 2, 3)]


def test_a_validation_is_told_in_the_line_of_its_step(tmp_path: Path):
    file = tmp_path / "history.jsonl"
    with Curve(file) as history:
        history.append(make_entry(1))
        history.append(make_entry(2))
        history.add_validation(2, validation_loss=0.25, validation_exact=None, validation_seconds=3.5)
        assert read_curve(file)[-1].validation_loss == 0.25, "at once"
        # A shorter text than what was there.
        history.add_validation(2, validation_loss=1.0, validation_exact=1.0, validation_seconds=2.0)
        history.add_validation(1, validation_loss=9.0)
        assert history.last == read_curve(file)[-1]
        assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2]
        history.append(make_entry(3))
    entries = read_curve(file)
    assert [(entry.step, entry.validation_loss, entry.validation_exact) for entry in entries] == [
        (1, None, None), (2, 1.0, 1.0), (3, None, None),
    ]  # fmt: skip
    assert entries[1].validation_seconds == history.last_validation_s == 2.0
    with Curve(tmp_path / "next.jsonl", resumed_from=file, resumed_step=3) as resumed:
        assert resumed.last_validation_s == 2.0
    assert history.tokens == 300


def test_a_validation_is_told_of_the_step_that_is_resumed_from(tmp_path: Path):
    write_history(tmp_path / "a.jsonl", range(1, 5))
    with Curve(tmp_path / "b.jsonl", resumed_from=tmp_path / "a.jsonl", resumed_step=3) as history:
        history.add_validation(3, validation_loss=0.5)
    assert [entry.validation_loss for entry in read_curve(tmp_path / "b.jsonl")] == [None, None, 0.5]
    with Curve(tmp_path / "c.jsonl", resumed_from=tmp_path / "nowhere.jsonl", resumed_step=3) as history:
        history.add_validation(3, validation_loss=0.5)
    assert read_curve(tmp_path / "c.jsonl") == []


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_read_as_it_was_written(tmp_path: Path, loss: float):
    with Curve(tmp_path / "h.jsonl") as history:
        history.append(make_entry(1, loss=loss))
    (entry,) = read_curve(tmp_path / "h.jsonl")
    assert repr(entry.loss) == repr(loss)


@pytest.mark.parametrize(
    "line",
    [b"[1]", b"{}", b"\xff", b"[" * 100_000, b'{"step": 4}', b""],
    ids=["a list", "nothing", "no text", "deep", "a part", "empty"],
)
def test_a_curve_is_read_up_to_what_is_none(tmp_path: Path, line: bytes):
    file = tmp_path / "history.jsonl"
    write_history(file, range(1, 4))
    with file.open("ab") as stream:
        stream.write(line + b"\n")
    assert read_curve(file) == [make_entry(step) for step in (1, 2, 3)]


def test_a_resumed_curve_goes_on_behind_the_checkpoint(tmp_path: Path):
    file = tmp_path / "history.jsonl"
    write_history(file, range(1, 8))
    with file.open("a") as stream:
        stream.write('{"step": 8, "lo')
    with Curve(file, resumed_from=file, resumed_step=5) as history:
        assert history.tokens == 500
        history.append(make_entry(6, loss=2.0))
    assert [(entry.step, entry.loss) for entry in read_curve(file)] == [*((s, 1.0) for s in range(1, 6)), (6, 2.0)]


def test_a_later_attempt_takes_the_curve_over(tmp_path: Path):
    write_history(tmp_path / "train-1" / "history.jsonl", range(1, 4))
    with Curve(tmp_path / "2" / "h.jsonl", resumed_from=tmp_path / "train-1" / "history.jsonl", resumed_step=2):
        pass
    assert [entry.step for entry in read_curve(tmp_path / "2" / "h.jsonl")] == [1, 2]
    assert read_curve(tmp_path / "nowhere.jsonl") == []


def test_only_the_last_losses_are_reported(tmp_path: Path):
    with Curve(tmp_path / "history.jsonl") as history:
        for step in range(1, LOSSES_KEPT + 11):
            history.append(make_entry(step, loss=float(step)))
    assert history.recent_losses == tuple(float(step) for step in range(11, LOSSES_KEPT + 11))


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_a_run_of_one_step_learns_at_the_peak(kind) -> None:
    assert Schedule(kind=kind, total_steps=1, warmup_ratio=0.03).factor(0) == 1.0
