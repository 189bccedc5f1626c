"""What a pass leaves to the next one over the same run: what stood in its way, and when that is tried again."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from llava_api.constants import StageName
from llava_operator.acting.creation import ObstacleError
from llava_operator.deciding.observation import Obstacle

LAST_RETRY_S = 60.0
"""Longest wait before what was refused for the time being is tried again."""


@dataclass(kw_only=True)
class Memory:
    """Of one run. All of it can be lost."""

    uid: str
    generation: int = 0
    """Generation of the spec that the obstacle was met with."""
    obstacle: Obstacle | None = None
    volume_obstacle: Obstacle | None = None
    is_volume_kept: bool = False
    num_refusals: int = 0
    tried: tuple[StageName, int] | None = None
    """Attempt whose Job was last tried to be made, well or not."""
    published_ca: str | None = None
    written_at: datetime | None = None
    """When its status was last written."""

    def drop_obstacle(self, generation: int, *, has_job: bool) -> None:
        """Forget what stood in the way of an attempt, where that may have changed.

        Args:
            generation: of the spec; what the person has changed may be the way out.
            has_job: whether the attempt's Job is there after all. The next attempt has met nothing yet.
        """
        if self.generation != generation:
            self.obstacle, self.generation = None, generation
        if has_job:
            self.obstacle = None
            self.num_refusals = self.num_refusals if self.volume_obstacle else 0

    def meet(self, error: ObstacleError, now: datetime) -> Obstacle:
        """An obstacle, to be tried again later and later."""
        self.num_refusals += 1
        delay_s = min(LAST_RETRY_S, 2.0 ** min(self.num_refusals - 1, 16))
        retry_at = now + timedelta(seconds=max(delay_s, error.retry_after_s))
        return Obstacle(kind=error.kind, reason=error.reason, message=str(error), retry_at=retry_at)
