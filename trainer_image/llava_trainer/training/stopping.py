"""Being asked to stop. SIGTERM reaches the processes of one pod only, so the loop agrees on it over all of them."""

import signal
from types import FrameType
from typing import Self

from llava_api.memory import RESERVED_S

_MIN_SAVING_S = 5


def saving_time_s(grace_period_s: int) -> int:
    """Seconds that training processes have to save a checkpoint after SIGTERM."""
    return max(grace_period_s - RESERVED_S, _MIN_SAVING_S)


class StopRequest:
    """Remembers that this process got SIGTERM, from the moment that the context is entered."""

    def __init__(self) -> None:
        self.received = False

    def __enter__(self) -> Self:
        signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(self, *exception: object) -> None:
        # A second SIGTERM while the process ends must not interrupt what it saves.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = True
