"""Watches over the other pods' launchers while this pod's ranks run."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Self

from torch.distributed import DistError

from llava_api.failures import Reason
from llava_api.report import StageFailure
from llava_trainer.gang.rendezvous import Patience, Rendezvous


class HeartbeatMonitor:
    """A thread that gives signs of life, and calls ``on_failure`` once when another launcher fails or falls silent."""

    def __init__(self, rendezvous: Rendezvous, patience: Patience, on_failure: Callable[[StageFailure], None]) -> None:
        self._rendezvous = rendezvous
        self._patience = patience
        self._on_failure = on_failure
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeats", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        silence = Silence(self._patience.silence_s)
        while not self._stopped.wait(self._patience.interval_s):
            try:
                self._rendezvous.beat()
                failure = self._rendezvous.find_failure() or silence.find(
                    self._rendezvous.count_beats(), time.monotonic()
                )
            except DistError:
                failure = StageFailure(
                    reason=Reason.RENDEZVOUS_FAILED, message="the connection to the first training pod was lost"
                )
            if failure:
                self._on_failure(failure)
                return


class Silence:
    """Notices that a launcher gives no sign of life any more."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._last: dict[int, tuple[int, float]] = {}

    def find(self, beats: Mapping[int, int], now: float) -> StageFailure | None:
        """Take in what each launcher's count is at ``now`` (seconds of a clock that never goes back)."""
        for node, count in beats.items():
            if node not in self._last or self._last[node][0] != count:
                self._last[node] = (count, now)
        silent = [node for node in beats if now - self._last[node][1] > self._limit_s]
        if not silent:
            return None
        return StageFailure(
            reason=Reason.RENDEZVOUS_FAILED,
            message=f"training pod {silent[0]} has given no sign of life for {self._limit_s:.0f} s",
        )
