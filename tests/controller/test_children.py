"""The cache of Jobs and pods: what gets in, what stays out, and what a relist makes of it."""

import logging
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_api.constants import API_VERSION, KIND, LABEL_COMPLETION_INDEX, LABEL_RUN
from llava_operator.cache.children import Children
from llava_operator.cache.skipped import SkippedObjects
from llava_operator.cache.views import parse_job
from llava_operator.cache.wire import ForeignError, ForeignReason
from llava_operator.kube.kinds import JOBS
from llava_operator.kube.objects import Key, Object
from llava_operator.recent import MAX_KEPT
from tests.controller.makers import KnownRuns
from tests.controller.test_views import raw_job, raw_pod

JOB = parse_job(raw_job())
RUNS = {(Key("ns", "r"), "run"), (Key("ns", "s"), "other-run"), (Key("elsewhere", "r"), "third-run")}


def make_children(skipped: SkippedObjects | None = None) -> Children:
    return Children(KnownRuns(*RUNS), skipped or SkippedObjects())


def test_events_fill_and_empty_the_cache() -> None:
    children = make_children()
    assert children.note_job(raw_job()) == Key("ns", "r")
    assert children.note_pod(raw_pod()) == Key("ns", "r")
    assert [pod.uid for pod in children.pods_of(JOB)] == ["p"]
    children.note_pod(raw_pod(), deleted=True)
    children.note_job(raw_job(), deleted=True)
    assert children.pods_of(JOB) == ()
    assert children.job(Key("ns", "r-train-1")) is None


def test_late_deletion_of_a_namesake_deletes_nothing() -> None:
    children = make_children()
    children.note_job(raw_job(uid="new"))
    children.note_job(raw_job(uid="old"), deleted=True)
    job = children.job(Key("ns", "r-train-1"))
    assert job is not None
    assert job.uid == "new"


class ListServer:
    """Lists what it was given; ``during`` is called between the Jobs and the pods."""

    def __init__(self, jobs: list[Object], pods: list[Object], during: Any = None) -> None:
        self._jobs, self._pods, self._during = jobs, pods, during

    async def list(self, kind: Any, namespace: str | None, selector: str) -> Any:
        for item in self._jobs if kind == JOBS else self._pods:
            yield item
        if kind == JOBS and self._during:
            self._during()


async def test_relist_drops_what_a_lost_event_left_behind() -> None:
    children = make_children()
    children.note_job(raw_job("r-gone-1", uid="gone"))
    children.note_pod(raw_pod("r-gone-1-x", uid="gone-pod", job="gone"))
    await children.relist(ListServer([raw_job()], [raw_pod()]), None)  # type: ignore[arg-type]
    assert children.job(Key("ns", "r-gone-1")) is None
    assert children.pods_of(replace(JOB, uid="gone")) == ()
    assert [pod.uid for pod in children.pods_of(JOB)] == ["p"]


async def test_events_during_a_relist_are_newer_than_the_list() -> None:
    children = make_children()

    def meanwhile() -> None:
        children.note_job(raw_job(conditions=[{"type": "Complete", "status": "True"}]))
        children.note_job(raw_job("r-merge-1", uid="deleted"), deleted=True)
        children.note_pod(raw_pod(phase="Succeeded"))

    stale = [raw_job(), raw_job("r-merge-1", uid="deleted")]
    await children.relist(ListServer(stale, [raw_pod()], meanwhile), None)  # type: ignore[arg-type]
    job = children.job(Key("ns", "r-train-1"))
    assert job is not None
    assert job.complete
    assert children.job(Key("ns", "r-merge-1")) is None
    assert [pod.phase for pod in children.pods_of(JOB)] == ["Succeeded"]


# --- what is not ours


class Count:
    def __init__(self) -> None:
        self.skipped: Counter[tuple[str, str]] = Counter()

    def __call__(self, kind: str, reason: str) -> None:
        self.skipped[kind, reason] += 1


def test_pod_needs_a_job_of_its_run_in_its_namespace() -> None:
    count = Count()
    children = make_children(SkippedObjects(count))
    children.note_job(raw_job())
    children.note_job(raw_job("s-train-1", uid="js") | {})
    elsewhere = raw_pod("forged-1")
    elsewhere["metadata"]["namespace"] = "elsewhere"
    of_another_run = raw_pod("forged-2")
    of_another_run["metadata"]["labels"][LABEL_RUN] = "s"
    for raw in (elsewhere, of_another_run, raw_pod("forged-3", job="unknown"), raw_pod("forged-4", job=None)):
        assert children.note_pod(raw) is None
        assert children.pod(Key(raw["metadata"]["namespace"], raw["metadata"]["name"])) is None
    assert children.pods_of(JOB) == ()
    assert count.skipped == {("Pod", "unowned"): 4}


@pytest.mark.parametrize(
    ("namespace", "name", "uid"), [("ns", "r", "stale"), ("ns", "unknown", "run"), ("elsewhere", "r", "run")]
)
def test_job_needs_a_run_of_its_namespace(namespace: str, name: str, uid: str) -> None:
    count = Count()
    children = make_children(SkippedObjects(count))
    raw = raw_job()
    raw["metadata"]["namespace"] = namespace
    raw["metadata"]["labels"][LABEL_RUN] = name
    raw["metadata"]["ownerReferences"][-1].update(name=name, uid=uid)
    assert children.note_job(raw) is None
    assert children.job(Key(namespace, "r-train-1")) is None
    assert count.skipped == {("Job", "unowned"): 1}


def test_child_that_loses_its_owner_is_dropped_and_its_run_looked_at() -> None:
    count = Count()
    children = make_children(SkippedObjects(count))
    children.note_job(raw_job())
    children.note_pod(raw_pod())
    assert children.note_pod(raw_pod(job=None)) == Key("ns", "r")
    orphan = raw_job()
    orphan["metadata"]["ownerReferences"] = []
    assert children.note_job(orphan) == Key("ns", "r")
    assert children.job(Key("ns", "r-train-1")) is None
    assert children.pods_of(JOB) == ()
    assert not count.skipped, "they were ours until now"


def test_children_of_a_deleted_run_are_no_strangers() -> None:
    count = Count()
    runs = KnownRuns((Key("ns", "r"), "run"))
    children = Children(runs, SkippedObjects(count))
    children.note_job(raw_job())
    children.note_pod(raw_pod())
    runs.runs, runs.gone = set(), runs.runs
    # Before the garbage collector has come to them they look as ever.
    children.note_job(raw_job())
    children.note_job(raw_job())
    for _ in range(2):
        children.note_pod(raw_pod())
    going = raw_job()
    going["metadata"]["deletionTimestamp"] = "2026-11-01T12:00:00Z"
    for _ in range(2):
        children.note_job(going)
    going_pod = raw_pod()
    going_pod["metadata"]["deletionTimestamp"] = "2026-11-01T12:00:00Z"
    for deleted in (False, False, True):
        children.note_pod(going_pod, deleted=deleted)
    children.note_job(raw_job(), deleted=True)
    assert children.pod(Key("ns", "r-train-1-0-abcde")) is None
    assert children.job(Key("ns", "r-train-1")) is None
    assert not count.skipped


def test_foreign_namesake_takes_nothing_away() -> None:
    """Somebody's object under a child's name, after ours was deleted by hand or before our event has come."""
    children = make_children()
    children.note_job(raw_job())
    children.note_pod(raw_pod())
    stranger, strange_pod = raw_job(uid="stranger"), raw_pod(uid="strange", job=None)
    stranger["metadata"]["ownerReferences"] = []
    assert children.note_job(stranger) is None
    assert children.note_pod(strange_pod) is None
    assert [pod.uid for pod in children.pods_of(JOB)] == ["p"]
    assert children.job(Key("ns", "r-train-1")) is not None


@pytest.mark.parametrize(("label", "reason"), [("", "unlabelled"), ("s", "unowned")])
def test_label_must_name_the_run_that_the_owner_leads_to(label: str, reason: str) -> None:
    count = Count()
    children = make_children(SkippedObjects(count))
    mislabelled = raw_job()
    mislabelled["metadata"]["labels"][LABEL_RUN] = label
    assert children.note_job(mislabelled) is None
    children.note_job(raw_job())
    pod = raw_pod()
    pod["metadata"]["labels"][LABEL_RUN] = label
    assert children.note_pod(pod) is None
    assert count.skipped == {("Job", reason): 1, ("Pod", reason): 1}


async def test_pods_of_a_job_that_was_made_during_a_relist_are_known() -> None:
    children = make_children()
    server: Any = ListServer([], [raw_pod()], lambda: children.note_job(raw_job()))
    await children.relist(server, None)
    assert [pod.uid for pod in children.pods_of(JOB)] == ["p"]


def test_another_job_under_the_same_name_takes_its_place() -> None:
    children = make_children()
    children.note_job(raw_job(uid="old"))
    children.note_pod(raw_pod("old-pod", job="old"))
    children.note_job(raw_job(uid="new"))
    assert children.note_pod(raw_pod("late", job="old")) is None
    assert children.note_pod(raw_pod("fresh", job="new")) == Key("ns", "r")


async def test_relist_of_a_namespace_leaves_the_others_alone() -> None:
    children = make_children()
    elsewhere = raw_job("r-train-1", uid="je")
    elsewhere["metadata"]["namespace"] = "elsewhere"
    elsewhere["metadata"]["ownerReferences"][-1]["uid"] = "third-run"
    children.note_job(elsewhere)
    children.note_job(raw_job("r-gone-1", uid="gone"))
    await children.relist(ListServer([raw_job()], [raw_pod()]), "ns")  # type: ignore[arg-type]
    assert children.job(Key("elsewhere", "r-train-1")) is not None
    assert children.job(Key("ns", "r-gone-1")) is None
    assert [pod.uid for pod in children.pods_of(JOB)] == ["p"]


async def test_relist_passes_over_what_is_not_ours() -> None:
    count = Count()
    children = make_children(SkippedObjects(count))
    poison = raw_pod("poison")
    poison["metadata"]["labels"][LABEL_COMPLETION_INDEX] = "x"
    nameless = raw_job("nameless", uid="n")
    nameless["metadata"]["labels"][LABEL_RUN] = ""
    leaving = raw_pod("leaving", job="gone")
    leaving["metadata"]["deletionTimestamp"] = "2026-11-01T12:00:00Z"
    server: Any = ListServer([nameless, raw_job()], [poison, raw_pod("forged", job="n"), leaving, raw_pod()])
    await children.relist(server, None)
    assert [pod.uid for pod in children.pods_of(JOB)] == ["p"]
    assert count.skipped == {("Job", "unlabelled"): 1, ("Pod", "unreadable"): 1, ("Pod", "unowned"): 1}


def test_what_is_passed_over_is_counted_always_and_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    count = Count()
    skipped = SkippedObjects(count)
    error = ForeignError(ForeignReason.UNOWNED, "no Job is its controller\n\x1b[31mred")
    for number in range(50):
        skipped.note("Pod", {"metadata": {"namespace": "ns", "name": f"p-{number}"}}, error)
    assert count.skipped == {("Pod", "unowned"): 50}
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "Pod p-0 in namespace ns is passed over" in record.getMessage()
    # A memory that anybody could fill would be an attack of its own.
    for number in range(2 * MAX_KEPT):
        skipped.note("Pod", {"metadata": {"namespace": f"ns-{number}", "name": "p"}}, error)
    assert len(skipped._told) == MAX_KEPT


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["", "r", "s", "..", "r/../s", "run", "other-run", "j", "r-train-1"]) | st.text(max_size=8)
OWNERS = st.lists(
    st.fixed_dictionaries(
        {"uid": NAMES, "name": NAMES},
        optional={
            "controller": st.booleans() | st.none(),
            "kind": st.sampled_from(["Job", KIND, "ReplicaSet"]) | JSON,
            "apiVersion": st.sampled_from(["batch/v1", API_VERSION]) | JSON,
        },
    ),
    max_size=3,
)
LABELS = st.dictionaries(
    st.sampled_from([LABEL_RUN, LABEL_COMPLETION_INDEX, "other"]), NAMES | st.integers().map(str), max_size=3
)
STATUS = st.dictionaries(
    st.sampled_from(["phase", "conditions", "containerStatuses", "reason", "message"]),
    JSON | st.lists(st.dictionaries(st.sampled_from(["type", "status", "reason", "name", "state"]), JSON, max_size=4)),
    max_size=4,
)


@st.composite
def hostile(draw: st.DrawFn) -> Object:
    """What the API server lets anybody write: names and UIDs are sane, all else is not."""
    meta: Object = {
        "namespace": draw(st.sampled_from(["ns", "elsewhere"])),
        "name": draw(st.sampled_from(["r-train-1", "r-train-1-0-abcde", "x"])),
        "uid": draw(st.sampled_from(["j", "p", "u"])),
    }
    meta |= draw(st.fixed_dictionaries({}, optional={"labels": LABELS | JSON, "ownerReferences": OWNERS | JSON}))
    return {"metadata": meta, "status": draw(STATUS | JSON), "spec": draw(JSON)}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["job", "pod"]), hostile(), st.booleans()), max_size=6))
def test_nothing_that_a_tenant_can_write_gets_through(objects: list[tuple[str, Object, bool]]) -> None:
    """Neither an exception, nor a key of no run, nor a pod that no Job of the run in its namespace owns."""
    children = make_children()
    children.note_job(raw_job())
    children.note_pod(raw_pod())
    for kind, raw, deleted in objects:
        note = children.note_job if kind == "job" else children.note_pod
        assert note(raw, deleted=deleted) in {None, *(key for key, _ in RUNS)}
    for key, job in children._jobs.items():
        assert (Key(key.namespace, job.run), job.owner_uid) in RUNS
    for key, pod in children._pods.items():
        assert pod.key == key
        assert pod.index is None or pod.index >= 0
    for job in children._jobs.values():
        for pod in children.pods_of(job):
            assert (pod.key.namespace, pod.job_uid, pod.run) == (job.key.namespace, job.uid, job.run)
