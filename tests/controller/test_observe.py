"""What a pass reads live, and what of it it believes."""

import copy
from collections.abc import AsyncIterator
from typing import Any

from llava_api.constants import LABEL_COMPLETION_INDEX
from llava_operator.acting.nodes import Nodes
from llava_operator.acting.observe import Observer
from llava_operator.cache.children import Children
from llava_operator.cache.progress import ProgressBook
from llava_operator.cache.skipped import SkippedObjects
from llava_operator.deciding.observation import Observation
from llava_operator.kube.errors import NotFoundError
from llava_operator.kube.kinds import JOBS, PODS, Kind
from llava_operator.kube.objects import Object
from tests.controller.makers import KEY, NOW, RUN_UID, KnownRuns, begun, make_run
from tests.controller.test_views import raw_job, raw_pod

JOB_NAME = "invoices-prepare-1"


def of_run(raw: Object, **meta: Any) -> Object:
    """``raw`` as a child of the run of these tests."""
    made = copy.deepcopy(raw)
    made["metadata"] |= {"namespace": KEY.namespace, **meta}
    made["metadata"]["labels"]["finetune.llava.dev/run"] = KEY.name
    for owner in made["metadata"]["ownerReferences"]:
        if owner.get("kind") == "LlavaFineTune":
            owner |= {"name": KEY.name, "uid": RUN_UID}
    return made


class Server:
    """One Job and pods, whatever is asked for."""

    def __init__(self, job: Object | None, *pods: Object) -> None:
        self.job, self.pods = job, pods

    async def get(self, kind: Kind, namespace: str, name: str) -> Object:
        assert (kind, name) == (JOBS, JOB_NAME)
        if self.job is None:
            raise NotFoundError("no such job")
        return self.job

    async def list(self, kind: Kind, namespace: str | None, selector: str = "") -> AsyncIterator[Object]:
        assert (kind, namespace, selector) == (PODS, KEY.namespace, "batch.kubernetes.io/controller-uid=j")
        for pod in self.pods:
            yield pod


async def observe(server: Any) -> tuple[Observation, Children]:
    children = Children(KnownRuns((KEY, RUN_UID)), SkippedObjects())
    observer = Observer(
        kube=server, children=children, progress=ProgressBook(interval_s=1, writes_per_s=1),
        nodes=Nodes(kube=server, now=lambda: NOW),
    )  # fmt: skip
    return await observer.observe_children(make_run(begun(with_job=False)), NOW), children


async def test_pods_are_those_that_the_job_owns_whatever_others_labels_say() -> None:
    """A pod of the same namespace may carry the Job's labels, and say how the stage has ended."""
    ended = raw_job(JOB_NAME, conditions=[{"type": "Complete", "status": "True"}])
    unreadable = of_run(raw_pod("forged-2"))
    unreadable["metadata"]["labels"][LABEL_COMPLETION_INDEX] = "x"
    forged = (of_run(raw_pod("forged-0", job=None)), of_run(raw_pod("forged-1", job="another")), unreadable)
    seen, _ = await observe(Server(of_run(ended), *forged, of_run(raw_pod("true", phase="Succeeded"))))
    assert seen.job is not None
    assert [pod.key.name for pod in seen.pods] == ["true"]


async def test_job_that_is_none_of_the_runs_is_none() -> None:
    stranger = of_run(raw_job(JOB_NAME))
    stranger["metadata"]["ownerReferences"] = []
    of_another_uid = of_run(raw_job(JOB_NAME))
    of_another_uid["metadata"]["ownerReferences"][-1]["uid"] = "earlier"
    for job in (None, stranger, of_another_uid):
        seen, _ = await observe(Server(job))
        assert seen.job is None


async def test_job_that_was_read_live_is_known_from_then_on() -> None:
    """Its creation's answer was lost: its pods are taken in without waiting for the Job's own event."""
    _, children = await observe(Server(of_run(raw_job(JOB_NAME))))
    assert children.note_pod(of_run(raw_pod())) == KEY


async def test_pods_of_a_job_that_is_gone_are_asked_for() -> None:
    """It was deleted in the background: whether they still run, only the API server knows."""
    left = of_run(raw_pod("left", phase="Running"))
    children = Children(KnownRuns((KEY, RUN_UID)), SkippedObjects())
    server: Any = Server(None, left)
    observer = Observer(
        kube=server, children=children, progress=ProgressBook(interval_s=1, writes_per_s=1),
        nodes=Nodes(kube=server, now=lambda: NOW),
    )  # fmt: skip
    status = begun(with_job=False)
    stage = status.stages[0]
    attempt = stage.attempts[0].model_copy(update={"job_uid": "j"})
    known = status.model_copy(
        update={"stages": (stage.model_copy(update={"attempts": (attempt,)}), *status.stages[1:])}
    )
    seen = await observer.observe_children(make_run(known), NOW)
    assert (seen.job, [pod.key.name for pod in seen.pods]) == (None, ["left"])


async def test_why_a_pod_was_taken_away_is_known_when_it_is_gone() -> None:
    """A preempted pod may be gone before its Job is seen to fail, and the others say only that they were stopped."""
    failing = of_run(raw_job(JOB_NAME, conditions=[{"type": "FailureTarget", "status": "True", "reason": "R"}]))
    disrupted = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "m"}
    children = Children(KnownRuns((KEY, RUN_UID)), SkippedObjects())
    children.note_job(failing)
    preempted = of_run(raw_pod("preempted", uid="p0", phase="Running", conditions=[disrupted]))
    server: Any = Server(failing, of_run(raw_pod("other", uid="p1", phase="Failed")))
    observer = Observer(
        kube=server, children=children, progress=ProgressBook(interval_s=1, writes_per_s=1),
        nodes=Nodes(kube=server, now=lambda: NOW),
    )  # fmt: skip
    for deleted in (False, True):
        children.note_pod(preempted, deleted=deleted)
        seen = await observer.observe_children(make_run(begun(with_job=False)), NOW)
        assert {pod.key.name for pod in seen.pods} == {"other", "preempted"}
