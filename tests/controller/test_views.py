"""Jobs and pods as they are on the wire, and what is kept of them."""

from typing import Any

import pytest

from llava_operator.cache.views import JobEnd, Termination, parse_job, parse_pod
from llava_operator.cache.wire import ForeignError
from llava_operator.kube.objects import Key, Object

TIME = "2026-11-01T12:00:00Z"


def raw_pod(name: str = "r-train-1-0-abcde", *, uid: str = "p", job: str | None = "j", **status: Any) -> Object:
    owners = [{"uid": job, "controller": True, "apiVersion": "batch/v1", "kind": "Job", "name": "r"}] if job else []
    labels = {"finetune.llava.dev/run": "r", "batch.kubernetes.io/job-completion-index": "0"}
    meta = {"namespace": "ns", "name": name, "uid": uid, "labels": labels, "ownerReferences": owners}
    return {"metadata": meta, "spec": {"containers": []}, "status": status}


def raw_job(name: str = "r-train-1", *, uid: str = "j", **status: Any) -> Object:
    run = {"apiVersion": "finetune.llava.dev/v1alpha1", "kind": "LlavaFineTune", "name": "r", "uid": "run"}
    owners = [{"uid": "other"}, {**run, "controller": True}]
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


def test_bound_pod_waits_for_no_scheduler() -> None:
    """The scheduler's word may be written after somebody else has bound the pod."""
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
    states = container(waiting={"reason": "ContainerCreating"})
    pod = raw_pod(phase="Pending", conditions=[condition], containerStatuses=states)
    assert parse_pod({**pod, "spec": {"nodeName": "n"}}).waiting == "ContainerCreating"


def test_pod_that_cannot_pull_says_why() -> None:
    states = container(waiting={"reason": "ImagePullBackOff", "message": "no such image"})
    assert parse_pod(raw_pod(phase="Pending", containerStatuses=states)).waiting == "ImagePullBackOff: no such image"


def test_running_pod() -> None:
    pod = parse_pod(raw_pod(phase="Running", containerStatuses=container(running={"startedAt": "t"})))
    assert (pod.started, pod.waiting) == (True, "")


@pytest.mark.parametrize(("text", "finished_at"), [(TIME, TIME), ("t", ""), (None, "")])
def test_ended_pod(text: str | None, finished_at: str) -> None:
    terminated = {"exitCode": 137, "reason": "OOMKilled", "message": None, "finishedAt": text}
    pod = parse_pod(raw_pod(phase="Failed", containerStatuses=container(terminated=terminated)))
    assert pod.ended == Termination(exit_code=137, reason="OOMKilled", message="", finished_at=finished_at)


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
        ([{"type": "Failed", "status": "True", "reason": "R", "message": "m", "lastTransitionTime": TIME}],
         False, None, JobEnd(reason="R", message="m", time=TIME)),
    ],
)  # fmt: skip
def test_job_conditions(
    conditions: list[Object], complete: bool, failing: JobEnd | None, failed: JobEnd | None
) -> None:
    job = parse_job(raw_job(conditions=conditions))
    assert (job.complete, job.failing, job.failed, job.owner_uid) == (complete, failing, failed, "run")


@pytest.mark.parametrize(
    ("text", "indexes"),
    [
        ("", ()), ("3", (3,)), ("0,2-4", (0, 2, 3, 4)), ("31-99", (31,)), ("0-999999999", tuple(range(32))),
        ("x,-1,2-,5-3,1e9,\u0663", (2,)), ("9" * 100_000, ()), ("7," * 100_000, (7,)),
    ],
)  # fmt: skip
def test_indexes_that_have_failed(text: str, indexes: tuple[int, ...]) -> None:
    """As a Job has them, or whoever may write its status."""
    job = parse_job(raw_job(failedIndexes=text, succeeded=2, failed=-5))
    assert (job.failed_indexes, job.num_succeeded, job.num_failed) == (indexes, 2, 0)


@pytest.mark.parametrize(("text", "due"), [(TIME, TIME), ("later", ""), (None, "")])
def test_when_a_pod_is_to_be_gone(text: str | None, due: str) -> None:
    raw = raw_pod()
    raw["metadata"] |= {"deletionTimestamp": text}
    assert (parse_pod(raw).deleting, parse_pod(raw).deletion_due) == (text is not None, due)


@pytest.mark.parametrize(("text", "made_at"), [(TIME, TIME), ("before", ""), (None, "")])
def test_when_a_pod_was_made(text: str | None, made_at: str) -> None:
    raw = raw_pod()
    raw["metadata"] |= {"creationTimestamp": text}
    assert parse_pod(raw).made_at == made_at


def test_what_is_no_pod_is_refused() -> None:
    with pytest.raises(ForeignError, match="metadata"):
        parse_pod({"kind": "Status"})


@pytest.mark.parametrize("index", ["x", "-1", "", "1e3", "\u0663", "1" * 10, "0x1", " 1", "1.5"])
def test_index_that_is_none_makes_the_pod_foreign(index: str) -> None:
    raw = raw_pod()
    raw["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] = index
    with pytest.raises(ForeignError, match="job-completion-index is no completion index") as caught:
        parse_pod(raw)
    assert caught.value.reason == "unreadable"


@pytest.mark.parametrize(
    "change",
    [
        {"controller": False},
        {"controller": None},
        {"kind": "ReplicaSet"},
        {"apiVersion": "batch.example.org/v1"},
    ],
)
def test_child_without_an_owner_of_ours_is_foreign(change: Object) -> None:
    for parse, raw in ((parse_pod, raw_pod()), (parse_job, raw_job())):
        raw["metadata"]["ownerReferences"][-1].update(change)
        with pytest.raises(ForeignError) as caught:
            parse(raw)
        assert caught.value.reason == "unowned"


def test_owner_says_whose_a_job_is_whatever_its_label_says() -> None:
    raw = raw_job()
    raw["metadata"]["labels"]["finetune.llava.dev/run"] = "another"
    assert (parse_job(raw).run, parse_job(raw).labelled) == ("r", "another")
    raw["metadata"]["labels"] = {}
    assert (parse_job(raw).run, parse_job(raw).labelled) == ("r", "")


@pytest.mark.parametrize("text", ["t", "", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "2026-11-01T12:00:00"])
def test_an_instant_that_cannot_be_calculated_with_is_none(text: str) -> None:
    """Whoever may write pods may write any, and a pass must not end in an error of arithmetic."""
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": text}
    assert parse_pod(raw_pod(conditions=[scheduled])).scheduled_at == ""
    failed = {"type": "Failed", "status": "True", "reason": "R", "message": "m", "lastTransitionTime": text}
    job = parse_job(raw_job(conditions=[failed]))
    assert job.failed is not None
    assert job.failed.time == ""
