"""Progress reports between their arrival and the status: the newest of each run, written no more often than allowed.

All runs together may write so many times a second. That rate is cut into slots, and a run that reports gets the next
free one, so that no two runs wait for the same instant: the pass that it wakes finds its report due. With more runs
than fit into an interval, each is written that much more rarely, in turn.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime, timedelta

from llava_api.constants import StageName
from llava_api.report import MAX_NEXT_REPORT_S
from llava_api.status import Progress

EARLY_S = 0.01
"""A timer may fire a little before the wall clock has got there; the pass that it wakes is not too early for that."""
LATE_S = 1.0
"""A pass that is later than this (the API server was away) takes another slot: of the last second, else a later one."""
SILENT_S = MAX_NEXT_REPORT_S
"""A run counts as one that reports for so long after its last report, or for three times as long as it had to wait."""


@dataclass(kw_only=True)
class _Entry:
    reported_at: float
    progress: Progress | None = None
    """What no status holds yet."""
    latest: Progress | None = None
    """The newest, written or not."""
    due_at: float | None = None
    """Its slot; None while there is nothing to write."""
    written_at: float | None = None


class ProgressBook:
    """The newest report of each run (by UID) that no status holds yet. Instants inside are seconds since 1970."""

    def __init__(self, *, interval_s: float, writes_per_s: float) -> None:
        self.interval_s = interval_s
        self._writes_per_s = writes_per_s
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        """The run that was silent the longest comes first."""
        self._taken: set[int] = set()
        """Slots, numbered from 1970 on."""
        self._prune_at = 64

    def put(self, run_uid: str, progress: Progress, now: datetime) -> datetime | None:
        """Take in a report; it replaces an older one that was not written, and keeps its slot.

        Returns:
            When a pass has to look at the run; None if one is doing so now.
        """
        instant = now.timestamp()
        entry = self._entries.setdefault(run_uid, _Entry(reported_at=instant))
        entry.progress, entry.latest, entry.reported_at = progress, progress, instant
        self._entries.move_to_end(run_uid)
        self._drop_silent(instant)
        if entry.due_at is not None and instant - LATE_S <= entry.due_at <= instant:
            return None
        if entry.due_at is None:
            self._reserve(entry, instant, instant)
        return self.due_at(run_uid, now)

    def latest(self, run_uid: str) -> Progress | None:
        """The newest report of a run that reports now, written or not: a status may not have come back yet."""
        entry = self._entries.get(run_uid)
        return entry.latest if entry else None

    def newest(self, run_uid: str, stage: StageName, attempt: int) -> Progress | None:
        """The unwritten report of this attempt, if there is one."""
        entry = self._entries.get(run_uid)
        progress = entry.progress if entry else None
        if progress is None or (progress.stage, progress.attempt) != (stage, attempt):
            return None
        return progress

    def due_at(self, run_uid: str, now: datetime) -> datetime:
        """The instant from which a write for progress alone is allowed; ``now`` if it is."""
        entry, instant = self._entries.get(run_uid), now.timestamp()
        if entry is None or entry.due_at is None:
            return now
        if not instant - LATE_S <= entry.due_at <= instant + 2 * self._stretch_s + LATE_S:
            # Missed; or the clock was set back.
            self._reserve(entry, instant, instant - LATE_S)
        return now + timedelta(seconds=entry.due_at - instant) if entry.due_at > instant + EARLY_S else now

    def next_report_s(self, run_uid: str, now: datetime) -> float:
        """Seconds after which the next report of a run can be written as soon as it comes."""
        wait_s = (self.due_at(run_uid, now) - now).total_seconds()
        return min(wait_s + self._stretch_s, MAX_NEXT_REPORT_S)

    def note_written(self, run_uid: str, progress: Progress, now: datetime) -> None:
        """A status with ``progress`` has been written."""
        instant = now.timestamp()
        entry = self._entries.setdefault(run_uid, _Entry(reported_at=instant))
        entry.written_at, entry.due_at = instant, None
        if entry.progress == progress:
            entry.progress = None
        elif entry.progress is not None:
            self._reserve(entry, instant, instant)

    def forget(self, run_uid: str) -> None:
        """Drop a run that is no more or has ended."""
        self._entries.pop(run_uid, None)

    @property
    def _stretch_s(self) -> float:
        """Seconds between two writes of one run, with as many as report now."""
        return max(self.interval_s, len(self._entries) / self._writes_per_s)

    def _reserve(self, entry: _Entry, instant: float, earliest: float) -> None:
        """Give a run the first slot that is free from ``earliest`` on."""
        # A write in the future is one from before the clock was set back.
        if entry.written_at is not None and entry.written_at <= instant:
            earliest = max(earliest, entry.written_at + self.interval_s)
        slot = math.floor(earliest * self._writes_per_s)
        while slot in self._taken:
            slot += 1
        self._taken.add(slot)
        entry.due_at = max(earliest, slot / self._writes_per_s)
        if len(self._taken) > self._prune_at:
            past = math.floor((instant - 2 * LATE_S) * self._writes_per_s)
            self._taken = {slot for slot in self._taken if slot >= past}
            self._prune_at = 64 + 2 * len(self._taken)

    def _drop_silent(self, instant: float) -> None:
        oldest = instant - max(SILENT_S, 3 * self._stretch_s)
        while self._entries and next(iter(self._entries.values())).reported_at < oldest:
            self._entries.popitem(last=False)
