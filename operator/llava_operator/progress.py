"""Progress reports between their arrival and the status: the newest of each run, written no more often than allowed."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from llava_api.constants import StageName
from llava_api.status import Progress


@dataclass(kw_only=True)
class _Entry:
    progress: Progress | None = None
    written_at: datetime | None = None


class ProgressBook:
    """The newest report of each run (by UID) that no status holds yet."""

    def __init__(self, *, interval_s: float, writes_per_s: float) -> None:
        self._interval = timedelta(seconds=interval_s)
        self._gap = timedelta(seconds=1 / writes_per_s)
        self._entries: dict[str, _Entry] = {}
        self._next_write: datetime | None = None

    def put(self, run_uid: str, progress: Progress) -> None:
        """Take in a report; it replaces an older one that was not written."""
        self._entries.setdefault(run_uid, _Entry()).progress = progress

    def newest(self, run_uid: str, stage: StageName, attempt: int) -> Progress | None:
        """The unwritten report of this attempt, if there is one."""
        entry = self._entries.get(run_uid)
        progress = entry.progress if entry else None
        if progress is None or (progress.stage, progress.attempt) != (stage, attempt):
            return None
        return progress

    def due_at(self, run_uid: str, now: datetime) -> datetime:
        """The instant from which a write for progress alone is allowed: for this run, and over all runs."""
        entry = self._entries.get(run_uid)
        of_run = entry.written_at + self._interval if entry and entry.written_at else now
        return max(of_run, self._next_write or now)

    def note_written(self, run_uid: str, progress: Progress, now: datetime) -> None:
        """A status with ``progress`` has been written."""
        entry = self._entries.setdefault(run_uid, _Entry())
        entry.written_at = now
        if entry.progress == progress:
            entry.progress = None
        self._next_write = max(now, self._next_write or now) + self._gap

    def forget(self, run_uid: str) -> None:
        """Drop a run that is no more or has ended."""
        self._entries.pop(run_uid, None)
