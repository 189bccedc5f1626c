"""The one table of failures: exit code, reason, whether another attempt can help, and what to do.

A stage ends with one of these exit codes; the operator turns it into ``status.failure``. Codes 1 and 2 (Python,
argparse), 126 to 165 (shells and signals) are left alone, so that ours are never mistaken for those.
"""

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Reasons in ``status.failure.reason`` and in conditions; CamelCase as Kubernetes has it."""

    # Reported by a stage through its exit code.
    INVALID_CONFIG = "InvalidConfig"
    INVALID_DATA = "InvalidData"
    INVALID_MODEL = "InvalidModel"
    LOSS_NOT_FINITE = "LossNotFinite"
    NOTHING_SUPERVISED = "NothingSupervised"
    ZERO_GRADIENT = "ZeroGradient"
    ADAPTER_UNCHANGED = "AdapterUnchanged"
    WORKER_STALLED = "WorkerStalled"
    SOURCE_UNAVAILABLE = "SourceUnavailable"
    SOURCE_REFUSED = "SourceRefused"
    UNSUPPORTED_DEVICE = "UnsupportedDevice"
    OUT_OF_DEVICE_MEMORY = "OutOfDeviceMemory"
    OUT_OF_MEMORY = "OutOfMemory"
    INTERNAL_ERROR = "InternalError"
    WORKER_KILLED = "WorkerKilled"
    RENDEZVOUS_FAILED = "RendezvousFailed"
    CHECKPOINT_MISMATCH = "CheckpointMismatch"
    MERGE_MISMATCH = "MergeMismatch"
    STORAGE_FULL = "StorageFull"
    STORAGE_UNWRITABLE = "StorageUnwritable"
    INTERRUPTED = "Interrupted"
    ATTEMPT_USED = "AttemptUsed"
    SUPERSEDED = "Superseded"
    # Seen by the operator.
    NOT_ALLOWED = "NotAllowed"
    PLAN_DOES_NOT_FIT = "PlanDoesNotFit"
    POD_DISRUPTED = "PodDisrupted"
    POD_FAILED = "PodFailed"
    JOB_DELETED = "JobDeleted"
    POD_DELETED = "PodDeleted"
    QUEUE_EVICTED = "QueueEvicted"
    GANG_NOT_SCHEDULED = "GangNotScheduled"
    REPORTS_STAND_STILL = "ReportsStandStill"
    RESULT_LOST = "ResultLost"
    NO_PROGRESS = "NoProgress"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    SUSPENDED = "Suspended"
    NAME_CONFLICT = "NameConflict"
    REJECTED = "Rejected"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One row of the table."""

    reason: Reason
    exit_code: int | None
    """Exit code of the stage's container; None where only the operator can tell."""
    retryable: bool
    """Whether the same run may succeed if it is tried again unchanged."""
    counts: bool = True
    """Whether it counts as a failure of the run's own (``training.maxRestarts``)."""
    hint: str
    """What the person can do, in one sentence."""


FAILURES: tuple[Failure, ...] = (
    Failure(reason=Reason.INVALID_CONFIG, exit_code=64, retryable=False,
            hint="The operator and the trainer image do not fit together: use the image of the operator's version."),
    Failure(reason=Reason.INVALID_DATA, exit_code=65, retryable=False,
            hint="Correct the entries named in the message and create the run again."),
    Failure(reason=Reason.INVALID_MODEL, exit_code=66, retryable=False,
            hint="spec.model must name a LLaVA v1.5 checkpoint with everything that belongs to it (config.json, "
                 "weights, tokenizer), or a Llama and a CLIP to join; the message says what is wrong with this one."),
    Failure(reason=Reason.LOSS_NOT_FINITE, exit_code=67, retryable=False,
            hint="Lower spec.training.learningRate, or look for damaged samples in the dataset report."),
    Failure(reason=Reason.NOTHING_SUPERVISED, exit_code=68, retryable=False,
            hint="A whole batch had nothing to learn from: look at the supervised tokens in the dataset report."),
    Failure(reason=Reason.OUT_OF_DEVICE_MEMORY, exit_code=69, retryable=False,
            hint="In training lower spec.training.batch.perDevice or maxLength, or switch gradientCheckpointing on; in "
                 "evaluation lower spec.evaluation.generation.maxNewTokens."),
    Failure(reason=Reason.INTERNAL_ERROR, exit_code=70, retryable=True,
            hint="The log's last lines show where; the whole log is on the run's volume under attempts/."),
    Failure(reason=Reason.WORKER_KILLED, exit_code=71, retryable=True,
            hint="A training process was killed from outside (often the node's out-of-memory killer): "
                 "raise spec.workers.resources or look at the node."),
    Failure(reason=Reason.RENDEZVOUS_FAILED, exit_code=72, retryable=True,
            hint="The training pods did not find or lost each other: check that all were scheduled and that the "
                 "network lets them talk."),
    Failure(reason=Reason.CHECKPOINT_MISMATCH, exit_code=76, retryable=False,
            hint="The checkpoint was made by another training than this run describes; the message says what differs: "
                 "set it back, or create another run."),
    Failure(reason=Reason.MERGE_MISMATCH, exit_code=73, retryable=False,
            hint="The merged model does not compute what base and adapter compute: please report this as a bug."),
    Failure(reason=Reason.STORAGE_FULL, exit_code=74, retryable=False,
            hint="Raise spec.storage.size."),
    Failure(reason=Reason.INTERRUPTED, exit_code=75, retryable=True,
            hint="The pod was asked to stop (a drain, a preemption, a deletion): create the run again."),
    Failure(reason=Reason.ATTEMPT_USED, exit_code=85, retryable=True, counts=False,
            hint="The attempt's folder on the volume belongs to a pod that ran before (a Job that was suspended and "
                 "started again, say): the next attempt goes on from what that pod has left."),
    Failure(reason=Reason.SUPERSEDED, exit_code=86, retryable=True, counts=False,
            hint="The pod outlived its attempt (on a node that was cut off, say) and has ended by itself: a later "
                 "attempt does the work."),
    Failure(reason=Reason.ZERO_GRADIENT, exit_code=77, retryable=False,
            hint="Nothing that is trained receives a gradient: please report this as a bug, with the log."),
    Failure(reason=Reason.ADAPTER_UNCHANGED, exit_code=78, retryable=False,
            hint="Training ended without having changed what it trains: raise spec.training.learningRate or epochs."),
    Failure(reason=Reason.WORKER_STALLED, exit_code=79, retryable=True,
            hint="A training process stopped answering; its stack is in the log of its rank under attempts/."),
    Failure(reason=Reason.SOURCE_UNAVAILABLE, exit_code=80, retryable=True,
            hint="A model or dataset could not be fetched: look at the address, the network and spec.download."),
    Failure(reason=Reason.SOURCE_REFUSED, exit_code=81, retryable=False,
            hint="A model or dataset does not exist or may not be read: correct the source or its secretRef."),
    Failure(reason=Reason.UNSUPPORTED_DEVICE, exit_code=82, retryable=False,
            hint="The GPU cannot do what the run asks for: the message names the setting to change."),
    Failure(reason=Reason.NOT_ALLOWED, exit_code=None, retryable=False,
            hint="Change what the message names, or ask whoever installed the operator to allow it."),
    Failure(reason=Reason.STORAGE_UNWRITABLE, exit_code=84, retryable=False,
            hint="The run's volume cannot be written: look at its PersistentVolume, its access mode, and the node that "
                 "mounts it."),
    Failure(reason=Reason.PLAN_DOES_NOT_FIT, exit_code=None, retryable=False,
            hint="Choose one of the configurations that the message names, or GPUs or pods with more memory."),
    Failure(reason=Reason.OUT_OF_MEMORY, exit_code=83, retryable=True,
            hint="The pod's memory did not suffice (the container went over its limit, or the node has no more): raise "
                 "the stage's resources.limits.memory, or take larger nodes."),
    Failure(reason=Reason.POD_DISRUPTED, exit_code=None, retryable=True, counts=False,
            hint="The node was drained, preempted or lost; create the run again."),
    Failure(reason=Reason.POD_FAILED, exit_code=None, retryable=True,
            hint="Look at the log's last lines and at the pod's events."),
    Failure(reason=Reason.JOB_DELETED, exit_code=None, retryable=True,
            hint="The stage's Job was deleted by someone else. To stop a run for a while set spec.suspend."),
    Failure(reason=Reason.POD_DELETED, exit_code=None, retryable=True,
            hint="A pod of the stage was deleted by someone else. To stop a run for a while set spec.suspend."),
    Failure(reason=Reason.QUEUE_EVICTED, exit_code=None, retryable=True, counts=False,
            hint="The queue of scheduling.queueName took the admission back; the run waits for the next one."),
    Failure(reason=Reason.GANG_NOT_SCHEDULED, exit_code=None, retryable=True, counts=False,
            hint="Only some of the training pods found a place: free or add nodes, ask for less, or let a queue "
                 "(scheduling.queueName) admit whole runs."),
    Failure(reason=Reason.REPORTS_STAND_STILL, exit_code=None, retryable=True,
            hint="Training reported the same step again and again, and did not end by itself: look at the logs of its "
                 "ranks under attempts/."),
    Failure(reason=Reason.RESULT_LOST, exit_code=None, retryable=True, counts=False,
            hint="The stage ended well, but its pod was gone before its result was read: the next attempt finds it on "
                 "the volume."),
    Failure(reason=Reason.NO_PROGRESS, exit_code=None, retryable=False,
            hint="It fails again and again at the same step: the last failures under status.stages say where. Mend "
                 "that, then raise spec.retry."),
    Failure(reason=Reason.DEADLINE_EXCEEDED, exit_code=None, retryable=False,
            hint="Raise spec.activeDeadlineSeconds, then spec.retry."),
    Failure(reason=Reason.SUSPENDED, exit_code=None, retryable=True, counts=False,
            hint="Set spec.suspend to false to go on."),
    Failure(reason=Reason.NAME_CONFLICT, exit_code=None, retryable=False,
            hint="Delete or rename the object that is in the way, or give the run another name."),
    Failure(reason=Reason.REJECTED, exit_code=None, retryable=False,
            hint="The API server refused a child of this run; the message says which and why."),
)  # fmt: skip

BY_REASON: dict[Reason, Failure] = {failure.reason: failure for failure in FAILURES}
BY_EXIT_CODE: dict[int, Failure] = {f.exit_code: f for f in FAILURES if f.exit_code is not None}


def exit_code_of(reason: Reason) -> int:
    """Exit code with which a stage reports ``reason``.

    Raises:
        ValueError: the reason is one that only the operator can tell.
    """
    code = BY_REASON[reason].exit_code
    if code is None:
        raise ValueError(f"{reason} has no exit code: only the operator reports it")
    return code
