"""A cache of what is reported of all runs: what metrics are made from, and what reports are checked against."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from llava_api.constants import Phase
from llava_api.status import Status
from llava_operator import clock
from llava_operator.clock import from_time
from llava_operator.kube.client import Kube
from llava_operator.kube.kinds import RUNS
from llava_operator.kube.objects import Key, Object
from llava_operator.recent import Recent
from llava_operator.run import UnreadableError, parse_status


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """A run as it was last seen."""

    key: Key
    uid: str
    status: Status
    """Without logs and curves."""
    expires_at: datetime | None = None
    """When it has ended long enough ago to be deleted; None if no timer runs."""

    @property
    def is_finished(self) -> bool:
        """Whether nothing will happen to it any more."""
        return self.status.phase in (Phase.SUCCEEDED, Phase.FAILED)


class Runs:
    """Views of runs, by namespace and name."""

    def __init__(self, *, now: Callable[[], datetime] = clock.now) -> None:
        self._now = now
        self._views: dict[Key, RunView] = {}
        self._gone: Recent[tuple[Key, str]] = Recent()

    def __iter__(self) -> Iterator[RunView]:
        return iter(tuple(self._views.values()))

    def __len__(self) -> int:
        return len(self._views)

    def get(self, key: Key) -> RunView | None:
        """The run of this name, if one has been seen."""
        return self._views.get(key)

    def has(self, key: Key, uid: str) -> bool:
        """Whether a run of this name and UID has been seen."""
        view = self._views.get(key)
        return view is not None and view.uid == uid

    def had(self, key: Key, uid: str) -> bool:
        """Whether one was seen that was deleted a short time ago; its children follow it."""
        return (key, uid) in self._gone

    def note(self, raw: Object, *, deleted: bool = False) -> Key:
        """Take in a LlavaFineTune and tell its key. One with an unreadable status counts as without status."""
        meta = raw["metadata"]
        key = Key(meta["namespace"], meta["name"])
        if not deleted:
            status = _slim_status(raw)
            self._views[key] = RunView(key=key, uid=meta["uid"], status=status, expires_at=_expiry(raw, status))
        elif (known := self._views.get(key)) and known.uid == meta["uid"]:
            # Another run may have taken the name already.
            self.forget(key)
        return key

    def forget(self, key: Key) -> None:
        """Drop a run that is no more."""
        if view := self._views.pop(key, None):
            self._gone.add((key, view.uid))

    async def relist(self, kube: Kube, namespace: str | None) -> set[Key]:
        """Take in every run of a namespace, or (None) of all; returns those that are to be looked at.

        They are all that are not finished, those whose time after that is over or of which somebody is still to be
        told, and those that were known and are no more: the pass over such a key reads it live, and drops it.

        Raises:
            KubeError: the list could not be read.
        """
        known = {key for key in self._views if namespace in (None, key.namespace)}
        listed = {self.note(raw) async for raw in kube.list(RUNS, namespace)}
        return (known - listed) | {key for key in listed if (view := self.get(key)) and self._is_due(view)}

    def _is_due(self, view: RunView) -> bool:
        if not view.is_finished or view.status.open_notifications:
            return True
        return view.expires_at is not None and view.expires_at <= self._now()


def _expiry(raw: Object, status: Status) -> datetime | None:
    ttl_s = raw.get("spec", {}).get("ttlSecondsAfterFinished")
    if not isinstance(ttl_s, int) or status.completion_time is None:
        return None
    return from_time(status.completion_time) + timedelta(seconds=ttl_s)


def _slim_status(raw: Object) -> Status:
    try:
        status = parse_status(raw)
    except UnreadableError:
        return Status()
    progress = status.progress and status.progress.model_copy(update={"losses": ()})
    failure = status.failure and status.failure.model_copy(update={"log_tail": ""})
    return status.model_copy(update={"progress": progress, "failure": failure, "conditions": ()})
