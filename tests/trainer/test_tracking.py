"""Trackers: what they are told, each value once, and that training does not mind what becomes of them."""

import errno
import logging
import math
import os
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from llava_api.constants import StageName
from llava_api.failures import Reason
from llava_api.memory import RESERVED_S
from llava_api.run_config import RunConfig
from llava_api.spec import Training
from llava_trainer.attempts.links import link_results
from llava_trainer.data.samples import Sample, write_samples
from llava_trainer.errors import StageError
from llava_trainer.files import remove_folder
from llava_trainer.gang.stopping import StopRequest
from llava_trainer.gang.world import World
from llava_trainer.reporting import Reporter
from llava_trainer.training.curve import Curve, CurvePoint, read_curve
from llava_trainer.training.tracking import follower as follower_module
from llava_trainer.training.tracking import tensorboard as tensorboard_module
from llava_trainer.training.tracking.follower import CAPACITY, PIECE, STOPPING_S, Destination, Follower, following
from llava_trainer.training.tracking.observations import NAMES, Observation, observe
from llava_trainer.training.tracking.opening import make_followers
from llava_trainer.training.tracking.tensorboard import EventFile
from llava_trainer.training.train import train
from tests.trainer.attempts import begin
from tests.trainer.many import run_in_processes
from tests.trainer.trainings import StopAfter, make_dataset, make_training

DEADLINE_S = 20


def point(step: int, loss: float = 1.0, **more: Any) -> CurvePoint:
    return CurvePoint(
        step=step, epoch=step / 10, loss=loss, learning_rate=1e-3, grad_norm=0.5, tokens=100, samples_per_second=8.0,
        tokens_per_second=900.0, time_s=1000.0 + step, **more,
    )  # fmt: skip


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard reads there."""
    reader = EventAccumulator(str(folder))
    reader.Reload()
    return {name: [(event.step, event.value) for event in reader.Scalars(name)] for name in reader.Tags()["scalars"]}


# --- what they are told


def test_all_that_is_known_of_a_step_is_told_and_nothing_else() -> None:
    told = {one.name: one for one in observe(point(3, data_wait_ratio=0.1, validation_loss=0.5), 7.0)}
    assert set(told) == {*NAMES.values()} - {
        "throughput/mfu", "memory/peak_gpu_bytes", "validation/exact_ratio",
    }  # fmt: skip
    assert told["train/loss"] == Observation(name="train/loss", step=3, value=1.0, time_s=1003.0)
    assert {one.time_s for one in observe(replace(point(3), time_s=None), 7.0)} == {7.0}


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_what_is_no_number_is_left_out(loss: float) -> None:
    assert "train/loss" not in {one.name for one in observe(point(1, loss), 0.0)}


# --- following the curve


class Taking:
    """A destination that keeps what it takes, and fails as long as it is told to."""

    def __init__(self) -> None:
        self.taken: list[Observation] = []
        self.opened = self.closed = 0
        self.finished: list[bool] = []
        self.failing = threading.Event()
        self.held = threading.Event()
        self.held.set()
        self.arrived = threading.Condition()

    def open(self) -> "Taking":
        self.opened += 1
        self._check()
        return self

    def last_step_of(self, name: str) -> int:
        return max((one.step for one in self.taken if one.name == name), default=0)

    def write(self, observations: Sequence[Observation]) -> None:
        self.held.wait(DEADLINE_S)
        self._check()
        with self.arrived:
            self.taken += observations
            self.arrived.notify_all()

    def finish(self, *, succeeded: bool) -> None:
        self.finished.append(succeeded)

    def close(self) -> None:
        self.closed += 1
        self._check()

    def _check(self) -> None:
        if self.failing.is_set():
            raise OSError(errno.ENOSPC, "No space left\non device")

    def losses(self) -> list[tuple[int, float]]:
        return [(one.step, one.value) for one in self.taken if one.name == "train/loss"]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self.arrived:
            assert self.arrived.wait_for(condition, DEADLINE_S), self.taken


@contextmanager
def follow(
    taking: Taking | Callable[[], Destination], file: Path, *, closing_s: float = 5.0, **how: Any
) -> Iterator[Follower]:
    opening = taking.open if isinstance(taking, Taking) else taking
    follower = Follower("a tracker", opening, file, **{"interval_s": 0.01, "longest_s": 0.02, **how})
    with following([follower], closing_s=closing_s):
        yield follower


def add(history: Curve, follower: Follower, entry: CurvePoint) -> None:
    history.append(entry)
    follower.note(entry)


def test_each_value_is_told_once_and_a_resumed_curve_from_its_beginning(tmp_path: Path) -> None:
    taking, file = Taking(), tmp_path / "h.jsonl"
    with Curve(file) as history:
        for step in (1, 2):
            history.append(point(step))
        with follow(taking, file) as follower:
            taking.wait_for(lambda: len(taking.losses()) == 2)
            for step in (3, 4):
                add(history, follower, point(step))
            taking.wait_for(lambda: len(taking.losses()) == 4)
            history.add_validation(4, validation_loss=0.5)
            assert history.last is not None
            follower.note(history.last)
    assert taking.losses() == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0)]
    assert [(one.step, one.value) for one in taking.taken if one.name == "validation/loss"] == [(4, 0.5)]
    assert (taking.opened, taking.closed, taking.finished) == (1, 1, [True])


def test_what_failed_is_told_when_it_works_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    taking, file = Taking(), tmp_path / "h.jsonl"
    taking.failing.set()
    with Curve(file) as history, follow(taking, file) as follower:
        for step in range(1, 2 * CAPACITY):
            add(history, follower, point(step))
        while taking.opened < 3:
            pass
        taking.failing.clear()
        taking.wait_for(lambda: len(taking.losses()) == 2 * CAPACITY - 1)
    assert [step for step, _ in taking.losses()] == list(range(1, 2 * CAPACITY))
    messages = [record.getMessage() for record in caplog.records]
    assert [message.partition(" (")[0] for message in messages] == [
        "a tracker does not take the curve: OSError: [Errno 28] No space left\\non device",
        "a tracker takes the curve again",
    ]


def test_a_slow_one_holds_nothing_up_and_loses_nothing(tmp_path: Path) -> None:
    taking, file = Taking(), tmp_path / "h.jsonl"
    taking.held.clear()
    with Curve(file) as history, follow(taking, file, capacity=4) as follower:
        for step in range(1, 50):
            add(history, follower, point(step))
        assert taking.taken == []
        taking.held.set()
    assert [step for step, _ in taking.losses()] == list(range(1, 50))


@pytest.mark.parametrize("trouble", ["failing", "held"])
def test_what_is_left_at_the_end_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture, trouble: str) -> None:
    taking, file = Taking(), tmp_path / "h.jsonl"
    taking.failing.set() if trouble == "failing" else taking.held.clear()
    with Curve(file) as history, follow(taking, file, closing_s=0.2) as follower:
        for step in range(1, 4):
            add(history, follower, point(step))
    assert "a tracker has not taken all of the curve: up to 3 steps are missing there" in caplog.text
    taking.held.set()


class _Deadlines:
    """A clock that goes on only while somebody is waited for, for as long as it may take."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.waited: list[float] = []
        monkeypatch.setattr(follower_module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(Follower, "wait", lambda _, timeout_s: self.wait(timeout_s))

    def wait(self, timeout_s: float) -> None:
        self.waited.append(timeout_s)
        self.now += timeout_s


@pytest.mark.parametrize(
    ("end", "seconds"),
    [
        (None, 5.0), (StageError(Reason.OUT_OF_DEVICE_MEMORY, "x"), 5.0), (ValueError(), 5.0),
        (StageError(Reason.INTERRUPTED, "SIGTERM"), 1.0),
    ],
)  # fmt: skip
def test_all_that_hang_have_one_deadline_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: Exception | None, seconds: float
) -> None:
    """Which leaves the grace period to what comes after a checkpoint."""
    clock = _Deadlines(monkeypatch)
    followers = [Follower(name, Taking().open, tmp_path / "h.jsonl") for name in ("one", "another", "a third")]
    with suppress(StageError, ValueError), following(followers):
        if end is not None:
            raise end
    assert clock.waited == [seconds, 0.0, 0.0]
    assert STOPPING_S < RESERVED_S / 2
    assert [follower._succeeded for follower in followers] == [end is None] * 3


def test_one_that_hangs_is_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hanging, taking, file = Taking(), Taking(), tmp_path / "h.jsonl"
    hanging.held.clear()
    followers = [Follower(name, one.open, file, interval_s=0.01) for name, one in (("h", hanging), ("t", taking))]
    with Curve(file) as history, following(followers, closing_s=0.5):
        history.append(point(1))
        for follower in followers:
            follower.note(point(1))
        taking.wait_for(lambda: bool(taking.losses()))
    assert [record.getMessage().partition(" has")[0] for record in caplog.records] == ["h"]
    assert taking.finished == [True]
    hanging.held.set()


class Counting(Taking):
    """Keeps the sizes of what it is told, and knows its last steps as a server does."""

    def __init__(self, last: Mapping[str, int]) -> None:
        super().__init__()
        self.last = dict(last)
        self.sizes: list[int] = []

    def last_step_of(self, name: str) -> int:
        return self.last.get(name, 0)

    def write(self, observations: Sequence[Observation]) -> None:
        self.sizes.append(len(observations))
        self.last |= {one.name: one.step for one in observations}
        super().write(observations)


def write_curve(file: Path, num_steps: int, **last: Any) -> None:
    with Curve(file) as history:
        for step in range(1, num_steps):
            history.append(point(step))
        history.append(point(num_steps, **last))


def test_a_long_curve_is_read_and_told_in_pieces(tmp_path: Path) -> None:
    file, taking = tmp_path / "h.jsonl", Counting({})
    write_curve(file, 2 * PIECE + 5)
    with follow(taking, file, closing_s=DEADLINE_S):
        taking.wait_for(lambda: len(taking.losses()) == 2 * PIECE + 5)
    per_point = len(list(observe(point(1), 0.0)))
    assert taking.sizes == [PIECE * per_point, PIECE * per_point, 5 * per_point]
    assert [step for step, _ in taking.losses()] == list(range(1, 2 * PIECE + 6))


def test_what_a_tracker_has_costs_no_memory(tmp_path: Path) -> None:
    """A curve may have ten million steps, and is read at each start and after each failure."""
    file, num_steps = tmp_path / "h.jsonl", 6 * PIECE
    write_curve(file, num_steps, validation_loss=0.5)
    taking = Counting(dict.fromkeys(NAMES.values(), num_steps) | {NAMES["validation_loss"]: 0})
    list(observe(point(1), 0.0))
    tracemalloc.start()
    try:
        with follow(taking, file, closing_s=DEADLINE_S):
            taking.wait_for(lambda: bool(taking.taken))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [(one.name, one.step) for one in taking.taken] == [("validation/loss", num_steps)]
    assert peak < 4 << 20, "all of it would be 20 MiB"


@pytest.mark.parametrize(
    ("last", "told"), [(3, ""), (4, "a tracker has steps up to 4 of a run that ended with step 3")]
)
def test_one_that_says_it_has_more_than_there_is_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, last: int, told: str
) -> None:
    """It is told nothing any more, which would go unseen."""
    file, taking = tmp_path / "h.jsonl", Counting(dict.fromkeys(NAMES.values(), last))
    write_curve(file, 3)
    with follow(taking, file):
        pass
    assert taking.taken == []
    assert caplog.text.count("WARNING") == bool(told)
    assert told in caplog.text


def test_a_point_that_is_left_twice_is_told_with_what_is_new(tmp_path: Path) -> None:
    taking, file = Counting({}), tmp_path / "h.jsonl"
    taking.held.clear()
    with Curve(file) as history, follow(taking, file, capacity=1, closing_s=DEADLINE_S) as follower:
        for step in (1, 2, 3):
            add(history, follower, point(step))
            history.add_validation(step, validation_loss=step / 10)
            assert history.last is not None
            follower.note(history.last)
        taking.held.set()
    assert taking.losses() == [(1, 1.0), (2, 1.0), (3, 1.0)]
    validations = [(one.step, one.value) for one in taking.taken if one.name == "validation/loss"]
    assert validations == [(1, 0.1), (2, 0.2), (3, 0.3)]


@pytest.mark.parametrize("error", [ValueError("nonsense"), KeyError("x"), RuntimeError("y"), RecursionError()])
def test_whatever_it_raises_training_goes_on(tmp_path: Path, error: Exception) -> None:
    def fail() -> Taking:
        raise error

    with Curve(tmp_path / "h.jsonl") as history, follow(fail, tmp_path / "h.jsonl", closing_s=1.0) as follower:
        add(history, follower, point(1))


def test_without_a_point_nothing_is_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    taking = Taking()
    with follow(taking, tmp_path / "none.jsonl"):
        pass
    assert taking.closed == taking.opened
    assert (taking.taken, caplog.text) == ([], "")


# --- TensorBoard


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    file = EventFile(tmp_path / "tensorboard")
    file.write([*observe(point(1), 0.0), *observe(point(2, 0.5), 0.0)])
    assert scalars(tmp_path / "tensorboard")["train/loss"] == [(1, 1.0), (2, 0.5)], "at once"
    assert (file.last_step_of("train/loss"), file.last_step_of("validation/loss")) == (2, 0)
    file.close()
    reader = EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    assert [event.wall_time for event in reader.Scalars("train/loss")] == [1001.0, 1002.0]


def test_one_that_failed_is_begun_anew_and_no_step_stands_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk takes a part of what is written."""
    fail = threading.Event()
    write = tensorboard_module.EventsWriter.write_event

    def write_event(self: Any, event: Any) -> Any:
        if fail.is_set() and event.step == 2:
            fail.clear()
            self.flush()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, event)

    monkeypatch.setattr(tensorboard_module.EventsWriter, "write_event", write_event)
    fail.set()
    folder, file = tmp_path / "tensorboard", tmp_path / "h.jsonl"
    with Curve(file) as history, follow(lambda: EventFile(folder), file) as follower:
        for step in range(1, 6):
            add(history, follower, point(step, float(step)))
    assert not fail.is_set()
    assert scalars(folder)["train/loss"] == [(step, float(step)) for step in range(1, 6)]
    assert len(list(folder.iterdir())) == 1


# --- in training


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    folder = tmp_path_factory.mktemp("dataset")
    return folder, make_dataset(folder)


@pytest.fixture
def configure(tmp_path: Path, toy_model_dir: Path, dataset: tuple[Path, list[Sample]]):
    folder, samples = dataset
    (tmp_path / "dataset").symlink_to(folder)

    def make(*, attempt: int = 1, **training: Any) -> RunConfig:
        own = {"tracking": {"tensorboard": {}}, "validation": {"everySteps": 2, "samples": 4}, "epochs": 3} | training
        config = make_training(tmp_path, toy_model_dir, samples[8:24], attempt=attempt, training=own)
        write_samples(config.volume.validation_file, samples[:4])
        return begin(config)

    return make


def run(world: World, config: RunConfig, stop: StopRequest | None = None) -> None:
    with Reporter(config) as reporter:
        train(config, world, reporter, stop or StopRequest())


def curve(config: RunConfig) -> list[CurvePoint]:
    return read_curve(config.volume.history_file(config.run.stage, config.run.attempt))


def same_as_curve(config: RunConfig) -> None:
    told = scalars(config.volume.tensorboard_dir(config.run.stage, config.run.attempt))
    for field, name in NAMES.items():
        known = [(entry.step, getattr(entry, field)) for entry in curve(config) if getattr(entry, field) is not None]
        assert [step for step, _ in told.get(name, [])] == [step for step, _ in known], name
        assert [value for _, value in told.get(name, [])] == pytest.approx([value for _, value in known]), name


def test_a_resumed_run_continues_its_curve_without_double_steps(configure, world: World) -> None:
    with pytest.raises(StageError, match="Interrupted"):
        run(world, configure(attempt=1), StopAfter(3))
    resumed = configure(attempt=2)
    run(world, resumed)
    assert len(curve(resumed)) == 6
    same_as_curve(resumed)
    link_results(resumed)
    assert (resumed.volume.root / "tensorboard").readlink() == Path("attempts/train-2/tensorboard")


def test_only_the_first_rank_writes(configure) -> None:
    config = configure(batch={"perDevice": 2, "global": 8})
    run_in_processes(2, run, config)
    same_as_curve(config)
    assert len(list(config.volume.tensorboard_dir(StageName.TRAIN, 1).iterdir())) == 1


def test_training_is_the_same_with_and_without(configure, world: World) -> None:
    losses = []
    for attempt, tracking in ((1, {"tensorboard": {}}), (2, None)):
        config = configure(attempt=attempt, tracking=tracking)
        run(world, config)
        losses.append([entry.loss for entry in curve(config)])
        remove_folder(config.volume.attempt_dir(StageName.TRAIN, attempt))
    assert losses[0] == losses[1]


def test_a_volume_that_takes_no_events_ends_no_run(configure, world: World, caplog: pytest.LogCaptureFixture) -> None:
    config = configure()
    config.volume.tensorboard_dir(StageName.TRAIN, 1).write_text("a file where a folder should be")
    run(world, config)
    assert len(curve(config)) == 6
    assert "TensorBoard's event file does not take the curve" in caplog.text
    assert "has not taken all of the curve" in caplog.text


def test_who_asks_for_none_gets_none(configure) -> None:
    assert make_followers(configure(tracking=None), 6) == []
    assert make_followers(configure(tracking={}), 6) == []


def test_each_phase_has_a_folder_of_its_own(configure) -> None:
    volume = configure().volume
    assert volume.tensorboard_dir(StageName.ALIGN, 1).name == "tensorboard-align"
    assert volume.tensorboard_dir(StageName.TRAIN, 1).name == "tensorboard"


@pytest.mark.parametrize("tracking", [{"tensorboard": {"folder": "/x"}}, {"comet": {}}, {"tensorboard": True}])
def test_what_is_not_known_is_refused(tracking: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="tracking"):
        Training.model_validate({"tracking": tracking})
