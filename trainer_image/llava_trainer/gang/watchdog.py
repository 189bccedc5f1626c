"""Notices that this rank does not get any further, says where it stands, and ends it.

A rank that hangs takes all others along: they wait for it, and their operations give up only after minutes, with a
stack that shows nothing but the waiting.
"""

import faulthandler
import threading
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Self

_STDERR = 2
_DUMP_ADVANCE_S = 1.0
"""Seconds from the stacks to the end."""
_WAITING_PATIENCE = 1.2
"""How much longer whoever waits for the others is given: the one that they wait for speaks first."""
_SHORTEST_S = 120.0
"""However quick the steps are. A file server that fails over answers nobody for as long as its clients may claim their
locks again, 90 s by default for NFSv4; who waits for an image meanwhile does not hang."""
_SLOWEST_STEPS = 10.0
"""How many times the slowest of the last steps. The longest micro-batch of a run takes several times as long as most,
and so does a GPU that throttles or shares its bus with a checkpoint; ten times as long is none of these."""


class Doing(StrEnum):
    """What a rank is at."""

    LOADING = "loads samples"
    WAITING = "waits for the other processes"
    COMPUTING = "computes"
    SAVING = "waits for a checkpoint to be written"


Beat = Callable[[Doing], None]


class Watchdog:
    """Calls ``on_stall`` from a thread when there was no beat for ``limit_s()``; begins with the first beat.

    After half of that the stacks of all threads go to standard error, from a thread that needs no Python, so that they
    come even where the interpreter itself is held, and ``on_doubt`` is called, and ``on_relief`` if it goes on after
    all, from threads of their own, since the disk or the driver that they ask may be what hangs. Where all stand still,
    all have said so when the first one ends: whoever ends takes the others along, and the one at fault need not be the
    first.
    """

    def __init__(
        self,
        limit_s: Callable[[], float],
        on_stall: Callable[[Doing], None],
        on_doubt: Callable[[Doing], None] = lambda doing: None,
        on_relief: Callable[[], None] = lambda: None,
    ) -> None:
        self._limit_s = limit_s
        self._on_stall = on_stall
        self._on_doubt = on_doubt
        self._on_relief = on_relief
        self._stopped = threading.Event()
        self._last: tuple[Doing, float] | None = None
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def beat(self, doing: Doing) -> None:
        """Say that this rank gets on, and what it does next."""
        self._last = (doing, time.monotonic())
        faulthandler.dump_traceback_later(self._limit_s() / 2, repeat=True, file=_STDERR)

    def _run(self) -> None:
        doubted: tuple[Doing, float] | None = None
        while not self._stopped.wait(min(1.0, self._limit_s() / 4)):
            last, limit_s = self._last, self._limit_s()
            if last is None:
                continue
            if doubted is not None and last is not doubted:
                doubted = None
                threading.Thread(target=self._on_relief, name="relief", daemon=True).start()
            silent_s = time.monotonic() - last[1]
            if silent_s > limit_s / 2 and last is not doubted:
                doubted = last
                threading.Thread(target=self._on_doubt, args=(last[0],), name="evidence", daemon=True).start()
            # A checkpoint takes as long as it takes; the saver has a limit of its own.
            if last[0] is Doing.SAVING:
                continue
            patience = _WAITING_PATIENCE if last[0] is Doing.WAITING else 1.0
            if silent_s > limit_s * patience + _DUMP_ADVANCE_S:
                self._on_stall(last[0])
                return


def stall_limit_s(slowest_step_s: float | None, longest_s: float) -> float:
    """Seconds that a rank may stand still.

    Args:
        slowest_step_s: how long the slowest of the last steps took, checkpoints' copies left out; None if unknown.
        longest_s: as the run configuration has it, whatever the steps take: half of what operations between ranks
            wait.
    """
    if slowest_step_s is None:
        return longest_s
    return min(longest_s, max(_SHORTEST_S, _SLOWEST_STEPS * slowest_step_s))
