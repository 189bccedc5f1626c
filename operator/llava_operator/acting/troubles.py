"""What only Events tell of a run that waits: why its Job makes no pods, a volume is not mounted, a claim has none.

Asked of the objects of one attempt, once they have waited for a while, and not more often than that: no watch. The
Events of a namespace are anybody's: they are read for a line to a person, and nothing is decided by them.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, ValidationError
from pydantic.alias_generators import to_camel

from llava_api.failures import Reason
from llava_api.text import show
from llava_operator.cache.views import MAX_REASON, MAX_TEXT, JobView, PodView
from llava_operator.deciding.reasons import NO_VOLUME, UNBOUND, read_reason
from llava_operator.deciding.references import list_claims
from llava_operator.deciding.waiting import Trouble, unstarted, waiting_since
from llava_operator.kube.client import Kube
from llava_operator.kube.errors import ForbiddenError, KubeError, NotFoundError
from llava_operator.kube.kinds import EVENTS, VOLUME_CLAIMS
from llava_operator.kube.objects import Object
from llava_operator.run import Run, attempt_of, current_stage

logger = logging.getLogger(__name__)

ASKED_AFTER_S = 30
"""Seconds for which an attempt has waited before Events are asked for, and between two times."""
MAX_EVENTS = 100
"""Events of one object that are read; Kubernetes' own components make fewer, and count up those that repeat."""
MAX_PODS = 2
"""Waiting pods of a gang that are asked about: what keeps one from starting mostly keeps all."""
RECENT = timedelta(minutes=3)
"""Of several troubles the clearest counts, if it is not older than the newest by more than this: the kubelet says which
Secret is missing at each try, and in between only that it waits for volumes."""

_TROUBLES = frozenset(
    {
        "FailedCreate", "FailedMount", "FailedMapVolume", "FailedAttachVolume", "ProvisioningFailed", "FailedBinding",
        "FailedCreatePodSandBox",
    }
)  # fmt: skip
_CURES = frozenset(
    {
        "SuccessfulCreate", "SuccessfulAttachVolume", "ProvisioningSucceeded", "Pulling", "Pulled", "Created",
        "Started",
    }
)  # fmt: skip
"""Events after which an earlier trouble of the same object is over."""


class _Wire(BaseModel):
    model_config = {"extra": "ignore", "alias_generator": to_camel}


class _Series(_Wire):
    last_observed_time: datetime | None = None


class _Meta(_Wire):
    creation_timestamp: datetime | None = None


class _Event(_Wire):
    """What is used of an Event; components write the old form or the new one."""

    metadata: _Meta = _Meta()
    reason: str = ""
    note: str = ""
    event_time: datetime | None = None
    series: _Series | None = None
    deprecated_last_timestamp: datetime | None = None

    @property
    def time(self) -> datetime:
        known = (
            self.series and self.series.last_observed_time, self.deprecated_last_timestamp, self.event_time,
            self.metadata.creation_timestamp,
        )  # fmt: skip
        instants = (one if one.tzinfo else one.replace(tzinfo=UTC) for one in known if one)
        return max(instants, default=datetime.min.replace(tzinfo=UTC))

    @property
    def said(self) -> str:
        reason, note = show(self.reason, max_chars=MAX_REASON), show(self.note, max_chars=MAX_TEXT)
        return f"{reason}: {note}" if note else reason


def read_trouble(raw: Sequence[Object]) -> str:
    """What the Events of one object say that stands in its way now; empty if nothing does.

    Args:
        raw: Events in no order; what is none is passed over.
    """
    events = []
    for one in raw:
        try:
            events.append(_Event.model_validate(one))
        except ValidationError:
            continue
    cured = max((event.time for event in events if event.reason in _CURES), default=datetime.min.replace(tzinfo=UTC))
    troubles = [event for event in events if event.reason in _TROUBLES and event.time >= cured]
    if not troubles:
        return ""
    newest = max(event.time for event in troubles)
    recent = [event for event in troubles if newest - event.time <= RECENT]
    return max(recent, key=lambda event: (read_reason(event.said) is Reason.MISSING_OBJECT, event.time)).said


@dataclass(kw_only=True)
class _Asked:
    at: datetime
    job_uid: str
    trouble: Trouble | None = None


@dataclass(kw_only=True)
class Troubles:
    """What Events tell, of each run (by UID) that waits."""

    kube: Kube
    now: Callable[[], datetime]
    _asked: dict[str, _Asked] = field(default_factory=dict)

    async def look(
        self, run: Run, job: JobView | None, pods: Sequence[PodView]
    ) -> tuple[Trouble | None, datetime | None]:
        """What stands in the way of the attempt that is under way, and when Events are to be asked for next.

        Asks the API server only where that is due. What it does not tell is not told: a run goes on without.
        """
        since = self._waiting_since(run, job, pods)
        if since is None or job is None:
            self.forget(run.uid)
            return None, None
        asked, now = self._asked.get(run.uid), self.now()
        if asked is not None and asked.job_uid != job.uid:
            asked = None
        due = (asked.at if asked else since) + timedelta(seconds=ASKED_AFTER_S)
        if now >= due:
            asked = self._asked[run.uid] = _Asked(at=now, job_uid=job.uid, trouble=await self._ask(run, job, pods))
            due = now + timedelta(seconds=ASKED_AFTER_S)
        return asked.trouble if asked else None, due

    def forget(self, run_uid: str) -> None:
        """Drop a run that does not wait any more."""
        self._asked.pop(run_uid, None)

    def _waiting_since(self, run: Run, job: JobView | None, pods: Sequence[PodView]) -> datetime | None:
        stage = current_stage(run.status)
        if stage is None or stage.newest is None:
            return None
        return waiting_since(stage, job, pods, attempt_of(run, stage).num_pods)

    async def _ask(self, run: Run, job: JobView, pods: Sequence[PodView]) -> Trouble | None:
        try:
            if not pods:
                return _trouble(await self._read(run, job.uid))
            waiting = unstarted(pods)
            if any(UNBOUND in pod.waiting for pod in waiting):
                return await self._ask_about_claims(run)
            # Of the others the pods themselves say why they wait.
            silent = [pod for pod in waiting if read_reason(pod.waiting) is None and pod.node][:MAX_PODS]
            found = await asyncio.gather(*(self._read(run, pod.uid) for pod in silent))
            return next(filter(None, map(_trouble, found)), None)
        except ForbiddenError as error:
            logger.warning("%s waits, and its Events may not be listed: %s", run.key, error)
        except KubeError as error:
            logger.info("%s waits, and its Events could not be listed: %s", run.key, error)
        return None

    async def _ask_about_claims(self, run: Run) -> Trouble | None:
        stage = current_stage(run.status)
        assert stage is not None, "an attempt of it waits"
        for name in list_claims(attempt_of(run, stage)):
            try:
                claim = await self.kube.get(VOLUME_CLAIMS, run.key.namespace, name)
            except NotFoundError:
                continue
            if claim.get("status", {}).get("phase") != "Pending":
                continue
            said = await self._read(run, claim["metadata"]["uid"])
            return Trouble(said or NO_VOLUME, about=f"claim {name}")
        return None

    async def _read(self, run: Run, uid: str) -> str:
        events: list[Object] = []
        async for event in self.kube.list(EVENTS, run.key.namespace, fields=f"regarding.uid={uid}"):
            events.append(event)
            if len(events) >= MAX_EVENTS:
                break
        return read_trouble(events)


def _trouble(said: str) -> Trouble | None:
    return Trouble(said) if said else None
