"""Which samples are held out: all of a picture or none of it, the same for the same seed."""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


class SplitError(ValueError):
    """The samples cannot be split; the message names the fix."""


def split_by_group(
    items: Sequence[Item], groups: Sequence[str], weights: Sequence[int], *, fraction: float, seed: int
) -> tuple[list[Item], list[Item]]:
    """Hold whole groups out until their weight is as near to ``fraction`` of the whole as it gets.

    Groups are taken in an order that follows from seed and group alone, each that still fits: the same pictures are
    held out whatever order or form the export is in. At least one group is held out, and one is kept.

    Args:
        items: what is split; both sides keep its order.
        groups: group of each item (its picture's digest).
        weights: weight of each item (its questions), at least 1.
        fraction: wanted share of the weight, at most 0.5.
        seed: of the order.

    Raises:
        SplitError: everything is one group.
    """
    sizes: dict[str, int] = {}
    for group, weight in zip(groups, weights, strict=True):
        sizes[group] = sizes.get(group, 0) + weight
    if len(sizes) < 2:
        raise SplitError(
            "every sample is about the same picture, so that none can be held out: add samples of other pictures, or "
            "name held-out samples in dataset.validation.file"
        )
    held_out = _choose(sizes, fraction * sum(sizes.values()), seed)
    kept: list[Item] = []
    validation: list[Item] = []
    for item, group in zip(items, groups, strict=True):
        (validation if group in held_out else kept).append(item)
    return kept, validation


def _choose(sizes: dict[str, int], target: float, seed: int) -> set[str]:
    order = sorted(sizes, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())
    chosen: set[str] = set()
    total = 0
    for group in order:
        if total + sizes[group] <= target:
            chosen.add(group)
            total += sizes[group]
    # One more, if overshooting with it is nearer than staying below; and one in any case.
    others = [group for group in order if group not in chosen]
    nearest = min(others, key=lambda group: total + sizes[group])
    if not chosen or total + sizes[nearest] - target < target - total:
        chosen.add(nearest)
    return chosen
