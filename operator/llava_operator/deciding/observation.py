"""Everything that a decision depends on. Values only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from llava_api.constants import StageName
from llava_api.failures import Reason
from llava_api.status import ApiTrouble, NotificationState, Progress
from llava_operator.cache.views import JobView, PodView
from llava_operator.deciding.gpus import NodeGpus
from llava_operator.deciding.violations import Violation
from llava_operator.deciding.waiting import Trouble
from llava_operator.run import Run


class ObstacleKind(StrEnum):
    """What stood in the way of creating a child."""

    NAME_CONFLICT = "NameConflict"
    REJECTED = "Rejected"
    VOLUME_OF_EARLIER_RUN = "VolumeOfEarlierRun"
    """The claim's label names another run: a person has to say what becomes of it."""
    BLOCKED = "Blocked"
    """It may go away: a quota, a missing permission."""


@dataclass(frozen=True, kw_only=True)
class Obstacle:
    """Why a child could not be created."""

    kind: ObstacleKind
    reason: Reason
    message: str
    retry_at: datetime


@dataclass(frozen=True, kw_only=True)
class DeliverySight:
    """What there is to see of a message that is owed."""

    state: NotificationState
    has_job: bool = False
    """Whether its Job is there."""
    made_at: str = ""
    """When that was made; empty without one."""
    message: str = ""
    """Why it is not delivered."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """Everything that a decision depends on."""

    run: Run
    job: JobView | None = None
    """Job of the stage that runs; None where a live read has found none."""
    pods: tuple[PodView, ...] = ()
    """Pods of that Job."""
    obstacle: Obstacle | None = None
    is_volume_kept: bool = False
    """Whether the claim is known to outlive the run."""
    removed: tuple[StageName, int] | None = None
    """Stage, and number of the newest attempt, whose children are known to be removed."""
    volume_obstacle: Obstacle | None = None
    """Why it could not be made to."""
    progress: Progress | None = None
    """Newest report of that stage that the status does not have yet."""
    progress_due_at: datetime | None = None
    """Instant from which that report alone is worth a write."""
    nodes: frozenset[NodeGpus] = frozenset()
    """GPUs of nodes that the run may get, where they are known and training is about to be planned."""
    default_image: str | None = None
    """Trainer image of the installation."""
    violations: tuple[Violation, ...] = ()
    """What pods of the stage that runs would be given against the installation's policy."""
    text_due_at: datetime | None = None
    """Instant from which a change of nothing but texts is worth a write."""
    trouble: Trouble | None = None
    """What Events tell of objects that have waited for a while."""
    trouble_due_at: datetime | None = None
    """When Events are asked for next, if the attempt still waits then."""
    api_trouble: ApiTrouble | None = None
    """What the API server has answered to the last passes, again and again."""
    deliveries: Mapping[str, DeliverySight] = field(default_factory=dict)
    """Of messages that are owed, by the names of their Jobs; of those that nothing is known of there is none."""
    now: datetime
