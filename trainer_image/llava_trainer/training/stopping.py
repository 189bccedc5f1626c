"""Being asked to stop. SIGTERM reaches the processes of one pod only, so the loop agrees on it over all of them."""

import signal
from types import FrameType
from typing import Self


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
