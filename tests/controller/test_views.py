"""Jobs and pods as they are on the wire, and what is kept of them."""

from typing import Any

import pytest

from llava_operator.children import Children
from llava_operator.resources import JOBS
from llava_operator.views import JobEnd, Key, Termination, parse_job, parse_pod
from llava_operator.wire import Object


def raw_pod(name: str = "r-train-1-0-abcde", *, uid: str = "p", job: str | None = "j", **status: Any) -> Object:
    owners = [{"uid": job, "controller": True, "kind": "Job"}] if job else []
    labels = {"finetune.llava.dev/run": "r", "batch.kubernetes.io/job-completion-index": "0"}
    meta = {"namespace": "ns", "name": name, "uid": uid, "labels": labels, "ownerReferences": owners}
    return {"metadata": meta, "spec": {"containers": []}, "status": status}


def raw_job(name: str = "r-train-1", *, uid: str = "j", **status: Any) -> Object:
    owners = [{"uid": "other"}, {"uid": "run", "controller": True}]
    meta = {"namespace": "ns", "name": name, "uid": uid, "labels": {"finetune.llava.dev/run": "r"}}
    return {"metadata": {**meta, "ownerReferences": owners}, "spec": {}, "status": status}


def container(**state: Any) -> list[Object]:
    return [{"name": "sidecar", "state": {"running": {}}}, {"name": "stage", "state": state}]


def test_new_pod() -> None:
    pod = parse_pod(raw_pod())
    assert (pod.key, pod.run, pod.job_uid, pod.index) == (Key("ns", "r-train-1-0-abcde"), "r", "j", 0)
    assert (pod.phase, pod.started, pod.waiting, pod.ended, pod.deleting) == ("Pending", False, "", None, False)


def test_unschedulable_pod_says_why() -> None:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
    assert parse_pod(raw_pod(phase="Pending", conditions=[condition])).waiting == "Unschedulable: 0/3 nodes"


def test_pod_that_cannot_pull_says_why() -> None:
    states = container(waiting={"reason": "ImagePullBackOff", "message": "no such image"})
    assert parse_pod(raw_pod(phase="Pending", containerStatuses=states)).waiting == "ImagePullBackOff: no such image"


def test_running_pod() -> None:
    pod = parse_pod(raw_pod(phase="Running", containerStatuses=container(running={"startedAt": "t"})))
    assert (pod.started, pod.waiting) == (True, "")


def test_ended_pod() -> None:
    terminated = {"exitCode": 137, "reason": "OOMKilled", "message": None, "finishedAt": "t"}
    pod = parse_pod(raw_pod(phase="Failed", containerStatuses=container(terminated=terminated)))
    assert pod.ended == Termination(exit_code=137, reason="OOMKilled", message="", finished_at="t")


def test_disrupted_pod() -> None:
    condition = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "why"}
    pod = parse_pod(raw_pod(phase="Failed", reason="Evicted", message="low on memory", conditions=[condition]))
    assert (pod.disruption, pod.trouble) == ("PreemptionByScheduler: why", "Evicted: low on memory")


def test_long_text_is_cut() -> None:
    assert len(parse_pod(raw_pod(phase="Failed", reason="R", message="x" * 9999)).trouble) == 1024


@pytest.mark.parametrize(
    ("conditions", "complete", "failing", "failed"),
    [
        ([], False, None, None),
        ([{"type": "Complete", "status": "True"}], True, None, None),
        ([{"type": "Complete", "status": "False"}], False, None, None),
        ([{"type": "FailureTarget", "status": "True", "reason": "R"}],
         False, JobEnd(reason="R", message="", time=""), None),
        ([{"type": "Failed", "status": "True", "reason": "R", "message": "m", "lastTransitionTime": "t"}],
         False, None, JobEnd(reason="R", message="m", time="t")),
    ],
)  # fmt: skip
def test_job_conditions(
    conditions: list[Object], complete: bool, failing: JobEnd | None, failed: JobEnd | None
) -> None:
    job = parse_job(raw_job(conditions=conditions))
    assert (job.complete, job.failing, job.failed, job.owner_uid) == (complete, failing, failed, "run")


def test_what_is_no_pod_is_refused() -> None:
    with pytest.raises(ValueError, match="metadata"):
        parse_pod({"kind": "Status"})


# --- the cache


def test_events_fill_and_empty_the_cache() -> None:
    children = Children()
    assert children.note_job(raw_job()) == Key("ns", "r")
    assert children.note_pod(raw_pod()) == Key("ns", "r")
    assert [pod.uid for pod in children.pods_of("j")] == ["p"]
    children.note_pod(raw_pod(), deleted=True)
    children.note_job(raw_job(), deleted=True)
    assert children.pods_of("j") == ()
    assert children.job(Key("ns", "r-train-1")) is None


def test_late_deletion_of_a_namesake_deletes_nothing() -> None:
    children = Children()
    children.note_job(raw_job(uid="new"))
    children.note_job(raw_job(uid="old"), deleted=True)
    job = children.job(Key("ns", "r-train-1"))
    assert job is not None
    assert job.uid == "new"


def test_pod_without_owner_belongs_to_no_job() -> None:
    children = Children()
    children.note_pod(raw_pod(job=None))
    children.note_pod(raw_pod(job=None), deleted=True)
    assert children.pod(Key("ns", "r-train-1-0-abcde")) is None


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
    children = Children()
    children.note_job(raw_job("r-gone-1", uid="gone"))
    children.note_pod(raw_pod("r-gone-1-x", uid="gone-pod", job="gone"))
    await children.relist(ListServer([raw_job()], [raw_pod()]), [None])  # type: ignore[arg-type]
    assert children.job(Key("ns", "r-gone-1")) is None
    assert children.pods_of("gone") == ()
    assert [pod.uid for pod in children.pods_of("j")] == ["p"]


async def test_events_during_a_relist_are_newer_than_the_list() -> None:
    children = Children()

    def meanwhile() -> None:
        children.note_job(raw_job(conditions=[{"type": "Complete", "status": "True"}]))
        children.note_job(raw_job("r-merge-1", uid="deleted"), deleted=True)
        children.note_pod(raw_pod(phase="Succeeded"))

    stale = [raw_job(), raw_job("r-merge-1", uid="deleted")]
    await children.relist(ListServer(stale, [raw_pod()], meanwhile), [None])  # type: ignore[arg-type]
    job = children.job(Key("ns", "r-train-1"))
    assert job is not None
    assert job.complete
    assert children.job(Key("ns", "r-merge-1")) is None
    assert [pod.phase for pod in children.pods_of("j")] == ["Succeeded"]
