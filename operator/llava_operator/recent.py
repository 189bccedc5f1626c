"""What was here a short time ago: the newest so many, and no more."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)

MAX_KEPT = 4096


class Recent(Generic[T]):
    """A set that forgets what was added first when it is full."""

    def __init__(self, max_kept: int = MAX_KEPT) -> None:
        self._max_kept = max_kept
        self._kept: OrderedDict[T, None] = OrderedDict()

    def __contains__(self, item: object) -> bool:
        return item in self._kept

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, item: T) -> None:
        """Add, as the newest."""
        self._kept[item] = None
        self._kept.move_to_end(item)
        while len(self._kept) > self._max_kept:
            self._kept.popitem(last=False)
