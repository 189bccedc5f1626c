"""What a pass may do about a run: it commits an intent to the status, acts on one that is committed, or waits."""

from dataclasses import dataclass
from datetime import datetime

from llava_api.constants import StageName
from llava_api.status import Status


@dataclass(frozen=True, kw_only=True)
class Commit:
    """Write this status."""

    status: Status


@dataclass(frozen=True, kw_only=True)
class Start:
    """Create the children of an attempt that the status says is starting."""

    stage: StageName
    attempt: int


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Delete the Job of an attempt that the status says is stopping; its pods go with it."""

    job: str
    uid: str


@dataclass(frozen=True, kw_only=True)
class Remove:
    """Delete the children of an attempt that the status is about to forget: a run has those that it tells of alone.

    The next attempt is written when that is done: a crash in between looks for them again.
    """

    stage: StageName
    attempt: int


@dataclass(frozen=True, kw_only=True)
class KeepVolume:
    """Have the run's claim outlive it. Succeeded is written when that is done: a crash in between does it again."""


@dataclass(frozen=True, kw_only=True)
class Delete:
    """Delete the run: it ended long enough ago, and its volume outlives it."""


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Nothing to do before the next event, or before ``until``."""

    until: datetime | None = None


Decision = Commit | Start | Stop | Remove | KeepVolume | Delete | Wait
