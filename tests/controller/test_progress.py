"""How often progress is written, and which."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise

import pytest

from llava_api.constants import StageName
from llava_api.report import MAX_NEXT_REPORT_S
from llava_api.status import Progress
from llava_operator.cache.progress import LATE_S, SILENT_S, ProgressBook
from llava_operator.deciding.decide import decide
from llava_operator.deciding.decisions import Commit, Wait
from llava_operator.deciding.observation import Observation
from llava_operator.kube.objects import Key
from llava_operator.loop.workqueue import WorkQueue
from tests.controller.makers import NOW, NOW_TEXT, begun, make_job, see
from tests.controller.virtual import run_virtually


def make(step: int) -> Progress:
    return Progress(stage=StageName.TRAIN, attempt=1, pod_uid="p", step=step, total_steps=9, last_update_time=NOW_TEXT)


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def make_book(writes_per_s: float = 2) -> ProgressBook:
    return ProgressBook(interval_s=15, writes_per_s=writes_per_s)


def test_newest_report_of_the_attempt_counts() -> None:
    book = make_book()
    book.put("run", make(1), NOW)
    book.put("run", make(2), NOW)
    assert book.newest("run", StageName.TRAIN, 1) == make(2)
    assert book.newest("run", StageName.TRAIN, 2) is None
    assert book.newest("run", StageName.MERGE, 1) is None
    assert book.newest("other", StageName.TRAIN, 1) is None


def test_first_report_is_due_at_once_and_the_next_after_the_interval() -> None:
    book = make_book()
    book.put("run", make(1), NOW)
    assert book.due_at("run", NOW) == NOW
    book.note_written("run", make(1), NOW)
    assert book.newest("run", StageName.TRAIN, 1) is None
    book.put("run", make(2), after(5))
    assert book.due_at("run", after(5)) == after(15)


def test_report_that_came_during_the_write_is_kept_and_has_a_slot() -> None:
    book = make_book()
    book.put("run", make(2), NOW)
    book.note_written("run", make(1), NOW)
    assert book.newest("run", StageName.TRAIN, 1) == make(2)
    assert book.due_at("run", NOW) == after(15)


def test_each_run_has_a_slot_of_its_own_and_keeps_it() -> None:
    book = make_book()
    for _ in range(2):
        for number, name in enumerate("abcd"):
            book.put(name, make(1), NOW)
            assert book.due_at(name, NOW) == after(number / 2)


def test_one_pass_is_woken_for_a_slot_and_another_when_it_did_not_write() -> None:
    book = make_book()
    assert book.put("run", make(1), NOW) == NOW
    assert book.put("run", make(2), after(0.5)) is None
    assert book.put("run", make(3), after(2)) == after(2)
    book.note_written("run", make(3), after(2))
    assert book.put("run", make(4), after(3)) == after(17)
    assert book.put("run", make(5), after(4)) == after(17)


def test_a_slot_that_lies_ahead_holds_nobody_up() -> None:
    book = make_book()
    book.put("a", make(1), NOW)
    book.note_written("a", make(1), NOW)
    book.put("a", make(2), after(1))
    assert book.due_at("a", after(1)) == after(15)
    book.put("b", make(1), after(2))
    assert book.due_at("b", after(2)) == after(2)


def test_a_pass_that_is_a_little_early_or_late_is_due() -> None:
    book = make_book()
    for name in "abc":
        book.put(name, make(1), NOW)
    for seconds in (0.995, 1.0, 1.9):
        assert book.due_at("c", after(seconds)) == after(seconds)


def test_slots_that_were_missed_are_not_all_made_up_for_at_once() -> None:
    """The API server was away for ten minutes: a hundred runs have something to write when it is back."""
    book = make_book()
    names = [f"run-{number}" for number in range(100)]
    for name in names:
        book.put(name, make(1), NOW)
    instants = sorted(book.due_at(name, after(600)) for name in names)
    assert instants[: int(2 * LATE_S) + 1] == [after(600)] * 3
    gaps = [(later - sooner).total_seconds() for sooner, later in pairwise(instants[3:])]
    assert gaps == [0.5] * 96


@pytest.mark.parametrize("jump_s", [-3600.0, 3600.0])
def test_a_clock_that_is_set_stops_no_run(jump_s: float) -> None:
    book = make_book()
    book.put("run", make(1), NOW)
    book.note_written("run", make(1), NOW)
    book.put("run", make(2), after(1))
    book.put("other", make(2), after(1))
    set_to = after(jump_s)
    for name in ("run", "other"):
        assert (book.due_at(name, set_to) - set_to).total_seconds() <= 15
    book.put("run", make(3), set_to)
    assert (book.due_at("run", set_to) - set_to).total_seconds() <= 15


def test_the_next_report_is_welcome_when_it_can_be_written() -> None:
    book = make_book()
    for number in range(60):
        book.put(f"run-{number}", make(1), NOW)
    assert book.next_report_s("run-0", NOW) == 30
    assert book.next_report_s("run-59", NOW) == 29.5 + 30
    slow = make_book(writes_per_s=0.001)
    slow.put("run", make(1), NOW)
    assert slow.next_report_s("run", NOW) == MAX_NEXT_REPORT_S


def test_forgotten_run_starts_over() -> None:
    book = make_book()
    book.put("run", make(1), NOW)
    book.note_written("run", make(1), NOW)
    book.forget("run")
    book.put("run", make(2), after(1))
    assert book.due_at("run", after(1)) == after(1)


def test_runs_that_are_silent_count_no_longer_and_are_dropped() -> None:
    book = make_book()
    for number in range(100):
        book.put(f"run-{number}", make(1), NOW)
    assert book.next_report_s("run-0", NOW) == 50
    book.put("last", make(1), after(SILENT_S + 1))
    assert book.next_report_s("last", after(SILENT_S + 1)) == 15
    assert book.newest("run-0", StageName.TRAIN, 1) is None


# --- many runs, a clock that jumps, the real queue and the real decision


@dataclass
class World:
    """Runs that report, and passes over them as the operator makes them."""

    num_runs: int
    step_s: float = 3.0
    """Time between two things that a trainer could report."""
    obeys: bool = True
    """Whether trainers come when they are welcome; older ones come every two seconds."""
    writes: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    ages: list[float] = field(default_factory=list)
    """How old the report was that was written."""
    reads_in_vain: int = 0

    async def run(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self.now: Callable[[], float] = loop.time
        self.book = ProgressBook(interval_s=15, writes_per_s=5)
        self.queue: WorkQueue[Key] = WorkQueue()
        self.seen = see(begun(StageName.TRAIN))
        self.job = make_job(begun(StageName.TRAIN))
        tasks = [asyncio.create_task(self.queue.work(self.process)) for _ in range(4)]
        tasks += [asyncio.create_task(self.train(f"run-{number}")) for number in range(self.num_runs)]
        await asyncio.sleep(seconds)
        for task in tasks:
            assert not task.done(), task
            task.cancel()

    async def train(self, name: str) -> None:
        dice = random.Random(name)
        await asyncio.sleep(dice.random())
        step = 0
        while True:
            step += 1
            now = after(self.now())
            look_at = self.book.put(name, make(step).model_copy(update={"loss": self.now()}), now)
            if look_at is not None:
                self.queue.add(Key("team", name), delay_s=(look_at - now).total_seconds())
            welcome_s = self.book.next_report_s(name, now) if self.obeys else 2.0
            await asyncio.sleep(welcome_s + dice.random() * self.step_s)

    async def process(self, key: Key) -> float | None:
        await asyncio.sleep(0.02)
        now = after(self.now())
        progress = self.book.newest(key.name, StageName.TRAIN, 1)
        seen = Observation(
            run=self.seen.run, job=self.job, progress=progress,
            progress_due_at=self.book.due_at(key.name, now), now=now,
        )  # fmt: skip
        match decide(seen):
            case Commit(status=status):
                assert progress is not None
                assert progress.loss is not None
                assert status.progress == progress
                await asyncio.sleep(0.02)
                self.book.note_written(key.name, progress, now)
                self.writes[key.name].append(self.now())
                self.ages.append(self.now() - progress.loss)
            case Wait(until=until):
                self.reads_in_vain += 1
                return None if until is None else (until - now).total_seconds()
        return None


@pytest.mark.parametrize(
    ("num_runs", "obeys"), [(1, True), (75, True), (300, True), (1000, True), (1, False), (75, False), (300, False)]
)
def test_every_run_is_written_in_turn_and_no_pass_is_made_in_vain(num_runs: int, obeys: bool) -> None:
    """All that wait once woke at the same instant, four wrote, and the rest had read for nothing."""
    world = World(num_runs=num_runs, obeys=obeys)
    stretch_s = max(15, num_runs / 5)
    run_virtually(world.run(5 * stretch_s + 30))
    assert world.reads_in_vain == 0
    assert len(world.writes) == num_runs, "nobody starves"
    for written in world.writes.values():
        gaps = [later - sooner for sooner, later in pairwise(written)]
        assert len(gaps) >= 2
        assert min(gaps) > 14.9
        assert max(gaps) < 1.1 * stretch_s + 5, "one slot, its step, and chance"
    everything = sorted(instant for written in world.writes.values() for instant in written)
    for first, sixth in zip(everything, everything[15:], strict=False):
        assert sixth - first > 2, "no more than five a second, over three"
    if obeys:
        assert sorted(world.ages)[len(world.ages) // 2] < 5, "what is written is fresh"
