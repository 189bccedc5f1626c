"""Kubernetes Events of a run's transitions.

The same status always gives the same Events with the same names, so that a pass that is repeated, by whichever
operator, adds none. They are for people: a run goes on without those that cannot be made, and a later pass tries again.
"""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from llava_api.constants import API_VERSION, GROUP, KIND
from llava_api.status import Status
from llava_api.text import show
from llava_operator.acting.transitions import Transition, list_transitions
from llava_operator.clock import from_time, to_micro_time
from llava_operator.kube.client import Kube
from llava_operator.kube.errors import AlreadyExistsError, InvalidError, KubeError, NotFoundError
from llava_operator.kube.kinds import EVENTS
from llava_operator.kube.objects import Key, Object

logger = logging.getLogger(__name__)

CONTROLLER = f"{GROUP}/operator"
MAX_NOTE_BYTES = 1024
"""The API server refuses a longer note, counted in UTF-8."""
RECENT = timedelta(minutes=10)
"""Older transitions are history: their Events may have expired, and must not come back after a restart."""


def build_event(key: Key, uid: str, transition: Transition, instance: str) -> Object:
    """The Event of a transition."""
    digest = hashlib.sha256(f"{uid}/{transition.about}/{transition.reason}/{transition.time}".encode()).hexdigest()
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{key.name}.{digest[:16]}", "namespace": key.namespace},
        "eventTime": to_micro_time(from_time(transition.time)),
        "reportingController": CONTROLLER,
        "reportingInstance": instance[:128],
        "action": transition.action,
        "reason": transition.reason,
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": key.name,
            "namespace": key.namespace,
            "uid": uid,
        },
        "note": show(transition.note, max_bytes=MAX_NOTE_BYTES),
        "type": transition.type,
    }


class EventPublisher:
    """Creates the Events that a status tells of, each once.

    Those that this process has seen are remembered as long as their transitions count as recent, and no longer. Of what
    happened before its start it asks first, since an earlier process may have told of it: a restart writes nothing.
    """

    def __init__(self, kube: Kube, *, instance: str, now: Callable[[], datetime]) -> None:
        self._kube = kube
        self._instance = instance
        self._now = now
        self._started_at = now()
        self._published: OrderedDict[tuple[str, str], datetime] = OrderedDict()
        """When each was published, by namespace and name; oldest first."""

    async def publish_status(self, key: Key, uid: str, status: Status) -> bool:
        """Create the Events of every recent transition.

        Returns:
            Whether they could be created; else a later pass is to try again.
        """
        now = self._now()
        recent = (one for one in list_transitions(status) if now - from_time(one.time) <= RECENT)
        return await self._publish(key, uid, recent)

    async def publish(self, key: Key, uid: str, transition: Transition) -> bool:
        """Create the Event of one transition, unless it is there.

        Returns:
            Whether it could be created; else a later pass is to try again.
        """
        return await self._publish(key, uid, [transition])

    async def _publish(self, key: Key, uid: str, transitions: Iterable[Transition]) -> bool:
        try:
            for transition in transitions:
                await self._publish_one(key, uid, transition)
        except KubeError as error:
            logger.warning("%s: an Event could not be created: %s", key, error)
            return False
        return True

    async def _publish_one(self, key: Key, uid: str, transition: Transition) -> None:
        event = build_event(key, uid, transition, self._instance)
        name = (key.namespace, event["metadata"]["name"])
        if name in self._published:
            return
        is_ours = from_time(transition.time) >= self._started_at
        if is_ours or not await self._exists(*name):
            await self._create(key, event)
        self._remember(name)

    async def _exists(self, namespace: str, name: str) -> bool:
        try:
            await self._kube.get(EVENTS, namespace, name)
        except NotFoundError:
            return False
        return True

    async def _create(self, key: Key, event: Object) -> None:
        try:
            await self._kube.create(EVENTS, key.namespace, event)
        except AlreadyExistsError:
            pass
        except InvalidError as error:
            # It will be refused again: for this one Event it stays at that.
            logger.error("%s: the Event %s is refused: %s", key, event["reason"], error)

    def _remember(self, name: tuple[str, str]) -> None:
        now = self._now()
        self._published[name] = now
        while self._published and now - next(iter(self._published.values())) > RECENT:
            self._published.popitem(last=False)
