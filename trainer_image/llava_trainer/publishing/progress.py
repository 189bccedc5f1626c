"""How far publishing is, told in the run's status."""

import time
from collections.abc import Callable

from llava_api.text import show
from llava_trainer.reporting import Reporter

_GIGABYTE = 10**9
_INTERVAL_S = 0.5
_MAX_MESSAGE = 256


class Progress:
    """Counts bytes over all destinations, those that were there already included.

    Args:
        reporter: told of it.
        total_bytes: of all contents at all destinations.
        clock: seconds that never go back.
    """

    def __init__(
        self, reporter: Reporter, total_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:  # fmt: skip
        self._reporter = reporter
        self._total_bytes = total_bytes
        self._clock = clock
        self._before = 0
        self._told_at = -_INTERVAL_S
        self._what = ""
        self._size = 0

    def begin(self, what: str, size: int) -> None:
        """From now on ``what`` is published, ``size`` bytes."""
        self._what, self._size = what, size
        self._tell(0)

    def advance(self, done: int) -> None:
        """So many bytes of it have been dealt with."""
        if self._clock() - self._told_at >= _INTERVAL_S:
            self._tell(done)

    def end(self) -> None:
        """It stands there."""
        self._tell(self._size)
        self._before += self._size

    def _tell(self, done: int) -> None:
        self._told_at = self._clock()
        told = f"publishing {self._what}: {done / _GIGABYTE:.2f} of {self._size / _GIGABYTE:.2f} GB"
        self._reporter.update(
            self._before + min(done, self._size), self._total_bytes, unit="bytes",
            message=show(told, max_chars=_MAX_MESSAGE),
        )  # fmt: skip
