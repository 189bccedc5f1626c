"""What the operator keeps of a run, a Job and a pod: the fields it uses, and nothing else.

Objects are parsed here once; everything behind works on these values. A pod of 20 KB becomes about 1 KB. What cannot be
parsed, or names no owner that it could have from us, is a ``ForeignError`` and never another exception.
"""

from dataclasses import dataclass
from typing import Literal

from llava_api.constants import API_VERSION, KIND, LABEL_COMPLETION_INDEX, NOTIFIER_CONTAINER, STAGE_CONTAINER
from llava_api.names import MAX_SHARDS
from llava_api.text import show
from llava_operator.cache.wire import (
    Condition,
    ContainerState,
    ForeignError,
    ForeignReason,
    Job,
    Node,
    Pod,
    Terminated,
    parse,
)
from llava_operator.clock import from_time
from llava_operator.kube.objects import Key, Object

MAX_TEXT = 1024
"""Longest text kept of what Kubernetes says about a pod."""
MAX_REASON = 128
"""Longest reason that is kept; Kubernetes' own are single words."""
MAX_NAME = 253
"""Characters of the longest name that Kubernetes takes."""
FIRST_YEAR, LAST_YEAR = 1970, 9000
"""Instants outside are nobody's clock's, and calculating with them may go beyond what Python can hold."""
_CONTAINERS = (STAGE_CONTAINER, NOTIFIER_CONTAINER)
"""Containers of ours; a pod has one of them."""
MAX_INDEX_DIGITS = 9
"""Digits of a completion index: Kubernetes' are below 2**31."""


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
    """Name of the run that is its controller."""
    owner_uid: str
    """UID of that run."""
    labelled: str = ""
    """Name of the run in the label, which anybody can change; empty where there is none."""
    made_at: str = ""
    """When it was made, by the API server's clock."""
    deleting_since: str = ""
    """When its deletion was asked for; empty while it was not."""
    suspended: bool = False
    """A queue holds it back: it has no pods, or they are being stopped."""
    complete: bool = False
    failing: JobEnd | None = None
    """The Job has failed and its pods are being stopped."""
    failed: JobEnd | None = None
    """The Job has failed and no pod of it runs any more: so from ``OLDEST_KUBERNETES`` on."""
    num_succeeded: int = 0
    """Pods that have ended well."""
    num_failed: int = 0
    """Pods that have not, those that were replaced included; but not those that its podFailurePolicy ignores."""
    failed_indexes: tuple[int, ...] = ()
    """Completion indexes that are not tried again, of those that evaluation can have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Termination:
    """How the stage's container ended."""

    exit_code: int
    reason: str
    message: str
    """The termination message: a StageResult, or the log's last lines."""
    finished_at: str
    """Empty where nobody says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodView:
    """A pod of a run."""

    key: Key
    uid: str
    run: str
    """Name of the run in the label, which anybody can change; empty where there is none."""
    job_uid: str
    """UID of the Job that is its controller."""
    index: int | None = None
    """Completion index in an Indexed Job: the node rank in training."""
    phase: Literal["Pending", "Running", "Succeeded", "Failed", "Unknown"] = "Pending"
    deleting: bool = False
    deletion_due: str = ""
    """When it is to have ended, once it is being deleted."""
    made_at: str = ""
    """When it was made, by the API server's clock."""
    node: str = ""
    """Where it runs; empty while it is not scheduled."""
    scheduled_at: str = ""
    """When it got its node; empty while it has none."""
    image_id: str = ""
    """What the node says that the stage's container runs."""
    started: bool = False
    """The stage's container has been started."""
    waiting: str = ""
    """Why the container does not run yet; empty where Kubernetes gives no reason."""
    ended: Termination | None = None
    disruption: str = ""
    """Message of the DisruptionTarget condition; empty where there is none."""
    trouble: str = ""
    """Reason and message of the pod's own status (Evicted, UnexpectedAdmissionError)."""

    @property
    def has_last_words(self) -> bool:
        """Whether how it ended, or why it has to, is known."""
        return self.ended is not None or bool(self.disruption)

    @property
    def failed(self) -> bool:
        """Whether it has ended, and not well."""
        return self.phase == "Failed" or (self.ended is not None and self.ended.exit_code != 0)


def parse_node_labels(raw: Object) -> dict[str, str]:
    """The labels of a node; it has no namespace and no run.

    Raises:
        ForeignError: it is no node.
    """
    return parse(Node, raw).metadata.labels


def parse_job(raw: Object) -> JobView:
    """The view of a Job.

    Raises:
        ForeignError: it is no Job, or none that a LlavaFineTune controls.
    """
    job = parse(Job, raw)
    owner = job.metadata.controller(API_VERSION, KIND)
    held = {c.type: c for c in job.status.conditions if c.status == "True"}
    return JobView(
        key=job.metadata.key,
        uid=job.metadata.uid,
        run=owner.name,
        owner_uid=owner.uid,
        labelled=job.metadata.run,
        made_at=_instant(job.metadata.creation_timestamp),
        deleting_since=_instant(job.metadata.deletion_timestamp) if job.metadata.deletion_timestamp else "",
        suspended=bool(job.spec.suspend),
        complete="Complete" in held,
        failing=_job_end(held.get("FailureTarget")),
        failed=_job_end(held.get("Failed")),
        num_succeeded=max(0, job.status.succeeded),
        num_failed=max(0, job.status.failed),
        failed_indexes=_parse_indexes(job.status.failed_indexes),
    )


def _parse_indexes(text: str) -> tuple[int, ...]:
    """``0,3-5`` as numbers, as far as evaluation has indexes: there may be any number of them, by whoever wrote it."""
    spans = [part.partition("-") for part in text[:MAX_TEXT].split(",")]
    bounds = [(_read_index(first), _read_index(last or first)) for first, _, last in spans]
    return tuple(index for index in range(MAX_SHARDS) if any(first <= index <= last for first, last in bounds))


def _read_index(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= MAX_INDEX_DIGITS else MAX_SHARDS


def _job_end(condition: Condition | None) -> JobEnd | None:
    if condition is None:
        return None
    return JobEnd(
        reason=show(condition.reason, max_chars=MAX_REASON),
        message=show(condition.message, max_chars=MAX_TEXT),
        time=_instant(condition.last_transition_time),
    )


def parse_pod(raw: Object) -> PodView:
    """The view of a pod.

    Raises:
        ForeignError: it is no pod, or none that a Job controls.
    """
    pod = parse(Pod, raw)
    meta, status = pod.metadata, pod.status
    container = next((c for c in status.container_statuses if c.name in _CONTAINERS), None)
    state = container.state if container else ContainerState()
    held = {c.type: c for c in status.conditions if c.status == "True"}
    disrupted, scheduled = held.get("DisruptionTarget"), held.get("PodScheduled")
    return PodView(
        key=meta.key,
        uid=meta.uid,
        run=meta.run,
        job_uid=meta.controller("batch/v1", "Job").uid,
        index=_parse_index(meta.labels.get(LABEL_COMPLETION_INDEX)),
        phase=status.phase,
        deleting=meta.deletion_timestamp is not None,
        deletion_due=_instant(meta.deletion_timestamp or ""),
        made_at=_instant(meta.creation_timestamp),
        node=show(pod.spec.node_name, max_chars=MAX_NAME),
        scheduled_at=_instant(scheduled.last_transition_time) if scheduled else "",
        image_id=container.image_id if container else "",
        started=state.running is not None or state.terminated is not None,
        waiting=_waiting(pod, state),
        ended=_termination(state.terminated),
        disruption=_said(disrupted.reason, disrupted.message) if disrupted else "",
        trouble=_said(status.reason, status.message),
    )


def _instant(text: str) -> str:
    """``text`` where it is an instant that can be calculated with; empty else."""
    try:
        instant = from_time(text)
    except ValueError:
        return ""
    return text if instant.tzinfo is not None and FIRST_YEAR <= instant.year <= LAST_YEAR else ""


def _parse_index(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= MAX_INDEX_DIGITS):
        raise ForeignError(ForeignReason.UNREADABLE, f"the label {LABEL_COMPLETION_INDEX} is no completion index")
    return int(text)


def _termination(terminated: Terminated | None) -> Termination | None:
    if terminated is None:
        return None
    return Termination(
        exit_code=terminated.exit_code,
        reason=terminated.reason,
        message=terminated.message,
        finished_at=_instant(terminated.finished_at),
    )


def _waiting(pod: Pod, state: ContainerState) -> str:
    if pod.status.phase != "Pending":
        return ""
    unscheduled = next((c for c in pod.status.conditions if c.type == "PodScheduled" and c.status == "False"), None)
    # The scheduler's word may come after the pod was bound (by another scheduler, or by hand): the binding counts.
    if unscheduled and not pod.spec.node_name:
        return _said(unscheduled.reason, unscheduled.message)
    return _said(state.waiting.reason, state.waiting.message) if state.waiting else ""


def _said(reason: str, message: str) -> str:
    return show(": ".join(filter(None, [reason, message])), max_chars=MAX_TEXT)
