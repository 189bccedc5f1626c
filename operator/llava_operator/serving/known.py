"""Tokens that were accepted a short time ago, and what was found out about them."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class KnownTokens(Generic[T]):
    """Remembers tokens by their hashes: the newest so many, each for a while.

    Refused ones do not belong in here: they would push accepted ones out.
    """

    def __init__(self, *, for_s: float, max_known: int, clock: Callable[[], float]) -> None:
        self._for_s = for_s
        self._max_known = max_known
        self._clock = clock
        self._known: OrderedDict[bytes, tuple[T, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, token: str) -> bool:
        """Whether it was accepted, however long ago: nobody can forge that."""
        return _digest(token) in self._known

    def get(self, token: str) -> T | None:
        """What is known of it; None if that was found out too long ago, or never."""
        found = self._known.get(_digest(token))
        return found[0] if found is not None and self._clock() < found[1] else None

    def put(self, token: str, finding: T | None) -> None:
        """Remember what was found out now; None: it was refused, and is forgotten."""
        digest = _digest(token)
        self._known.pop(digest, None)
        if finding is None:
            return
        self._known[digest] = (finding, self._clock() + self._for_s)
        while len(self._known) > self._max_known:
            self._known.popitem(last=False)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
