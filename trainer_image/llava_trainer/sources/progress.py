"""How far fetching is, told in the run's status."""

import threading
import time
from collections.abc import Callable

from llava_api.text import show
from llava_trainer.reporting import Reporter

_GIGABYTE = 10**9
_INTERVAL_S = 0.5
_MAX_MESSAGE = 256


class Progress:
    """Counts what comes in, from any thread, and reports it."""

    def __init__(self, reporter: Reporter, clock: Callable[[], float] = time.monotonic) -> None:
        self._reporter = reporter
        self._clock = clock
        self._lock = threading.Lock()
        self._what = ""
        self._done = 0
        self._total = 0
        self._told_at = -_INTERVAL_S

    def begin(self, what: str, total_bytes: int = 0) -> None:
        """From now on ``what`` is fetched: a field and an address; 0 bytes if unknown."""
        with self._lock:
            self._what, self._done, self._total = what, 0, total_bytes
        self._tell("", at_once=True)

    def end(self) -> None:
        """All of it has come in."""
        self._tell("", at_once=True)

    def add(self, num_bytes: int, name: str) -> None:
        """So many bytes of a file have come in; fewer than none if they have to come again."""
        with self._lock:
            self._done += num_bytes
        self._tell(name)

    def _tell(self, name: str, *, at_once: bool = False) -> None:
        with self._lock:
            now = self._clock()
            if not at_once and now - self._told_at < _INTERVAL_S:
                return
            self._told_at = now
            done, total = self._done, self._total
            of_all = f" of {total / _GIGABYTE:.2f}" if total else ""
            message = f"fetching {self._what}: {done / _GIGABYTE:.2f}{of_all} GB"
            # Under the lock, too: a thread that is late would tell of fewer bytes after more, which ends the estimate.
            self._reporter.update(
                max(0, done), max(done, total) if total else 0, unit="bytes",
                message=show(f"{message}, {name}" if name else message, max_chars=_MAX_MESSAGE),
            )  # fmt: skip
