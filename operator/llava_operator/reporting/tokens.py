"""Who is speaking: a pod, proven by its projected service-account token."""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from llava_api.constants import TOKEN_AUDIENCE
from llava_operator.kube.client import Kube
from llava_operator.kube.kinds import TOKEN_REVIEWS
from llava_operator.kube.objects import Key, Object
from llava_operator.reporting.claims import Speaker
from llava_operator.serving.allowances import Allowances

ACCEPTED_FOR_S = 60.0
"""A token that has been accepted is not reviewed again for so long; a pod's end shows sooner, in the cache of pods."""
MAX_CACHED = 4096
"""Accepted tokens that are remembered. Refused ones are not: they would push accepted ones out."""
MAX_REVIEWS = 8
"""Reviews under way at the same time; more than that and the API server is the bottleneck."""
MAX_WAIT_S = 5.0
"""Longest wait for one of them to end."""
REFUSALS, REFUSALS_PER_S = 5, 0.1
"""Tokens of one address that may be refused by a review, at once and later on, before no other one is reviewed."""

_POD_NAME = "authentication.kubernetes.io/pod-name"
_POD_UID = "authentication.kubernetes.io/pod-uid"
_USER = "system:serviceaccount:"


class BusyError(Exception):
    """The token is not reviewed now."""


@dataclass(frozen=True, kw_only=True)
class _Accepted:
    speaker: Speaker
    until: float


class TokenReviewer:
    """Asks the API server about tokens, and remembers the accepted ones for a while by their hashes."""

    def __init__(self, kube: Kube, *, clock: Callable[[], float]) -> None:
        self._kube = kube
        self._clock = clock
        self._accepted: OrderedDict[bytes, _Accepted] = OrderedDict()
        self._slots = asyncio.Semaphore(MAX_REVIEWS)
        self._under_review: set[str] = set()
        self._refusals: Allowances[str] = Allowances(per_s=REFUSALS_PER_S, burst=REFUSALS, clock=clock)

    async def review(self, token: str, claimed: Speaker, source: str) -> Speaker | None:
        """The pod that ``token`` was issued to for this endpoint; None if it is none of that kind.

        A new token is reviewed only where no other new one for the same pod is, and where few from the same address
        have been refused: forged ones then take neither the reviews of other pods nor, for long, those of this one.

        Args:
            token: as it came.
            claimed: what it says; the caller has found it worth a review.
            source: the address that it came from.

        Raises:
            BusyError: it cannot be reviewed now.
            KubeError: the API server could not be asked.
        """
        digest = hashlib.sha256(token.encode()).digest()
        known = self._accepted.get(digest)
        if known is not None and self._clock() < known.until:
            return known.speaker
        if known is not None:
            # It was good a minute ago, which nobody can forge: it waits for no other token.
            speaker = await self._ask(token)
        else:
            speaker = await self._ask_about_new(token, claimed, source)
        self._remember(digest, speaker)
        return speaker

    async def _ask_about_new(self, token: str, claimed: Speaker, source: str) -> Speaker | None:
        if claimed.pod_uid in self._under_review or not self._refusals.has(source):
            raise BusyError
        self._under_review.add(claimed.pod_uid)
        try:
            speaker = await self._ask(token)
        finally:
            self._under_review.discard(claimed.pod_uid)
        if speaker is None:
            self._refusals.take(source)
        return speaker

    async def _ask(self, token: str) -> Speaker | None:
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [TOKEN_AUDIENCE]},
        }
        try:
            async with asyncio.timeout(MAX_WAIT_S):
                await self._slots.acquire()
        except TimeoutError:
            raise BusyError from None
        try:
            return read_review(await self._kube.create(TOKEN_REVIEWS, None, body))
        finally:
            self._slots.release()

    def _remember(self, digest: bytes, speaker: Speaker | None) -> None:
        self._accepted.pop(digest, None)
        if speaker is None:
            return
        self._accepted[digest] = _Accepted(speaker=speaker, until=self._clock() + ACCEPTED_FOR_S)
        while len(self._accepted) > MAX_CACHED:
            self._accepted.popitem(last=False)


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
