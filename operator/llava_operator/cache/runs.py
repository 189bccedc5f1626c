"""A cache of what is reported of all runs: what metrics are made from, and what reports are checked against."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from llava_api.constants import Phase
from llava_api.status import Status, Time
from llava_operator import clock
from llava_operator.clock import from_time
from llava_operator.kube.client import Kube
from llava_operator.kube.kinds import RUNS
from llava_operator.kube.objects import Key, Object
from llava_operator.recent import Recent
from llava_operator.run import UnreadableError, parse_status

TEAM_LABEL = "team"
"""Label of a run that tells whose it is, where the installation names none."""
ENDS = frozenset({Phase.SUCCEEDED, Phase.FAILED})
"""Phases in which nothing will happen to a run any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """A run as it was last seen."""

    key: Key
    uid: str
    status: Status
    """Without logs and curves."""
    method: str = ""
    """What training learns, as the spec says it."""
    team: str = ""
    """Value of the label that tells whose it is; empty if it has none."""
    created_at: float | None = None
    """When it was created, in seconds since 1970; None if unknown."""
    ended_at: float | None = None
    """When it ended, well or not; None while it goes on."""
    expires_at: datetime | None = None
    """When it has ended long enough ago to be deleted; None if no timer runs."""

    @property
    def is_finished(self) -> bool:
        """Whether nothing will happen to it any more."""
        return self.status.phase in ENDS


class Runs:
    """Views of runs, by namespace and name."""

    def __init__(self, *, team_label: str = TEAM_LABEL, now: Callable[[], datetime] = clock.now) -> None:
        self._team_label = team_label
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
            self._views[key] = self._view(key, raw)
        elif (known := self._views.get(key)) and known.uid == meta["uid"]:
            # Another run may have taken the name already.
            self.forget(key)
        return key

    def _view(self, key: Key, raw: Object) -> RunView:
        meta, status = raw["metadata"], _slim_status(raw)
        is_over = status.phase in ENDS and status.completion_time is not None
        return RunView(
            key=key,
            uid=meta["uid"],
            status=status,
            method=_word(raw.get("spec", {}).get("training", {}).get("method")),
            team=_word((meta.get("labels") or {}).get(self._team_label)),
            created_at=_timestamp(meta.get("creationTimestamp")),
            ended_at=_timestamp(status.completion_time) if is_over else None,
            expires_at=_expiry(raw, status),
        )

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


def _word(value: object) -> str:
    """A value as labels have them, which the API server holds to that form; empty if it is anything else."""
    return value if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9._-]{1,63}", value) else ""


def _timestamp(time: Time | None) -> float | None:
    return from_time(time).timestamp() if time else None


def _slim_status(raw: Object) -> Status:
    try:
        status = parse_status(raw)
    except UnreadableError:
        return Status()
    progress = status.progress and status.progress.model_copy(update={"losses": ()})
    failure = status.failure and status.failure.model_copy(update={"log_tail": ""})
    return status.model_copy(update={"progress": progress, "failure": failure, "conditions": ()})
