"""The queue: one entry a key, one pass a key at a time, growing delays; on a virtual clock."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import pytest

from llava_operator.loop.workqueue import FIRST_BACKOFF_S, LAST_BACKOFF_S, WorkQueue
from tests.controller.virtual import run_virtually

Process = Callable[[str], Awaitable[float | None]]


def now() -> float:
    return asyncio.get_running_loop().time()


async def work_for(queue: WorkQueue[str], process: Process, *, seconds: float, workers: int = 1) -> None:
    tasks = [asyncio.create_task(queue.work(process)) for _ in range(workers)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def test_key_waits_once_however_often_it_is_added() -> None:
    async def scenario() -> list[str]:
        queue: WorkQueue[str] = WorkQueue()
        done: list[str] = []

        async def process(key: str) -> None:
            done.append(key)

        for key in "abab":
            queue.add(key)
        assert queue.depth == 2
        await work_for(queue, process, seconds=1)
        return done

    assert run_virtually(scenario()) == ["a", "b"]


def test_key_is_never_worked_on_twice_at_a_time_but_again_afterwards() -> None:
    async def scenario() -> list[tuple[str, float, float]]:
        queue: WorkQueue[str] = WorkQueue()
        spans: list[tuple[str, float, float]] = []

        async def process(key: str) -> None:
            start = now()
            if start < 2:
                queue.add("a")
            await asyncio.sleep(5)
            spans.append((key, start, now()))

        queue.add("a")
        queue.add("b")
        await work_for(queue, process, seconds=30, workers=3)
        return spans

    assert run_virtually(scenario()) == [("a", 0, 5), ("b", 0, 5), ("a", 5, 10)]


def test_delays_double_up_to_a_limit_and_start_over_after_a_success(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> list[float]:
        queue: WorkQueue[str] = WorkQueue()
        starts: list[float] = []

        async def process(_: str) -> None:
            starts.append(now())
            if len(starts) not in (10, 12):
                raise ValueError("broken")
            if len(starts) == 10:
                queue.add("a")

        queue.add("a")
        await work_for(queue, process, seconds=400)
        return starts

    starts = run_virtually(scenario())
    gaps = [later - earlier for earlier, later in itertools.pairwise(starts)]
    doubling = [min(LAST_BACKOFF_S, FIRST_BACKOFF_S * 2**n) for n in range(9)]
    assert gaps == pytest.approx([*doubling, 0, FIRST_BACKOFF_S])
    assert "failed 9 times in a row" in caplog.text


def test_error_may_ask_for_a_longer_delay() -> None:
    class Throttled(Exception):
        retry_after_s = 30.0

    async def scenario() -> list[float]:
        queue: WorkQueue[str] = WorkQueue()
        starts: list[float] = []

        async def process(_: str) -> None:
            starts.append(now())
            if len(starts) == 1:
                raise Throttled

        queue.add("a")
        await work_for(queue, process, seconds=100)
        return starts

    assert run_virtually(scenario()) == pytest.approx([0, 30])


def test_result_is_the_time_of_the_next_pass() -> None:
    async def scenario() -> list[float]:
        queue: WorkQueue[str] = WorkQueue()
        starts: list[float] = []

        async def process(_: str) -> float | None:
            starts.append(now())
            return 7.0 if len(starts) < 3 else None

        queue.add("a")
        await work_for(queue, process, seconds=100)
        return starts

    assert run_virtually(scenario()) == pytest.approx([0, 7, 14])


def test_earliest_wish_counts() -> None:
    async def scenario() -> list[float]:
        queue: WorkQueue[str] = WorkQueue()
        starts: list[float] = []

        async def process(_: str) -> None:
            starts.append(now())

        queue.add("a", delay_s=20)
        queue.add("a", delay_s=10)
        queue.add("a", delay_s=30)
        queue.add("b", delay_s=50)
        queue.add("b")
        await work_for(queue, process, seconds=100)
        return starts

    assert run_virtually(scenario()) == pytest.approx([0, 10])


def test_failing_key_does_not_hold_up_others() -> None:
    async def scenario() -> list[str]:
        queue: WorkQueue[str] = WorkQueue()
        done: list[str] = []

        async def process(key: str) -> None:
            if key == "bad":
                raise ValueError("broken")
            done.append(key)

        for key in ("bad", "good"):
            queue.add(key)
        await work_for(queue, process, seconds=0.1)
        return done

    assert run_virtually(scenario()) == ["good"]


# --- how long keys wait, and how often they come back


def test_wait_is_counted_from_when_a_key_was_due() -> None:
    async def scenario() -> list[tuple[str, float]]:
        waits: list[tuple[str, float]] = []
        queue: WorkQueue[str] = WorkQueue(note_wait=lambda key, seconds: waits.append((key, seconds)), clock=now)

        async def process(key: str) -> None:
            if key == "slow" and now() < 5:
                # It is due once more from now on, however often that is said.
                queue.add("slow")
                await asyncio.sleep(2)
                queue.add("slow")
                await asyncio.sleep(8)

        queue.add("slow")
        queue.add("behind")
        await asyncio.sleep(1)
        queue.add("behind")
        queue.add("later", delay_s=4)
        await work_for(queue, process, seconds=60)
        return waits

    # "slow" is taken after 1 s and works for 10; "later" is due at 5.
    assert run_virtually(scenario()) == [("slow", 1), ("behind", 11), ("later", 6), ("slow", 10)]


def test_keys_that_come_back_by_an_error_are_noted() -> None:
    async def scenario() -> list[str]:
        retries: list[str] = []
        queue: WorkQueue[str] = WorkQueue(note_retry=retries.append)

        async def process(key: str) -> float | None:
            if key == "bad" and len(retries) < 3:
                raise ValueError("broken")
            return None if now() > 100 else 50.0

        queue.add("bad")
        queue.add("good")
        await work_for(queue, process, seconds=200)
        return retries

    assert run_virtually(scenario()) == ["bad"] * 3
