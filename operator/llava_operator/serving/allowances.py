"""How often something may happen: so many at once, so many a second after that. For each of many who ask."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

MAX_KNOWN = 4096
"""Askers that are remembered; who was quiet the longest is forgotten first, and has everything again."""


class Allowances(Generic[K]):
    """A token bucket for each asker: ``burst`` at once, refilled at ``per_s`` a second."""

    def __init__(self, *, per_s: float, burst: int, clock: Callable[[], float], max_known: int = MAX_KNOWN) -> None:
        self._per_s = per_s
        self._burst = burst
        self._clock = clock
        self._max_known = max_known
        self._left: OrderedDict[K, tuple[float, float]] = OrderedDict()

    def has(self, asker: K) -> bool:
        """Whether ``take`` would be granted now."""
        return self._now_left(asker) >= 1

    def take(self, asker: K, *, leave: float = 0) -> bool:
        """Take one, if there is one left besides ``leave``."""
        left = self._now_left(asker)
        is_granted = left >= 1 + leave
        self._left[asker] = (left - is_granted, self._clock())
        self._left.move_to_end(asker)
        while len(self._left) > self._max_known:
            self._left.popitem(last=False)
        return is_granted

    def _now_left(self, asker: K) -> float:
        left, since = self._left.get(asker, (float(self._burst), 0.0))
        return min(float(self._burst), left + (self._clock() - since) * self._per_s)
