"""Which samples are held out: all of a picture or none of it, the same for the same seed."""

import hashlib
from collections.abc import Mapping


class SplitError(ValueError):
    """The samples cannot be split; the message names the fix."""


def choose_held_out(sizes: Mapping[int, int], *, fraction: float, seed: int) -> set[int]:
    """Choose whole groups until their weight is as near to ``fraction`` of the whole as it gets.

    Groups are taken in an order that follows from seed and group alone, each that still fits: the same pictures are
    held out whatever order or form the export is in. At least one group is held out, and one is kept.

    Args:
        sizes: weight of each group (its questions), at least 1; a group is a number made from its pictures' content.
        fraction: wanted share of the weight, at most 0.5.
        seed: of the order.

    Raises:
        SplitError: everything is one group.
    """
    if len(sizes) < 2:
        raise SplitError(
            "every sample is about the same picture, so that none can be held out: add samples of other pictures, or "
            "name held-out samples in dataset.validation.file"
        )
    return _choose(sizes, fraction * sum(sizes.values()), seed)


def _choose(sizes: Mapping[int, int], target: float, seed: int) -> set[int]:
    order = sorted(sizes, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())
    chosen: set[int] = set()
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
