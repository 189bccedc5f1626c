"""The cache of runs, the relist that heals it, and how passes are measured and limited."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from llava_api.constants import Phase
from llava_operator.cache.children import Children
from llava_operator.cache.runs import Runs
from llava_operator.cache.skipped import SkippedObjects
from llava_operator.kube.errors import ForbiddenError, KubeError, RetryableError
from llava_operator.kube.kinds import RUNS, Kind
from llava_operator.kube.objects import Key, Object
from llava_operator.loop.health import HEARTBEAT, MISSED_BEATS, Health
from llava_operator.loop.passes import Passes, Resync
from llava_operator.loop.workqueue import WorkQueue
from llava_operator.telemetry.operator_metrics import OperatorMetrics
from tests.controller.virtual import run_virtually


def raw_run(name: str, *, uid: str = "u", phase: Phase | None = None) -> Object:
    return {"metadata": {"namespace": "ns", "name": name, "uid": uid}, "status": {"phase": phase} if phase else {}}


def test_late_deletion_of_a_namesake_forgets_nothing() -> None:
    runs = Runs()
    runs.note(raw_run("a", uid="new"))
    runs.note(raw_run("a", uid="old"), deleted=True)
    assert [run.uid for run in runs] == ["new"]
    runs.note(raw_run("a", uid="new"), deleted=True)
    assert len(runs) == 0


def test_curves_and_logs_are_not_kept() -> None:
    runs = Runs()
    raw = raw_run("a", phase=Phase.FAILED)
    progress = {"stage": "train", "attempt": 1, "podUid": "p", "step": 1, "totalSteps": 2, "losses": [1.0] * 60,
                "lastUpdateTime": "2026-11-01T12:00:00Z"}  # fmt: skip
    raw["status"] |= {"progress": progress, "failure": {"reason": "R", "logTail": "x" * 4000}}
    runs.note(raw)
    view = runs.get(Key("ns", "a"))
    assert view is not None
    assert view.status.progress is not None
    assert view.status.failure is not None
    assert (view.status.progress.losses, view.status.failure.log_tail) == ((), "")


class RelistServer:
    def __init__(self) -> None:
        self.runs: list[Object] = []
        self.is_down = False
        self.scopes: set[str | None] = set()
        self.outcomes: list[str] = []

    async def list(self, kind: Kind, namespace: str | None, selector: str = "") -> AsyncIterator[Object]:
        self.scopes.add(namespace)
        if self.is_down:
            raise RetryableError("down")
        for run in self.runs if kind == RUNS else []:
            yield run


async def relist(server: Any, runs: Runs, queue: WorkQueue[Key], *namespaces: str) -> None:
    children = Children(runs, SkippedObjects())
    resync = Resync(
        kube=server, children=children, runs=runs, queue=queue, namespaces=namespaces, every_s=60,
        note=server.outcomes.append,
    )  # fmt: skip
    await resync.fill(retry_s=2)
    await resync.keep()


async def relist_for(server: RelistServer, seconds: float, *namespaces: str) -> tuple[Runs, list[Key]]:
    runs, queue, looked_at = Runs(), WorkQueue[Key](), list[Key]()
    runs.note(raw_run("vanished"))

    async def note(key: Key) -> None:
        looked_at.append(key)

    tasks = [asyncio.create_task(relist(server, runs, queue, *namespaces)), asyncio.create_task(queue.work(note))]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    return runs, looked_at


def test_relist_looks_at_unfinished_and_vanished_runs_but_not_at_finished_ones() -> None:
    server = RelistServer()
    server.runs = [raw_run("new"), raw_run("running", phase=Phase.RUNNING), raw_run("done", phase=Phase.SUCCEEDED)]
    runs, looked_at = run_virtually(relist_for(server, 1))
    assert sorted(key.name for key in looked_at) == ["new", "running", "vanished"]
    assert len(runs) == 4
    assert server.scopes == {None}


def test_finished_run_whose_deletion_was_missed_is_looked_at() -> None:
    """It would stay in the metrics for ever."""
    server = RelistServer()
    server.runs = [raw_run("done", phase=Phase.SUCCEEDED)]

    async def scenario() -> list[Key]:
        asyncio.get_running_loop().call_later(30, server.runs.clear)
        return (await relist_for(server, 70))[1]

    assert Key("ns", "done") in run_virtually(scenario())


def test_runs_of_a_short_time_ago_are_remembered() -> None:
    runs = Runs()
    runs.note(raw_run("a", uid="u"))
    assert runs.has(Key("ns", "a"), "u")
    assert not runs.has(Key("ns", "a"), "another")
    assert not runs.had(Key("ns", "a"), "u")
    runs.forget(Key("ns", "a"))
    assert not runs.has(Key("ns", "a"), "u")
    assert runs.had(Key("ns", "a"), "u")


def test_filling_the_caches_is_life_however_long_it_takes() -> None:
    async def scenario() -> None:
        clock = asyncio.get_running_loop().time
        health = Health(heartbeat_s=10, longest_pass_s=60, clock=clock)
        filling = asyncio.create_task(health.beat_while(asyncio.sleep(5000)))
        await asyncio.sleep(4000)
        assert health.is_alive
        await filling
        await asyncio.sleep(200)
        assert not health.is_alive

    run_virtually(scenario())


def test_relist_keeps_to_the_served_namespaces() -> None:
    server = RelistServer()
    run_virtually(relist_for(server, 1, "a", "b"))
    assert server.scopes == {"a", "b"}


def test_relist_goes_on_after_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    server = RelistServer()
    server.is_down = True
    server.runs = [raw_run("new")]

    async def scenario() -> list[Key]:
        loop = asyncio.get_running_loop()
        # Down when it starts, and again an hour later.
        loop.call_later(30, setattr, server, "is_down", False)
        loop.call_later(3600, setattr, server, "is_down", True)
        loop.call_later(3700, setattr, server, "is_down", False)
        loop.call_later(3700, server.runs.append, raw_run("newer"))
        return (await relist_for(server, 3800))[1]

    assert {Key("ns", "new"), Key("ns", "newer")} <= set(run_virtually(scenario()))
    # Every 2 s until the first, then once a minute, two of which found it down.
    assert Counter(server.outcomes)["failed"] == 15 + 2
    assert server.outcomes[15] == "ok"
    assert "relist failed, again in 2 s: down" in caplog.text
    assert "relist failed, again in 60 s: down" in caplog.text


def test_relist_outlives_what_cannot_be_read(caplog: pytest.LogCaptureFixture) -> None:
    server = RelistServer()
    server.runs = [{"metadata": {}}]

    async def scenario() -> list[Key]:
        asyncio.get_running_loop().call_later(30, setattr, server, "runs", [raw_run("new")])
        return (await relist_for(server, 61))[1]

    assert Key("ns", "new") in run_virtually(scenario())
    assert "KeyError: 'namespace'" in caplog.text
    assert Counter(server.outcomes) == {"failed": 15, "ok": 1}


def test_namespace_that_may_not_be_read_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """It was deleted, and the operator's role in it went along."""

    class Partly(RelistServer):
        async def list(self, kind: Kind, namespace: str | None, selector: str = "") -> AsyncIterator[Object]:
            if namespace == "gone":
                raise ForbiddenError("cannot list resource")
            async for item in super().list(kind, namespace, selector):
                yield item

    server = Partly()
    server.runs = [raw_run("new")]
    assert Key("ns", "new") in run_virtually(relist_for(server, 1, "gone", "ns"))[1]
    assert "relist of namespace gone was refused: cannot list resource" in caplog.text
    assert server.outcomes == ["failed", "ok"]


def test_no_run_is_looked_at_before_the_caches_are_filled() -> None:
    """A Job that is not cached yet would seem to be gone, and its pods not to have been made."""

    class Slow(RelistServer):
        async def list(self, kind: Kind, namespace: str | None, selector: str = "") -> AsyncIterator[Object]:
            await asyncio.sleep(5)
            async for item in super().list(kind, namespace, selector):
                yield item

    server = Slow()
    server.runs = [raw_run("running", phase=Phase.RUNNING)]
    assert run_virtually(relist_for(server, 14))[1] == []
    assert sorted(key.name for key in run_virtually(relist_for(server, 16))[1]) == ["running", "vanished"]


class StuckReconciler:
    works = False

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    async def reconcile(self, key: Key) -> float | None:
        if key.name == "stuck":
            await asyncio.sleep(3600)
        if key.name == "broken":
            raise KeyError("a bug")
        if key.name == "refused" and not self.works:
            raise RetryableError("the API server is overloaded")
        return 5.0

    async def tell_error(self, key: Key, error: KubeError) -> None:
        self.told.append((key.name, str(error)))

    def forget_errors(self, key: Key) -> bool:
        return key.name == "refused"


def make_passes(clock: Callable[[], float]) -> tuple[Passes, Health, CollectorRegistry]:
    registry = CollectorRegistry()
    health = Health(heartbeat_s=10, longest_pass_s=60, clock=clock)
    metrics = OperatorMetrics(registry, queue_depth=lambda: 0, cached={})
    stuck: Any = StuckReconciler()
    return Passes(stuck, health=health, metrics=metrics, timeout_s=60), health, registry


def test_stuck_pass_is_given_up_and_counted() -> None:
    async def scenario() -> tuple[float, CollectorRegistry]:
        passes, _, registry = make_passes(lambda: 0)
        assert registry.get_sample_value("llava_operator_pass_errors_total", {"error": "TimeoutError"}) == 0
        assert await passes.process(Key("ns", "fine")) == 5.0
        with pytest.raises(RetryableError, match="longer than 60 s"):
            await passes.process(Key("ns", "stuck"))
        with pytest.raises(KeyError):
            await passes.process(Key("ns", "broken"))
        return asyncio.get_running_loop().time(), registry

    took_s, registry = run_virtually(scenario())
    assert took_s == pytest.approx(60)
    assert registry.get_sample_value("llava_operator_pass_errors_total", {"error": "TimeoutError"}) == 1
    assert registry.get_sample_value("llava_operator_pass_errors_total", {"error": "KeyError"}) == 1
    assert registry.get_sample_value("llava_operator_pass_duration_seconds_count") == 3


def test_errors_of_passes_are_told_and_taken_back_by_a_pass_of_its_own() -> None:
    async def scenario() -> None:
        passes, _, _ = make_passes(lambda: 0)
        reconciler: Any = passes._reconciler
        for name, error in (("refused", RetryableError), ("stuck", RetryableError), ("broken", KeyError)):
            with pytest.raises(error):
                await passes.process(Key("ns", name))
        refused, late = ("refused", "the API server is overloaded"), ("stuck", "the pass took longer than 60 s")
        assert reconciler.told == [refused, late], "a bug is not the API server's"
        reconciler.works = True
        assert await passes.process(Key("ns", "refused")) == 0.0
        assert await passes.process(Key("ns", "fine")) == 5.0

    run_virtually(scenario())


def test_process_is_alive_only_while_heartbeats_come_through_the_queue() -> None:
    async def scenario() -> None:
        clock = asyncio.get_running_loop().time
        passes, health, _ = make_passes(clock)
        queue: WorkQueue[Key] = WorkQueue(expected=(RetryableError,))
        beating = asyncio.create_task(health.keep_beating(queue))
        worker = asyncio.create_task(queue.work(passes.process))
        await asyncio.sleep(1000)
        assert health.is_alive
        worker.cancel()
        await asyncio.sleep(60 + MISSED_BEATS * 10 + 11)
        assert not health.is_alive, "the process answers, but its queue stands still"
        beating.cancel()

    run_virtually(scenario())


def test_heartbeat_does_not_queue_behind_a_start_with_thousands_of_runs() -> None:
    async def scenario() -> None:
        clock = asyncio.get_running_loop().time
        passes, health, _ = make_passes(clock)
        queue: WorkQueue[Key] = WorkQueue(expected=(RetryableError,))

        async def process(key: Key) -> float | None:
            if key != HEARTBEAT:
                await asyncio.sleep(1)
                return None
            return await passes.process(key)

        for number in range(5000):
            queue.add(Key("ns", f"run-{number}"))
        tasks = [asyncio.create_task(health.keep_beating(queue)), asyncio.create_task(queue.work(process))]
        for _ in range(10):
            await asyncio.sleep(100)
            assert queue.depth > 3000
            assert health.silence_s < 12
        for task in tasks:
            task.cancel()

    run_virtually(scenario())


async def test_heartbeat_is_no_pass() -> None:
    passes, _, registry = make_passes(lambda: 0)
    assert await passes.process(HEARTBEAT) is None
    assert registry.get_sample_value("llava_operator_pass_duration_seconds_count") == 0
