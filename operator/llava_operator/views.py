"""What the operator keeps of a run, a Job and a pod: the fields it uses, and nothing else.

Objects are parsed here once; everything behind works on these values. A pod of 20 KB becomes about 1 KB.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from llava_api.constants import LABEL_COMPLETION_INDEX, LABEL_RUN, STAGE_CONTAINER
from llava_operator.wire import Object

MAX_TEXT = 1024
"""Longest text kept of what Kubernetes says about a pod."""


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Namespace and name of an object; of a run, where nothing else is said."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnd:
    """A condition that ends a Job, or announces its end."""

    reason: str
    message: str
    time: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A Job of a run."""

    key: Key
    uid: str
    run: str
    """Name of the run, from the label."""
    owner_uid: str | None
    """UID of the controller owner."""
    deleting: bool = False
    complete: bool = False
    failing: JobEnd | None = None
    """The Job has failed and its pods are being stopped."""
    failed: JobEnd | None = None
    """The Job has failed and no pod of it runs any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Termination:
    """How the stage's container ended."""

    exit_code: int
    reason: str
    message: str
    """The termination message: a StageResult, or the log's last lines."""
    finished_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PodView:
    """A pod of a run."""

    key: Key
    uid: str
    run: str
    job_uid: str | None
    index: int | None = None
    """Completion index in an Indexed Job: the node rank in training."""
    phase: Literal["Pending", "Running", "Succeeded", "Failed", "Unknown"] = "Pending"
    deleting: bool = False
    started: bool = False
    """The stage's container has been started."""
    waiting: str = ""
    """Why the container does not run yet; empty where Kubernetes gives no reason."""
    ended: Termination | None = None
    disruption: str = ""
    """Message of the DisruptionTarget condition; empty where there is none."""
    trouble: str = ""
    """Reason and message of the pod's own status (Evicted, UnexpectedAdmissionError)."""


def _empty_for_none(value: object) -> object:
    return "" if value is None else value


_Text = Annotated[str, BeforeValidator(_empty_for_none)]


class _Wire(BaseModel):
    model_config = ConfigDict(extra="ignore", alias_generator=to_camel, frozen=True)


class _Owner(_Wire):
    uid: str
    controller: bool = False


class _Meta(_Wire):
    namespace: str
    name: str
    uid: str
    labels: dict[str, str] = {}
    owner_references: list[_Owner] = []
    deletion_timestamp: str | None = None

    @property
    def key(self) -> Key:
        return Key(self.namespace, self.name)

    @property
    def controller(self) -> str | None:
        return next((owner.uid for owner in self.owner_references if owner.controller), None)


class _Condition(_Wire):
    type: str
    status: str
    reason: _Text = ""
    message: _Text = ""
    last_transition_time: _Text = ""


class _JobStatus(_Wire):
    conditions: list[_Condition] = []


class _Job(_Wire):
    metadata: _Meta
    status: _JobStatus = _JobStatus()


class _Waiting(_Wire):
    reason: _Text = ""
    message: _Text = ""


class _Terminated(_Wire):
    exit_code: int
    reason: _Text = ""
    message: _Text = ""
    finished_at: _Text = ""


class _ContainerState(_Wire):
    waiting: _Waiting | None = None
    running: dict[str, object] | None = None
    terminated: _Terminated | None = None


class _Container(_Wire):
    name: str
    state: _ContainerState = _ContainerState()


class _PodStatus(_Wire):
    phase: Literal["Pending", "Running", "Succeeded", "Failed", "Unknown"] = "Pending"
    reason: _Text = ""
    message: _Text = ""
    conditions: list[_Condition] = []
    container_statuses: Annotated[list[_Container], Field(default_factory=list)]


class _Pod(_Wire):
    metadata: _Meta
    status: Annotated[_PodStatus, Field(default_factory=_PodStatus)]


class _NodeMeta(_Wire):
    labels: dict[str, str] = {}


class _Node(_Wire):
    metadata: _NodeMeta


def parse_node_labels(raw: Object) -> dict[str, str]:
    """The labels of a node; it has no namespace and no run.

    Raises:
        ValueError: it is no node.
    """
    return _Node.model_validate(raw).metadata.labels


def parse_job(raw: Object) -> JobView:
    """The view of a Job.

    Raises:
        ValueError: it is no Job.
    """
    job = _Job.model_validate(raw)
    held = {c.type: c for c in job.status.conditions if c.status == "True"}
    return JobView(
        key=job.metadata.key,
        uid=job.metadata.uid,
        run=job.metadata.labels.get(LABEL_RUN, ""),
        owner_uid=job.metadata.controller,
        deleting=job.metadata.deletion_timestamp is not None,
        complete="Complete" in held,
        failing=_job_end(held.get("FailureTarget")),
        failed=_job_end(held.get("Failed")),
    )


def _job_end(condition: _Condition | None) -> JobEnd | None:
    if condition is None:
        return None
    return JobEnd(reason=condition.reason, message=condition.message[:MAX_TEXT], time=condition.last_transition_time)


def parse_pod(raw: Object) -> PodView:
    """The view of a pod.

    Raises:
        ValueError: it is no pod.
    """
    pod = _Pod.model_validate(raw)
    meta, status = pod.metadata, pod.status
    container = next((c for c in status.container_statuses if c.name == STAGE_CONTAINER), None)
    state = container.state if container else _ContainerState()
    index = meta.labels.get(LABEL_COMPLETION_INDEX)
    disrupted = next((c for c in status.conditions if c.type == "DisruptionTarget" and c.status == "True"), None)
    return PodView(
        key=meta.key,
        uid=meta.uid,
        run=meta.labels.get(LABEL_RUN, ""),
        job_uid=meta.controller,
        index=int(index) if index is not None else None,
        phase=status.phase,
        deleting=meta.deletion_timestamp is not None,
        started=state.running is not None or state.terminated is not None,
        waiting=_waiting(status, state),
        ended=_termination(state.terminated),
        disruption=_said(disrupted.reason, disrupted.message) if disrupted else "",
        trouble=_said(status.reason, status.message),
    )


def _termination(terminated: _Terminated | None) -> Termination | None:
    if terminated is None:
        return None
    return Termination(
        exit_code=terminated.exit_code,
        reason=terminated.reason,
        message=terminated.message,
        finished_at=terminated.finished_at,
    )


def _waiting(status: _PodStatus, state: _ContainerState) -> str:
    if status.phase != "Pending":
        return ""
    unscheduled = next((c for c in status.conditions if c.type == "PodScheduled" and c.status == "False"), None)
    if unscheduled:
        return _said(unscheduled.reason, unscheduled.message)
    return _said(state.waiting.reason, state.waiting.message) if state.waiting else ""


def _said(reason: str, message: str) -> str:
    return ": ".join(filter(None, [reason, message]))[:MAX_TEXT]
