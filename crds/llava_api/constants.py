"""Names that more than one package must agree on; each is documented here and nowhere else."""

from enum import StrEnum
from typing import Final

GROUP: Final = "finetune.llava.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = "finetune.llava.dev/v1alpha1"
KIND: Final = "LlavaFineTune"
PLURAL = "llavafinetunes"
SINGULAR = "llavafinetune"
SHORT_NAME = "lft"


OLDEST_KUBERNETES: Final = (1, 31)
"""Major and minor version from which on a Job has the condition Failed, or Complete, only when none of its pods runs
any more (job-controller of 1.31; before, the condition came at once). The operator relies on that."""


class StageName(StrEnum):
    """The stages of a run, in the order in which they run. ``llava_api.stages`` says which of them a run has."""

    PREPARE = "prepare"
    ALIGN = "align"
    TRAIN = "train"
    MERGE = "merge"
    EVALUATE = "evaluate"
    PUBLISH = "publish"


STAGES: tuple[StageName, ...] = tuple(StageName)
TRAINING_STAGES: frozenset[StageName] = frozenset({StageName.ALIGN, StageName.TRAIN})
"""Those that run over all workers, with DeepSpeed."""

# Labels on every child of a run.
LABEL_RUN = f"{GROUP}/run"
"""The run's name (at most ``names.MAX_RUN_NAME`` characters, so always a valid label value)."""
LABEL_RUN_UID = f"{GROUP}/run-uid"
"""The run's UID, on its claim. It says whose a claim is: one that is retained has no owner reference."""
LABEL_STAGE = f"{GROUP}/stage"
LABEL_ATTEMPT = f"{GROUP}/attempt"
LABEL_NOTIFICATION = f"{GROUP}/notification"
"""Name of the notification that a Job and its pod send; no stage's Job has it, and these have no stage."""
LABEL_QUEUE = "kueue.x-k8s.io/queue-name"
"""Kueue's, on the Jobs that it lets start."""
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "llava-finetune-operator"
LABEL_COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"
"""Set by Kubernetes on the pods of an Indexed Job."""

# Environment of a stage's container. Everything else is in the run configuration.
ENV_POD_NAME = "LLAVA_POD_NAME"
ENV_PICTURE_HOSTS = "LLAVA_PICTURE_HOSTS"
"""Hosts, separated by commas, from which prepare may fetch pictures that a dataset names by address."""
ENV_DISABLE_XET = "HF_HUB_DISABLE_XET"
"""The hub's library's own name; in prepare alone, and there nothing but 0 switches Xet on."""
ENV_COMPLETION_INDEX = "JOB_COMPLETION_INDEX"
"""Set by Kubernetes on the pods of an Indexed Job: the node rank, or the shard."""
ENV_INDEX_FAILURES: Final = ("LLAVA_INDEX_FAILURES", "LLAVA_INDEX_IGNORED_FAILURES")
"""How many pods of the same index have failed before, those that count and those that do not. From the annotations
below; empty where the pod has none."""
ANNOTATION_INDEX_FAILURES: Final = (
    "batch.kubernetes.io/job-index-failure-count", "batch.kubernetes.io/job-index-ignored-failure-count",
)  # fmt: skip
"""Set by Kubernetes on the pods of an Indexed Job with backoffLimitPerIndex (KEP-3850)."""

# Paths inside a stage's container.
CONFIG_PATH = "/etc/llava/run.json"
REPORT_CA_PATH = "/etc/llava-report/ca.crt"
REPORT_TOKEN_PATH = "/var/run/secrets/llava-report/token"
SECRETS_PATH = "/llava/secrets"
"""Credentials of a source are mounted read-only at SECRETS_PATH/ROLE, one file a key; ROLE is a ``SecretRole``."""
SECRET_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "hf://": ("token",),
    "s3://": ("accessKeyId", "secretAccessKey", "sessionToken", "endpoint", "region"),
    "https://": ("username", "password", "bearer"),
    "oci://": ("username", "password", ".dockerconfigjson"),
}
"""Keys of a Secret that a source or a destination of each kind is reached with. Others are not mounted."""
PROXY_KEYS: Final = ("httpProxy", "httpsProxy")
"""The same, of the Secret with proxies."""
WANDB_KEYS: Final = ("apiKey",)
"""The same, of the Secret for Weights & Biases."""
SIGNING_KEYS: Final = ("privateKey",)
"""The same, of the Secret that signs what is published."""
DOWNLOAD_CA_PATH = "/etc/llava-download/ca.crt"
NOTIFICATION_SECRET_PATH = "/llava/notification"
"""The Secret of a notification is mounted here, one file a key."""
NOTIFICATION_KEYS: Final = {"url": "url", "signing": "signingKey", "bearer": "bearer"}
"""Keys of that Secret. Others are not mounted."""
ENV_DELIVERY = "LLAVA_DELIVERY"
"""What the sending pod sends, and how: a ``Delivery`` as JSON."""
RUN_VOLUME_PATH = "/llava/run"
INPUTS_PATH = "/llava/inputs"
"""``pvc://CLAIM/...`` inputs are mounted read-only at INPUTS_PATH/CLAIM."""
MODELCAR_SUFFIX: Final = "-modelcar"
"""Of the tag under which a published model stands as an image, which KServe mounts."""
DESTINATIONS_PATH = "/llava/destinations"
"""``pvc://CLAIM/...`` destinations are mounted at DESTINATIONS_PATH/CLAIM."""
TERMINATION_LOG_PATH = "/dev/termination-log"
TERMINATION_MESSAGE_MAX_BYTES = 4096
"""The kubelet cuts a termination message off here."""

TOKEN_AUDIENCE = "llava-finetune-operator"
"""Audience of the projected token with which a stage reports; nothing else accepts it."""
REPORT_PATH = "/v1/progress"
RENDEZVOUS_PORT = 29400

STAGE_CONTAINER = "stage"
NOTIFIER_CONTAINER = "notifier"
MAX_NOTIFICATION_NAME = 20


class SecretRole(StrEnum):
    """What a Secret with credentials is for."""

    MODEL = "model"
    DATASET = "dataset"
    ALIGNMENT_DATASET = "alignment-dataset"
    RETENTION = "retention"
    """The set that tells what was forgotten."""
    DOWNLOAD = "download"
    """Proxies with their passwords."""
    TRACKING = "tracking"
    """A tracking server of MLflow."""
    WANDB = "wandb"
    """The server of Weights & Biases."""
    MIXTURE_0 = "mixture-0"
    """Of ``spec.mixture[0]``, and so on."""
    MIXTURE_1 = "mixture-1"
    MIXTURE_2 = "mixture-2"
    MIXTURE_3 = "mixture-3"
    MIXTURE_4 = "mixture-4"
    MIXTURE_5 = "mixture-5"
    MIXTURE_6 = "mixture-6"
    MIXTURE_7 = "mixture-7"
    SIGNING = "signing"
    """The key that signs what is published."""
    PUBLISH_0 = "publish-0"
    """Of ``spec.publish.destinations[0]``, and so on."""
    PUBLISH_1 = "publish-1"
    PUBLISH_2 = "publish-2"
    PUBLISH_3 = "publish-3"

    @classmethod
    def of_mixture(cls, index: int) -> "SecretRole":
        """That of one dataset of the mixture, which is also the name of its folder on the volume."""
        return cls(f"mixture-{index}")

    @classmethod
    def of_destination(cls, index: int) -> "SecretRole":
        """That of one destination."""
        return cls(f"publish-{index}")


class Condition(StrEnum):
    """Condition types in ``status.conditions``."""

    READY = "Ready"
    PREPARED = "Prepared"
    ALIGNED = "Aligned"
    TRAINED = "Trained"
    MERGED = "Merged"
    EVALUATED = "Evaluated"
    PUBLISHED = "Published"
    COMPLETE = "Complete"
    FAILED = "Failed"
    SUSPENDED = "Suspended"
    RECONCILING = "Reconciling"
    """The run is under way; kstatus reads it as InProgress."""
    STALLED = "Stalled"
    """The run has failed for good; kstatus reads it as Failed."""
    REPORTING = "Reporting"
    DISTURBED = "Disturbed"
    """Its attempts are ended again and again by no fault of its own, before they have done a step."""
    GATE_PASSED = "GatePassed"
    """Whether the tuned model is as much better than its base, and has forgotten as little, as was asked for."""


STAGE_CONDITION: dict[StageName, Condition] = {
    StageName.PREPARE: Condition.PREPARED,
    StageName.ALIGN: Condition.ALIGNED,
    StageName.TRAIN: Condition.TRAINED,
    StageName.MERGE: Condition.MERGED,
    StageName.EVALUATE: Condition.EVALUATED,
    StageName.PUBLISH: Condition.PUBLISHED,
}


class Phase(StrEnum):
    """``status.phase``: the run at a glance."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class GateOutcome(StrEnum):
    """What a gate says of a tuned model."""

    PASSED = "Passed"
    FAILED = "Failed"
    UNDECIDED = "Undecided"
    """The held-out samples are too few to say."""


class NotificationEvent(StrEnum):
    """What somebody may be told of a run. ``llava_operator.deciding.occurrences`` says when each has happened."""

    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    WAITING_TOO_LONG = "WaitingTooLong"
    RESTARTED = "Restarted"
    SUSPENDED = "Suspended"
    GATE_FAILED = "GateFailed"
    GATE_UNDECIDED = "GateUndecided"
    PUBLISHED = "Published"
    NOT_PUBLISHED = "NotPublished"
