"""Who is speaking: a pod, proven by its projected service-account token."""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from llava_api.constants import TOKEN_AUDIENCE
from llava_operator.kube import Kube
from llava_operator.resources import TOKEN_REVIEWS
from llava_operator.views import Key
from llava_operator.wire import Object

ACCEPTED_FOR_S = 60.0
"""A token that has been accepted is not reviewed again for so long; a pod's end shows sooner, in the cache of pods."""
REFUSED_FOR_S = 10.0
MAX_CACHED = 4096
MAX_REVIEWS = 8
"""Reviews under way at the same time; more than that and the API server is the bottleneck."""

_POD_NAME = "authentication.kubernetes.io/pod-name"
_POD_UID = "authentication.kubernetes.io/pod-uid"
_USER = "system:serviceaccount:"


class BusyError(Exception):
    """Too many tokens are being reviewed."""


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """The pod that a token was issued to."""

    pod: Key
    pod_uid: str


class TokenReviewer:
    """Asks the API server about tokens, and remembers the answers for a while by the tokens' hashes."""

    def __init__(self, kube: Kube, *, clock: Callable[[], float]) -> None:
        self._kube = kube
        self._clock = clock
        self._known: OrderedDict[bytes, tuple[float, Speaker | None]] = OrderedDict()
        self._slots = asyncio.Semaphore(MAX_REVIEWS)

    async def review(self, token: str) -> Speaker | None:
        """The pod that ``token`` was issued to for this endpoint; None if it is none of that kind.

        Raises:
            BusyError: too many reviews are under way.
            KubeError: the API server could not be asked.
        """
        digest = hashlib.sha256(token.encode()).digest()
        known = self._known.get(digest)
        if known is not None and self._clock() < known[0]:
            return known[1]
        if self._slots.locked():
            raise BusyError
        async with self._slots:
            speaker = await self._ask(token)
        self._remember(digest, speaker)
        return speaker

    async def _ask(self, token: str) -> Speaker | None:
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [TOKEN_AUDIENCE]},
        }
        return read_review(await self._kube.create(TOKEN_REVIEWS, None, body))

    def _remember(self, digest: bytes, speaker: Speaker | None) -> None:
        life_s = ACCEPTED_FOR_S if speaker is not None else REFUSED_FOR_S
        self._known[digest] = (self._clock() + life_s, speaker)
        self._known.move_to_end(digest)
        while len(self._known) > MAX_CACHED:
            self._known.popitem(last=False)


def read_review(review: Object) -> Speaker | None:
    """The pod that a reviewed token belongs to; None if it is refused, for others, or no pod's."""
    status = review.get("status") or {}
    user = status.get("user") or {}
    username, extra = user.get("username", ""), user.get("extra") or {}
    names, uids = extra.get(_POD_NAME, []), extra.get(_POD_UID, [])
    # Without the audience in the answer the API server has not understood that one was asked for.
    is_ours = status.get("authenticated") is True and TOKEN_AUDIENCE in status.get("audiences", [])
    if not is_ours or not username.startswith(_USER) or len(names) != 1 or len(uids) != 1:
        return None
    namespace = username.removeprefix(_USER).partition(":")[0]
    return Speaker(pod=Key(namespace, names[0]), pod_uid=uids[0])
