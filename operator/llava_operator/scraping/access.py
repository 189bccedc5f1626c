"""Who may read the metrics: whoever may get /metrics by the cluster's own rules, which the API server is asked about.

The same two questions as controller-runtime's: TokenReview for who it is, SubjectAccessReview for what they may do.
"""

from collections.abc import Callable
from enum import Enum

from llava_operator.kube.client import Kube
from llava_operator.kube.reviews import BusyError, Reviews
from llava_operator.recent import Recent
from llava_operator.serving.allowances import Allowances
from llava_operator.serving.known import KnownTokens

PATH = "/metrics"
"""What is asked for, and what the right is about (``nonResourceURLs``)."""
MAX_TOKEN = 8190
"""Characters; aiohttp takes no longer header."""
GRANTED_FOR_S = 60.0
"""A token that was let in is not asked about again for so long: as long, a right that was taken away still counts."""
MAX_GRANTED = 256
"""Tokens that are remembered. Refused ones are not: they would push out those of Prometheus."""
MAX_KNOWN = 64
"""Addresses that are remembered from which somebody was let in."""
REFUSALS, REFUSALS_PER_S = 5, 0.1
"""Tokens of one address that may be refused, at once and later on, before no other one is asked about."""
STRANGERS, STRANGERS_PER_S = 16, 1.0
"""New tokens of all addresses together from which nobody was let in before, at once and later on."""


class Access(Enum):
    """What becomes of a request."""

    GRANTED = "granted"
    UNKNOWN = "unknown"
    """Nobody whom the API server knows: 401."""
    FORBIDDEN = "forbidden"
    """Somebody who has not the right: 403."""


class Readers:
    """Lets readers in by their tokens."""

    def __init__(self, kube: Kube, *, clock: Callable[[], float]) -> None:
        self._reviews = Reviews(kube)
        self._granted: KnownTokens[Access] = KnownTokens(for_s=GRANTED_FOR_S, max_known=MAX_GRANTED, clock=clock)
        self._known: Recent[str] = Recent(MAX_KNOWN)
        """Addresses."""
        self._under_review: set[str] = set()
        """Addresses with a new token."""
        self._refusals: Allowances[str] = Allowances(per_s=REFUSALS_PER_S, burst=REFUSALS, clock=clock)
        self._strangers: Allowances[None] = Allowances(per_s=STRANGERS_PER_S, burst=STRANGERS, clock=clock)

    async def judge(self, token: str, source: str) -> Access:
        """What becomes of a request with this token.

        A new token is asked about only where no other new one of the same address is, where few of that address were
        refused, and within what strangers may have together: bad tokens cost few questions, however many there are.

        Args:
            token: as it came.
            source: the address that it came from.

        Raises:
            BusyError: it is not asked about now.
            KubeError: the API server could not be asked.
        """
        if len(token) > MAX_TOKEN or not token.isascii() or not token.isprintable():
            return Access.UNKNOWN
        if self._granted.get(token) is not None:
            return Access.GRANTED
        if token in self._granted:
            # It was good a minute ago, which nobody can forge: it waits for no other token.
            access = await self._ask(token)
        else:
            access = await self._ask_about_new(token, source)
        self._granted.put(token, access if access is Access.GRANTED else None)
        return access

    async def _ask_about_new(self, token: str, source: str) -> Access:
        if source in self._under_review or not self._refusals.has(source):
            raise BusyError
        if source not in self._known and not self._strangers.take(None):
            raise BusyError
        self._under_review.add(source)
        try:
            access = await self._ask(token)
        finally:
            self._under_review.discard(source)
        if access is Access.GRANTED:
            self._known.add(source)
        else:
            self._refusals.take(source)
        return access

    async def _ask(self, token: str) -> Access:
        status = await self._reviews.review_token(token)
        user = status.get("user")
        if status.get("authenticated") is not True or not isinstance(user, dict) or not user.get("username"):
            return Access.UNKNOWN
        return Access.GRANTED if await self._reviews.may_get(user, PATH) else Access.FORBIDDEN
