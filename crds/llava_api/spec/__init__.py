"""The spec of a LlavaFineTune.

Descriptions are written for the person who writes a manifest: they become the CRD's text (``kubectl explain``) and
docs/api.md. A field stands here only if something acts on it.
"""

from llava_api.spec.dataset import DataLimits, Dataset, Messages, Table, Ubiai, Validation
from llava_api.spec.evaluation import (
    Evaluation,
    EvaluationWorkers,
    Gate,
    Generation,
    MetricName,
    Prompt,
    Retention,
    ScoreName,
    YesNoPart,
)
from llava_api.spec.mixture import MAX_MIXTURE, MixturePart
from llava_api.spec.notifications import MAX_NOTIFICATIONS, Notification, SlackWebhook, Webhook
from llava_api.spec.pods import (
    Image,
    ImagePullSecret,
    Merge,
    Network,
    Prepare,
    Scheduling,
    Storage,
    Toleration,
    TopologySpread,
    Workers,
)
from llava_api.spec.publish import MAX_DESTINATIONS, Destination, Publish
from llava_api.spec.root import MAY_CHANGE, MAY_CHANGE_SUSPENDED, Spec
from llava_api.spec.sources import Download, Model, Source
from llava_api.spec.tracking import Mlflow, TensorBoard, Tracking, Wandb
from llava_api.spec.training import (
    LORA_TARGETS,
    Alignment,
    Batch,
    Checkpoint,
    Lora,
    LoraTarget,
    Offload,
    Optimizer,
    Quantization,
    TowerTraining,
    Training,
    Zero,
)
from llava_api.spec.validation import EarlyStopping, KeepBest, TrainingValidation, ValidationAnswers
from llava_api.spec.values import QUANTITY_PATTERN, Quantity, RelativePath, Resources, SecretRef

__all__ = [
    "LORA_TARGETS",
    "MAX_DESTINATIONS",
    "MAX_MIXTURE",
    "MAX_NOTIFICATIONS",
    "MAY_CHANGE",
    "MAY_CHANGE_SUSPENDED",
    "QUANTITY_PATTERN",
    "Alignment",
    "Batch",
    "Checkpoint",
    "DataLimits",
    "Dataset",
    "Destination",
    "Download",
    "EarlyStopping",
    "Evaluation",
    "EvaluationWorkers",
    "Gate",
    "Generation",
    "Image",
    "ImagePullSecret",
    "KeepBest",
    "Lora",
    "LoraTarget",
    "Merge",
    "Messages",
    "MetricName",
    "MixturePart",
    "Mlflow",
    "Model",
    "Network",
    "Notification",
    "Offload",
    "Optimizer",
    "Prepare",
    "Prompt",
    "Publish",
    "Quantity",
    "Quantization",
    "RelativePath",
    "Resources",
    "Retention",
    "Scheduling",
    "ScoreName",
    "SecretRef",
    "SlackWebhook",
    "Source",
    "Spec",
    "Storage",
    "Table",
    "TensorBoard",
    "Toleration",
    "TopologySpread",
    "TowerTraining",
    "Tracking",
    "Training",
    "TrainingValidation",
    "Ubiai",
    "Validation",
    "ValidationAnswers",
    "Wandb",
    "Webhook",
    "Workers",
    "YesNoPart",
    "Zero",
]
