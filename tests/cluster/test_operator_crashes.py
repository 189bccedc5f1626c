"""The operator may be killed between any two writes: every run ends the same, and each child is made once."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from typing import Any

import pytest
from kubernetes.aio.client.api_client import ApiClient

from llava_api.constants import (
    LABEL_ATTEMPT,
    LABEL_COMPLETION_INDEX,
    LABEL_NOTIFICATION,
    LABEL_RUN,
    LABEL_STAGE,
    StageName,
)
from llava_operator.acting.api_errors import ApiErrors
from llava_operator.acting.events import EventPublisher
from llava_operator.acting.nodes import Nodes
from llava_operator.acting.notifying import Notifier
from llava_operator.acting.reconcile import Reconciler
from llava_operator.acting.report_authority import Authority
from llava_operator.acting.troubles import Troubles
from llava_operator.build.common import Platform
from llava_operator.cache.children import Children
from llava_operator.cache.progress import ProgressBook
from llava_operator.cache.runs import Runs
from llava_operator.cache.skipped import SkippedObjects
from llava_operator.clock import now
from llava_operator.kube.client import Kube
from llava_operator.kube.errors import KubeError
from llava_operator.kube.kinds import CHILD_SELECTOR, EVENTS, JOBS, PODS, RUNS, VOLUME_CLAIMS, Kind
from llava_operator.kube.objects import Key, Object
from tests.cluster.kubelets import FakeKubelet, deliver, ended, succeed
from tests.cluster.kubelets import running as pod_runs
from tests.cluster.worlds import NAMESPACES, connect, is_true, make_run
from tests.kubectl import Kubectl

pytestmark = pytest.mark.cluster

NAMESPACE = "crashes"
TICK_S = 0.25
TIMEOUT_S = 300
STORAGE = {"size": "1Gi", "retain": "OnSuccess"}
RECEIVERS = [
    {
        "name": "team", "events": ["Succeeded", "Failed", "Restarted", "Suspended"],
        "webhook": {"url": "https://hooks.example"},
    }
]  # fmt: skip
"""That somebody is told of what happens is a write with it, one that makes a Job, and one when the Job has ended."""
PERIOD = 5


HURRY = 8
"""How much faster the operator's clock goes, so that nobody waits for its patience."""
_BEGUN = now()

Behaviour = Callable[[Object], Object | None]
Meddle = Callable[[Kube, Object, list[Object]], Awaitable[None]]


def hurried() -> datetime:
    return _BEGUN + (now() - _BEGUN) * HURRY


class Crash(BaseException):
    """The process is gone, whatever the code would like to do about it."""


class MortalKube(Kube):
    """Dies right after its write number ``dies_after``, before anyone learns of the answer.

    Writes that go side by side are done one after the other, so that each is the last of some process.
    """

    def __init__(self, api: ApiClient, ledger: "Ledger", *, dies_after: int | None) -> None:
        super().__init__(api, timeout_s=20)
        self._ledger = ledger
        self._left = dies_after
        self._turn = asyncio.Lock()

    async def create(self, kind: Kind, namespace: str | None, body: Object, **options: Any) -> Object:
        async with self._write():
            made = await super().create(kind, namespace, body, **options)
            self._ledger.created[kind.plural, made["metadata"]["name"]] += 1
        return made

    async def patch(self, kind: Kind, namespace: str, name: str, body: Object, **options: Any) -> Object:
        async with self._write():
            return await super().patch(kind, namespace, name, body, **options)

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str, **options: Any) -> Object:
        async with self._write():
            return await super().delete(kind, namespace, name, uid, **options)

    @contextlib.asynccontextmanager
    async def _write(self) -> AsyncIterator[None]:
        async with self._turn:
            if self._left == 0:
                raise Crash
            yield
            self._note_write()

    def _note_write(self) -> None:
        self._ledger.num_writes += 1
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                raise Crash


class Ledger:
    """What all processes together have written for one run."""

    def __init__(self) -> None:
        self.created: Counter[tuple[str, str]] = Counter()
        self.num_writes = 0


class Process:
    """An operator's process, as far as one run is concerned; it knows nothing of the one before it."""

    def __init__(self, kube: Kube) -> None:
        self.runs = Runs()
        self.children = Children(self.runs, SkippedObjects())
        platform = Platform(trainer_image="trainer", report_url="https://report/", notifier_image="operator")
        self.reconciler = Reconciler(
            kube=kube,
            children=self.children,
            runs=self.runs,
            progress=ProgressBook(interval_s=15, writes_per_s=5),
            nodes=Nodes(kube=kube, now=now),
            events=EventPublisher(kube, instance="test", now=now),
            authority=Authority(certificate="pem"),
            notifier=Notifier(kube=kube, children=self.children, platform=platform, now=hurried),
            platform=platform,
            troubles=Troubles(kube=kube, now=hurried),
            errors=ApiErrors(now=hurried),
            now=hurried,
        )


class Life:
    """One run, and the processes that look after it in turn.

    The first process dies after its write number ``first``, each later one after ``period`` more; without them the
    first lives on.
    """

    def __init__(self, api: ApiClient, name: str, *, first: int | None = None, period: int | None = None) -> None:
        self.key = Key(NAMESPACE, name)
        self.ledger = Ledger()
        self.deaths: list[int] = []
        """Numbers of the writes after which a process died, counted over all of them."""
        self._api = api
        self._period = period
        self._process = Process(MortalKube(api, self.ledger, dies_after=first))

    async def step(self, run: Object | None, jobs: list[Object], pods: list[Object]) -> None:
        if run is not None:
            self._process.runs.note(run)
        for raw in jobs:
            self._process.children.note_job(raw)
        for raw in pods:
            self._process.children.note_pod(raw)
        try:
            while await self._process.reconciler.reconcile(self.key) == 0.0:
                pass
        except Crash:
            self.deaths.append(self.ledger.num_writes)
            self._process = Process(MortalKube(self._api, self.ledger, dies_after=self._period))

    async def settle(self) -> None:
        """Step until no process dies of it any more."""
        num_deaths = -1
        while num_deaths != len(self.deaths):
            num_deaths = len(self.deaths)
            await self.step(None, [], [])


@contextlib.asynccontextmanager
async def kubelet(kube: Kube, behave: Behaviour = succeed) -> AsyncIterator[None]:
    tasks = [
        asyncio.create_task(FakeKubelet(kube, NAMESPACE, behave).run()),
        asyncio.create_task(FakeKubelet(kube, NAMESPACE, deliver, LABEL_NOTIFICATION).run()),
    ]
    yield
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def of_run(children: list[Object], life: Life) -> list[Object]:
    return [raw for raw in children if raw["metadata"]["labels"][LABEL_RUN] == life.key.name]


async def live(kube: Kube, lives: list[Life], meddle: Meddle | None = None) -> dict[str, Object]:
    """Let every run live until it has ended; their last states by name. ``meddle`` may change things."""
    for life in lives:
        # That the claim loses its owner is a write, too.
        await kube.create(RUNS, NAMESPACE, make_run(life.key.name, NAMESPACE, storage=STORAGE, notifications=RECEIVERS))
    mine = {life.key.name for life in lives}
    ended: dict[str, Object] = {}
    async with asyncio.timeout(TIMEOUT_S):
        while len(ended) < len(lives):
            runs = {raw["metadata"]["name"]: raw async for raw in kube.list(RUNS, NAMESPACE)}
            jobs = [raw async for raw in kube.list(JOBS, NAMESPACE, CHILD_SELECTOR)]
            pods = [raw async for raw in kube.list(PODS, NAMESPACE, CHILD_SELECTOR)]
            steps = [
                life.step(runs[life.key.name], of_run(jobs, life), of_run(pods, life))
                for life in lives
                if life.key.name not in ended
            ]
            await asyncio.gather(*steps)
            if meddle:
                await asyncio.gather(*(meddle(kube, runs[life.key.name], of_run(pods, life)) for life in lives))
            async for run in kube.list(RUNS, NAMESPACE):
                name, status = run["metadata"]["name"], run.get("status", {})
                is_over = is_true(status, "Complete") or (is_true(status, "Failed") and not meddle)
                is_over = is_over and all(one["state"] != "Pending" for one in status["notifications"])
                if name in mine and is_over:
                    ended[name] = run
            await asyncio.sleep(TICK_S)
    await asyncio.gather(*(life.settle() for life in lives))
    async for claim in kube.list(VOLUME_CLAIMS, NAMESPACE, CHILD_SELECTOR):
        if claim["metadata"]["labels"][LABEL_RUN] in ended:
            assert "ownerReferences" not in claim["metadata"], "it was called succeeded, and its volume was not kept"
    return ended


def timeless(value: Any, name: str) -> Any:
    """A status without what differs between two runs by nature."""
    if isinstance(value, dict):
        different = (
            "startTime", "runningTime", "completionTime", "lastTransitionTime", "jobUid",
            "productiveSeconds", "lostSeconds", "id", "time",
        )  # fmt: skip
        return {key: timeless(item, name) for key, item in value.items() if key not in different}
    if isinstance(value, list):
        return [timeless(item, name) for item in value]
    return value.replace(name, "NAME") if isinstance(value, str) else value


async def events_of(kube: Kube, name: str) -> list[str]:
    events = [raw async for raw in kube.list(EVENTS, NAMESPACE)]
    return sorted(raw["reason"] for raw in events if raw["regarding"]["name"] == name)


@pytest.fixture
async def kube(api_server: Kubectl, crd: None) -> AsyncIterator[Kube]:
    assert api_server.kubeconfig is not None
    async with connect(api_server.kubeconfig) as api:
        made = Kube(api, timeout_s=20)
        await made.create(NAMESPACES, None, {"metadata": {"name": NAMESPACE}})
        yield made
    api_server.run("delete", "namespace", NAMESPACE, "--timeout=120s")


async def test_a_crash_after_any_write_changes_nothing(kube: Kube) -> None:
    async with kubelet(kube):
        undisturbed = Life(kube._api, "undisturbed")
        # Together the first ones die once after every single write; the last one dies after each.
        lives = [Life(kube._api, f"dies-{n}", first=n, period=PERIOD) for n in range(1, PERIOD + 1)]
        lives.append(Life(kube._api, "dies-always", first=1, period=1))
        ended = await live(kube, [undisturbed, *lives])
    expected = ended["undisturbed"]["status"]
    assert is_true(expected, "Complete")
    assert told(ended["undisturbed"]) == [("Succeeded", "Delivered")]
    expected_events = await events_of(kube, "undisturbed")
    for life in lives:
        name = life.key.name
        assert timeless(ended[name]["status"], name) == timeless(expected, "undisturbed"), name
        assert set(life.ledger.created.values()) == {1}, f"{name} made a child twice: {life.ledger.created}"
        assert len(life.ledger.created) == len(undisturbed.ledger.created), name
        assert await events_of(kube, name) == expected_events, name
    # One status write begins the run and one ends each stage; those in between depend on the moment of looking.
    fewest = min(life.ledger.num_writes for life in lives)
    assert fewest >= len(undisturbed.ledger.created) + 1 + 4
    assert {n for life in lives[:-1] for n in life.deaths} >= set(range(1, fewest + 1))
    assert lives[-1].deaths == list(range(1, lives[-1].ledger.num_writes + 1))


# --- a run that meets with everything


def in_trouble(pod: Object) -> Object | None:
    """Training fails in attempt 1, is evicted in 2, suspended in 3, and ends badly in 4."""
    labels = pod["metadata"]["labels"]
    attempt = int(labels[LABEL_ATTEMPT])
    if labels[LABEL_STAGE] != StageName.TRAIN or attempt > 4:
        return succeed(pod)
    if pod["status"]["phase"] == "Pending":
        return pod_runs()
    exit_code = {1: 71, 4: 67}.get(attempt)
    return ended(exit_code, "") if exit_code and labels[LABEL_COMPLETION_INDEX] == "1" else None


async def meddle(kube: Kube, run: Object, pods: list[Object]) -> None:
    """Evict, suspend, let go on and retry, each when its time has come."""
    name, status = run["metadata"]["name"], run.get("status", {})
    train: Object = next((stage for stage in status.get("stages", []) if stage["name"] == "train"), {})
    newest = (train.get("attempts") or [{"number": 0, "state": ""}])[-1]
    where = (newest["number"], newest["state"])
    wanted: Object = {}
    if where == (2, "Running"):
        first = next((pod for pod in pods if pod["metadata"]["labels"][LABEL_ATTEMPT] == "2"), None)
        if first is not None and first["metadata"]["labels"][LABEL_STAGE] == StageName.TRAIN:
            eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": first["metadata"]["name"]}}
            with contextlib.suppress(KubeError):
                path = f"{PODS.path(NAMESPACE, first['metadata']['name'])}/eviction"
                await kube._request("POST", path, body=eviction)
    elif where == (3, "Running"):
        wanted = {"suspend": True}
    elif status.get("phase") == "Suspended":
        wanted = {"suspend": False}
    elif status.get("phase") == "Failed":
        wanted = {"retry": 1}
    if wanted:
        await kube.patch(RUNS, NAMESPACE, name, {"spec": wanted})


def story(run: Object) -> Any:
    """What happened to a run, without instants and names that chance has made."""
    status = run["status"]
    stages = [
        (stage["name"], stage["state"], stage["restarts"],
         [(one["number"], one["state"], one["because"], one["counts"]) for one in stage["attempts"]])
        for stage in status["stages"]
    ]  # fmt: skip
    conditions = [(held["type"], held["status"], held["reason"]) for held in status["conditions"]]
    return stages, conditions, status["accounting"]["restartsByReason"], status["retry"], told(run)


def told(run: Object) -> list[tuple[str, str]]:
    """What somebody was told of, and whether it was taken."""
    return [(one["event"], one["state"]) for one in run["status"]["notifications"]]


async def test_a_crash_after_any_write_of_a_run_in_trouble_changes_nothing(kube: Kube) -> None:
    async with kubelet(kube, in_trouble):
        undisturbed = Life(kube._api, "undisturbed")
        lives = [Life(kube._api, f"dies-{n}", first=n, period=PERIOD) for n in range(1, PERIOD + 1)]
        over = await live(kube, [undisturbed, *lives], meddle)
    expected = story(over["undisturbed"])
    assert expected[0][1] == (
        "train", "Succeeded", 0,
        [
            (1, "Gone", "WorkerKilled", True), (2, "Gone", "Drained", False), (3, "Gone", "Suspended", False),
            (4, "Gone", "LossNotFinite", True), (5, "Gone", "Succeeded", False),
        ],
    )  # fmt: skip
    assert expected[-1] == [(event, "Delivered") for event in ("Restarted", "Suspended", "Failed", "Succeeded")]
    for life in lives:
        assert story(over[life.key.name]) == expected, life.key.name
        assert set(life.ledger.created.values()) == {1}, f"{life.key.name} made a child twice: {life.ledger.created}"
    fewest = min(life.ledger.num_writes for life in lives)
    assert {n for life in lives for n in life.deaths} >= set(range(1, fewest + 1))
