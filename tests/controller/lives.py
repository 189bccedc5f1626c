"""A run at every point of its life, with the status that the decisions give it, and what others make of it."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any, NamedTuple

from llava_api.constants import API_VERSION, KIND, StageName
from llava_api.status import UNOBSERVED, ApiTrouble, Status
from llava_operator.clock import from_time, to_time
from llava_operator.deciding.status import dump_status
from llava_operator.deciding.waiting import told_from
from llava_operator.kube.objects import Object
from llava_operator.run import stage_of
from tests.controller.makers import KEY, NOW, ONCE, begun, commit, failed, job_end, make_job, make_pod, see, walk


class Life(NamedTuple):
    """A run, and what is to be thought of it."""

    run: Object
    kstatus: str
    argocd: str


def list_lives() -> dict[str, Life]:
    """Every point, by name."""
    return {name: Life(_build(status, **meta), kstatus, argocd) for name, status, meta, kstatus, argocd in _tell()}


def _build(status: Status | None, *, generation: int = 1, **meta: Any) -> Object:
    metadata = {"name": KEY.name, "namespace": KEY.namespace, "generation": generation, **meta}
    # What the API server fills in before any operator has seen the run.
    said = {"observedGeneration": UNOBSERVED} if status is None else dump_status(status)
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "status": said}


def _tell() -> Iterator[tuple[str, Status | None, dict[str, Any], str, str]]:
    yield "created", None, {}, "InProgress", "Progressing"
    yield "pending", begun(), {}, "InProgress", "Progressing"
    yield "deleted", begun(), {"deletionTimestamp": to_time(NOW)}, "Terminating", "Progressing"
    yield "spec changed", begun(), {"generation": 2}, "InProgress", "Progressing"
    waits = begun()
    stuck = (make_pod(waiting="ImagePullBackOff: no such image"),)
    waits = commit(see(waits, job=make_job(waits), pods=stuck, now=told_from(NOW)))
    assert waits.stages[0].reason == "ImageCannotBePulled"
    yield "waits for an image", waits, {}, "InProgress", "Progressing"
    train = begun(StageName.TRAIN)
    running = commit(see(train, job=make_job(train), pods=(make_pod(phase="Running", started=True),)))
    yield "running", running, {}, "InProgress", "Progressing"
    trouble = ApiTrouble(message="etcdserver: no space", time=to_time(NOW))
    job = make_job(running)
    mute = commit(see(running, job=job, pods=(make_pod(phase="Running", started=True),), api_trouble=trouble))
    yield "the API server answers with errors", mute, {}, "InProgress", "Progressing"
    stopping = commit(see(running, job=make_job(running, failing=job_end()), pods=(failed(exit_code=71),)))
    yield "an attempt is being stopped", stopping, {}, "InProgress", "Progressing"
    backoff = commit(see(running, job=make_job(running, failed=job_end()), pods=(failed(exit_code=71),)))
    assert backoff.failure is not None
    yield "between two attempts", backoff, {}, "InProgress", "Progressing"
    due = from_time(stage_of(backoff, StageName.TRAIN).next_attempt_time or "")
    yield "the next attempt", commit(see(backoff, now=due)), {}, "InProgress", "Progressing"
    asleep = commit(see(spec={"suspend": True}))
    yield "suspended", asleep, {}, "InProgress", "Suspended"
    awake = commit(see(asleep, now=NOW + timedelta(hours=1)))
    yield "resumed", awake, {}, "InProgress", "Progressing"
    lost = commit(see(train, spec=ONCE, job=make_job(train, failed=job_end()), pods=(failed(exit_code=71),)))
    yield "failed for good", lost, {}, "Failed", "Degraded"
    yield "failed and changed since", lost, {"generation": 2}, "InProgress", "Progressing"
    again = commit(see(lost, spec={**ONCE, "retry": 1}))
    yield "tried again", again, {}, "InProgress", "Progressing"
    yield "succeeded", walk({}), {}, "Current", "Healthy"
