"""Who is speaking: a pod, proven by its projected service-account token."""

from collections.abc import Callable

from llava_api.constants import TOKEN_AUDIENCE
from llava_operator.kube.client import Kube
from llava_operator.kube.objects import Key, Object
from llava_operator.kube.reviews import BusyError, Reviews
from llava_operator.reporting.claims import Speaker
from llava_operator.serving.allowances import Allowances
from llava_operator.serving.known import KnownTokens

ACCEPTED_FOR_S = 60.0
"""A token that has been accepted is not reviewed again for so long; a pod's end shows sooner, in the cache of pods."""
MAX_CACHED = 4096
"""Accepted tokens that are remembered. Refused ones are not: they would push accepted ones out."""
REFUSALS, REFUSALS_PER_S = 5, 0.1
"""Tokens of one address that may be refused by a review, at once and later on, before no other one is reviewed."""

_POD_NAME = "authentication.kubernetes.io/pod-name"
_POD_UID = "authentication.kubernetes.io/pod-uid"
_USER = "system:serviceaccount:"


class TokenReviewer:
    """Asks the API server about tokens, and remembers the accepted ones for a while."""

    def __init__(self, kube: Kube, *, clock: Callable[[], float]) -> None:
        self._reviews = Reviews(kube)
        self._accepted: KnownTokens[Speaker] = KnownTokens(for_s=ACCEPTED_FOR_S, max_known=MAX_CACHED, clock=clock)
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
        if (known := self._accepted.get(token)) is not None:
            return known
        if token in self._accepted:
            # It was good a minute ago, which nobody can forge: it waits for no other token.
            speaker = await self._ask(token)
        else:
            speaker = await self._ask_about_new(token, claimed, source)
        self._accepted.put(token, speaker)
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
        return read_review(await self._reviews.review_token(token, [TOKEN_AUDIENCE]))


def read_review(status: Object) -> Speaker | None:
    """The pod that a reviewed token belongs to; None if it is refused, for others, or no pod's."""
    user = status.get("user") or {}
    username, extra = user.get("username", ""), user.get("extra") or {}
    names, uids = extra.get(_POD_NAME, []), extra.get(_POD_UID, [])
    # Without the audience in the answer the API server has not understood that one was asked for.
    is_ours = status.get("authenticated") is True and TOKEN_AUDIENCE in status.get("audiences", [])
    if not is_ours or not username.startswith(_USER) or len(names) != 1 or len(uids) != 1:
        return None
    namespace = username.removeprefix(_USER).partition(":")[0]
    return Speaker(pod=Key(namespace, names[0]), pod_uid=uids[0])
