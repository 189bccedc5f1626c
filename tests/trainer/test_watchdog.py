"""A process that does not get any further is noticed, whatever it is at; one that saves is left alone."""

import threading
import time

import pytest

from llava_api.failures import Reason
from llava_api.run_config import WorkerLayout
from llava_trainer.gang import watchdog
from llava_trainer.gang.watchdog import Doing, Watchdog, stall_limit_s
from llava_trainer.gang.world import COLLECTIVE_TIMEOUT, World
from llava_trainer.training.progress import Progress
from llava_trainer.training.step import BatchTotals, count_batch
from llava_trainer.training.worker import explain_stall
from tests.trainer.many import run_in_processes

LIMIT_S = 0.2


@pytest.fixture(autouse=True)
def prompt_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_DUMP_ADVANCE_S", 0.1)


def await_stall(*beats: Doing) -> list[Doing]:
    stalled: list[Doing] = []
    heard = threading.Event()

    def note(doing: Doing) -> None:
        stalled.append(doing)
        heard.set()

    with Watchdog(lambda: LIMIT_S, note) as dog:
        for doing in beats:
            dog.beat(doing)
        heard.wait(10 if beats and beats[-1] is not Doing.SAVING else 1)
    return stalled


@pytest.mark.parametrize("doing", [Doing.LOADING, Doing.COMPUTING, Doing.WAITING])
def test_a_process_that_stands_still_is_noticed(doing: Doing, capfd: pytest.CaptureFixture[str]):
    assert await_stall(Doing.LOADING, doing) == [doing]
    # All threads' stacks: this one's among them.
    assert "await_stall" in capfd.readouterr().err


def test_nothing_is_noticed_before_the_first_beat_or_while_saving():
    assert await_stall() == []
    assert await_stall(Doing.COMPUTING, Doing.SAVING) == []


@pytest.mark.parametrize("doing", [Doing.COMPUTING, Doing.SAVING])
def test_how_far_it_is_is_asked_once_before_it_counts_as_hanging(doing: Doing):
    order: list[str] = []
    asked = threading.Event()

    def ask(doing: Doing) -> None:
        order.append(f"asked: it {doing}")
        asked.set()

    with Watchdog(lambda: LIMIT_S, lambda doing: order.append("gave up"), ask) as dog:
        dog.beat(doing)
        assert asked.wait(10)
        time.sleep(5 * LIMIT_S)
    assert order == [f"asked: it {doing}", *(["gave up"] if doing is Doing.COMPUTING else [])]


def test_whoever_waits_is_not_the_cause():
    told = [
        explain_stall(3, doing, 300.0, Progress(step=7, attempt_steps=2)) for doing in (Doing.LOADING, Doing.WAITING)
    ]
    assert [word.lost_peer for word in told] == [False, True]
    assert {word.failure.reason for word in told} == {Reason.WORKER_STALLED}
    assert (told[0].failure.step, told[0].failure.attempt_steps) == (7, 2)
    assert told[0].failure.message == ("rank 3 has not gone on for 300 s: it loads samples; the stacks are in its log")


@pytest.mark.parametrize(
    ("slowest_s", "longest_s", "expected_s"),
    [
        # Nothing is known yet.
        (None, 300.0, 300.0),
        # Quick steps: what a file server that fails over may take.
        (0.5, 300.0, 120.0),
        (20.0, 300.0, 200.0),
        # Never longer than half of what the others' operations wait, and as short as it is configured.
        (45.0, 300.0, 300.0),
        (0.5, 20.0, 20.0),
    ],
)
def test_the_limit_follows_from_the_steps(slowest_s: float | None, longest_s: float, expected_s: float):
    assert stall_limit_s(slowest_s, longest_s) == expected_s


def test_the_slowest_of_the_last_steps_counts():
    progress = Progress()
    progress.begin(40)
    for step, seconds in enumerate((9.0, 1.0), start=41):
        progress.finish_step(step, seconds)
        progress.measure(seconds)
    assert progress.slowest_step_s is None, "too few to conclude anything"
    progress.measure(2.0)
    assert progress.slowest_step_s == 9.0
    for _ in range(17):
        progress.measure(2.0)
    assert progress.slowest_step_s == 9.0
    progress.measure(1.5)
    assert progress.slowest_step_s == 2.0, "the first one is forgotten by then"
    assert (progress.step, progress.attempt_steps, progress.last_step_s) == (42, 2, 1.0)


def test_an_operation_between_processes_waits_twice_as_long_as_a_process_may_stand_still():
    assert COLLECTIVE_TIMEOUT.total_seconds() >= 2 * WorkerLayout().stall_limit_seconds


def test_evidence_is_taken_back_by_who_goes_on():
    asked, relieved = threading.Event(), threading.Event()
    with Watchdog(lambda: 0.5, lambda doing: None, lambda doing: asked.set(), relieved.set) as dog:
        dog.beat(Doing.COMPUTING)
        assert asked.wait(10)
        assert not relieved.is_set()
        dog.beat(Doing.COMPUTING)
        assert relieved.wait(10)


def count(world: World) -> BatchTotals:
    return count_batch([], False, world, last_step_s=10.0 + world.rank)


def count_memory(world: World) -> BatchTotals:
    peaks = property(lambda self: 80 - self.rank)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(World, "peak_gpu_memory_bytes", peaks)
        return count(world)


def test_the_most_memory_of_any_gpu_comes_with_the_count():
    assert [totals.peak_gpu_memory_bytes for totals in run_in_processes(2, count_memory)] == [80, 80]
    assert [totals.peak_gpu_memory_bytes for totals in run_in_processes(2, count)] == [0, 0]


def count_waiting(world: World) -> BatchTotals:
    return count_batch([], False, world, data_wait_s=3.0 - world.rank)


def test_the_longest_wait_of_any_process_comes_with_the_count():
    assert [totals.data_wait_s for totals in run_in_processes(2, count_waiting)] == [3.0, 3.0]


def test_all_processes_go_by_what_the_first_one_has_measured():
    assert [totals.last_step_s for totals in run_in_processes(2, count)] == [10.0, 10.0]
