"""Follows the curve for one tracker, from a thread: training only ever leaves a point in a box and goes on.

The box is bounded. What did not fit, and what a destination lost when it failed, is read from the curve's own file when
it takes something again: the file has every step, so nothing is dropped but what is left when training ends.
"""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

from llava_api.failures import Reason
from llava_api.text import show
from llava_trainer.errors import StageError
from llava_trainer.training.curve import CurvePoint, stream_curve
from llava_trainer.training.tracking.observations import NAMES, Observation, observe

CAPACITY = 256
"""Points that wait."""
PIECE = 1000
"""Points of the curve's file that are in memory at a time: it may have millions."""
CLOSING_S = 5.0
"""What all trackers together get at the end for what is left."""
STOPPING_S = 1.0
"""The same where the pod was asked to stop, which has ``llava_api.memory.RESERVED_S`` for all but a checkpoint."""
_LAST_FAILURES = 2
"""In a row, after which nothing is tried any more when training has ended."""

_MAX_TOLD = 600
"""Characters of an error."""

logger = logging.getLogger(__name__)


class Destination(Protocol):
    """Where observations go. Called from one thread; whatever it raises counts as a failure, and it is opened anew."""

    def last_step_of(self, name: str) -> int:
        """The last step of which the destination has a value of this name; 0 without."""
        ...

    def write(self, observations: Sequence[Observation]) -> None:
        """Take these, whose steps come after those of their names that are there."""
        ...

    def finish(self, *, succeeded: bool) -> None:
        """Training has ended in this attempt, and all of its curve is there."""
        ...

    def close(self) -> None:
        """Let go of what is held."""
        ...


class Follower:
    """Hands every point of the curve to one destination, each value once."""

    def __init__(
        self, name: str, open_destination: Callable[[], Destination], curve_file: Path, *, interval_s: float = 2.0,
        longest_s: float = 60.0, capacity: int = CAPACITY,
    ) -> None:  # fmt: skip
        """Begin with what the curve's file holds already, as soon as it is started (``following``).

        Args:
            name: of the tracker, for the log.
            open_destination: called in the thread, again after each failure.
            curve_file: that has every point.
            interval_s: seconds between two writes.
            longest_s: longest wait after failures, each of which doubles it.
            capacity: points that may wait.
        """
        self._name = name
        self._open = open_destination
        self._curve_file = curve_file
        self._interval_s, self._longest_s = interval_s, longest_s
        self._changed = threading.Condition()
        self._waiting: deque[CurvePoint] = deque(maxlen=capacity)
        self._is_behind = True
        """Whether the file has points that neither wait nor were taken."""
        self._newest_step = self._handed_step = 0
        """Of the points that were left here, and of those that the destination has."""
        self._is_closing = False
        self._succeeded = False
        self._told: set[str] = set()
        self._thread = threading.Thread(target=self._run, name=f"tracking-{name}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def finish(self, *, succeeded: bool) -> None:
        """Hand over what is left, and tell the destination that training has ended. Never waits."""
        with self._changed:
            self._succeeded = succeeded
            self._is_closing = True
            self._changed.notify()

    def wait(self, timeout_s: float) -> None:
        """Wait until that is done, but no longer than ``timeout_s`` seconds; what is missing then is logged."""
        self._thread.join(timeout_s)
        with self._changed:
            lost = self._newest_step - self._handed_step
            is_whole = not (self._thread.is_alive() or self._waiting or self._is_behind)
        if not is_whole:
            logger.warning(
                "%s has not taken all of the curve: up to %d steps are missing there; %s has all",
                self._name, max(lost, 0), self._curve_file,
            )  # fmt: skip

    def note(self, point: CurvePoint) -> None:
        """Leave a point, or the same again with more of it known. Never waits."""
        with self._changed:
            if len(self._waiting) == self._waiting.maxlen:
                self._is_behind = True
            self._waiting.append(point)
            self._newest_step = point.step
            self._changed.notify()

    def _run(self) -> None:
        destination: Destination | None = None
        failures = 0
        while self._has_more():
            try:
                destination = destination or self._open()
                self._hand_over(destination)
                failures = 0
                self._tell_once("again", logging.INFO, "takes the curve again")
            except Exception as error:
                # A tracker's trouble is nobody else's, whatever it is.
                failures += 1
                self._tell_once(type(error).__name__, logging.WARNING, f"does not take the curve: {describe(error)}")
                self._drop(destination)
                destination = None
            with self._changed:
                if failures > _LAST_FAILURES and self._is_closing:
                    break
                wait_s = min(self._longest_s, self._interval_s * 2.0 ** min(failures, 16))
                self._changed.wait_for(lambda: self._is_closing, timeout=wait_s)
        try:
            if destination is not None:
                self._compare_ends(destination)
                destination.finish(succeeded=self._succeeded)
        except Exception as error:
            self._tell_once("finish", logging.WARNING, f"was not told that training has ended: {describe(error)}")
        self._drop(destination)

    def _has_more(self) -> bool:
        """Wait for something to hand over; false when there is nothing left and training has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_behind or self._is_closing)
            return bool(self._waiting or self._is_behind)

    def _hand_over(self, destination: Destination) -> None:
        with self._changed:
            points = tuple(self._waiting)
            is_behind, self._is_behind = self._is_behind, False
            self._waiting.clear()
        try:
            if is_behind:
                with contextlib.closing(stream_curve(self._curve_file)) as known:
                    while piece := tuple(islice(known, PIECE)):
                        self._write(destination, piece)
            self._write(destination, points)
        except BaseException:
            with self._changed:
                self._is_behind = True
            raise

    def _write(self, destination: Destination, points: Sequence[CurvePoint]) -> None:
        now_s = time.time()
        last = {name: destination.last_step_of(name) for name in NAMES.values()}
        # A point that was left twice is told as it was last seen.
        new: dict[tuple[str, int], Observation] = {
            (one.name, one.step): one
            for point in points for one in observe(point, now_s) if one.step > last[one.name]
        }  # fmt: skip
        if new:
            destination.write(sorted(new.values(), key=lambda one: one.step))
        self._handed_step = max((point.step for point in points), default=self._handed_step)

    def _compare_ends(self, destination: Destination) -> None:
        """Tell of one that has more of a whole run than its curve: what it says that it has is not told to it again."""
        own = max(self._newest_step, self._handed_step)
        there = max(map(destination.last_step_of, NAMES.values()))
        if self._succeeded and there > own:
            self._tell_once(
                "beyond", logging.WARNING,
                f"has steps up to {there} of a run that ended with step {own}: they are another attempt's, or the rest "
                "is not there either",
            )  # fmt: skip

    def _drop(self, destination: Destination | None) -> None:
        if destination is not None:
            try:
                destination.close()
            except Exception as error:
                logger.debug("%s cannot be closed: %s", self._name, error)

    def _tell_once(self, kind: str, level: int, message: str) -> None:
        """Log the first message of a kind; that it works is worth a line only after it has not."""
        if kind not in self._told and (kind != "again" or self._told):
            self._told.add(kind)
            logger.log(level, "%s %s (training goes on either way; this is not logged again)", self._name, message)


@contextlib.contextmanager
def following(
    followers: Sequence[Follower], *, closing_s: float = CLOSING_S, stopping_s: float = STOPPING_S
) -> Iterator[Sequence[Follower]]:
    """Have them follow until the context is left, and give all of them one deadline together for what is left then.

    Args:
        followers: not started.
        closing_s: seconds until the deadline.
        stopping_s: the same where the context is left since the pod was asked to stop.
    """
    for follower in followers:
        follower.start()
    succeeded, left_s = False, closing_s
    try:
        yield followers
        succeeded = True
    except BaseException as error:
        if isinstance(error, StageError) and error.reason is Reason.INTERRUPTED:
            left_s = stopping_s
        raise
    finally:
        deadline = time.monotonic() + left_s
        for follower in followers:
            follower.finish(succeeded=succeeded)
        for follower in followers:
            follower.wait(max(0.0, deadline - time.monotonic()))


def describe(error: Exception) -> str:
    """An error in one bounded line."""
    return show(f"{type(error).__name__}: {error}", max_chars=_MAX_TOLD)
