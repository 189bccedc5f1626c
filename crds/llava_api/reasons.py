"""Why a run failed, an attempt ended or a run waits: one word each, as it stands in status, conditions and Events.

What each means, and what comes of it, is told by ``failures``.
"""

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
    DRIVER_TOO_OLD = "DriverTooOld"
    OUT_OF_DEVICE_MEMORY = "OutOfDeviceMemory"
    OUT_OF_MEMORY = "OutOfMemory"
    INTERNAL_ERROR = "InternalError"
    WORKER_KILLED = "WorkerKilled"
    RENDEZVOUS_FAILED = "RendezvousFailed"
    NCCL_FAILED = "NcclFailed"
    CHECKPOINT_MISMATCH = "CheckpointMismatch"
    MERGE_MISMATCH = "MergeMismatch"
    STORAGE_FULL = "StorageFull"
    STORAGE_UNWRITABLE = "StorageUnwritable"
    INTERRUPTED = "Interrupted"
    # Seen by the operator: an attempt or the run ends.
    NOT_ALLOWED = "NotAllowed"
    PLAN_DOES_NOT_FIT = "PlanDoesNotFit"
    POD_FAILED = "PodFailed"
    EVICTED = "Evicted"
    PREEMPTED = "Preempted"
    NODE_LOST = "NodeLost"
    DRAINED = "Drained"
    POD_DISRUPTED = "PodDisrupted"
    JOB_DELETED = "JobDeleted"
    POD_DELETED = "PodDeleted"
    QUEUE_EVICTED = "QueueEvicted"
    GANG_NOT_SCHEDULED = "GangNotScheduled"
    SUSPENDED = "Suspended"
    RESULT_LOST = "ResultLost"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    NO_PROGRESS = "NoProgress"
    NAME_CONFLICT = "NameConflict"
    REJECTED = "Rejected"
    # Nothing ends: a run waits for it to pass, or gets over it by itself.
    IMAGE_CANNOT_BE_PULLED = "ImageCannotBePulled"
    UNSCHEDULABLE = "Unschedulable"
    QUOTA_EXCEEDED = "QuotaExceeded"
    MISSING_OBJECT = "MissingObject"
    VOLUME_NOT_MOUNTED = "VolumeNotMounted"
    REFUSED = "Refused"
    VOLUME_OF_EARLIER_RUN = "VolumeOfEarlierRun"
    QUEUED = "Queued"
    CHECKPOINT_DAMAGED = "CheckpointDamaged"
