"""The status of a LlavaFineTune: written by the operator only, read by people, ``kubectl wait`` and the metrics."""

from llava_api.status.accounting import Accounting
from llava_api.status.notifications import NOTIFICATIONS_KEPT, NotificationState, NotificationStatus
from llava_api.status.outcome import (
    MAX_SCORES,
    Artifacts,
    EvaluationStatus,
    FailureStatus,
    GateStatus,
    Metric,
    PublishedStatus,
)
from llava_api.status.plan import Data, Plan, PlanTerm
from llava_api.status.progress import Progress, ShardProgress
from llava_api.status.root import UNOBSERVED, ApiTrouble, ConditionStatus, Status, Summary, Trainer
from llava_api.status.stages import (
    ATTEMPTS_KEPT,
    MAX_POD_FAILURES,
    SUCCEEDED,
    AttemptSettings,
    AttemptState,
    AttemptStatus,
    ShardStatus,
    StageState,
    StageStatus,
)
from llava_api.status.values import MAX_TEXT, Time

__all__ = [
    "ATTEMPTS_KEPT",
    "MAX_POD_FAILURES",
    "MAX_SCORES",
    "MAX_TEXT",
    "NOTIFICATIONS_KEPT",
    "SUCCEEDED",
    "UNOBSERVED",
    "Accounting",
    "ApiTrouble",
    "Artifacts",
    "AttemptSettings",
    "AttemptState",
    "AttemptStatus",
    "ConditionStatus",
    "Data",
    "EvaluationStatus",
    "FailureStatus",
    "GateStatus",
    "Metric",
    "NotificationState",
    "NotificationStatus",
    "Plan",
    "PlanTerm",
    "Progress",
    "PublishedStatus",
    "ShardProgress",
    "ShardStatus",
    "StageState",
    "StageStatus",
    "Status",
    "Summary",
    "Time",
    "Trainer",
]
