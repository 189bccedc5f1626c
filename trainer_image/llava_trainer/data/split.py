"""Which samples belong to one group, and which groups are held out, the same for the same seed."""

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_LAST_KEY = int(np.iinfo(np.uint64).max)


class SplitError(ValueError):
    """The samples cannot be split; the message names the fix."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Samples that must stay on one side of a split.

    They name the same group, or share images or, without any, their opening question; or others join them by that.

    Attributes:
        key: the same for the same content, whatever order or form the export is in.
        weight: questions in it.
    """

    key: int
    weight: int


class Contents:
    """What samples show (images, or opening questions) and belong to, numbered, and joined where one has several."""

    def __init__(self) -> None:
        self.numbers: dict[bytes, int] = {}
        self._keys, self._parents = array("Q"), array("I")

    def number_of(self, digest: bytes, *, named: bool = False) -> int:
        """The content's number; a new one where it was not seen before.

        Args:
            digest: of the content.
            named: it is a name that joins samples and nothing that they show. What is held out does not follow from
                names: the same data without them, or with others, gives the same split where it gives the same groups.
        """
        number = self.numbers.setdefault(digest, len(self._parents))
        if number == len(self._parents):
            self._parents.append(number)
            self._keys.append(_LAST_KEY if named else int.from_bytes(digest[:8], "little"))
        return number

    def join(self, numbers: Sequence[int]) -> None:
        """Put these contents into one group."""
        for number in numbers[1:]:
            self._parents[self._root(number)] = self._root(numbers[0])

    def group(self, shown: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, list[Group]]:
        """Group samples that show one of the contents each.

        Args:
            shown: int64 [samples]: a content that each shows.
            weights: [samples].

        Returns:
            The group of each sample, int64 [samples], and the groups.
        """
        roots = np.array([self._root(number) for number in range(len(self._parents))], dtype=np.int64)
        keys = np.full(len(roots), _LAST_KEY, dtype=np.uint64)
        np.minimum.at(keys, roots, np.array(self._keys, dtype=np.uint64))
        used, group_of = np.unique(roots[shown], return_inverse=True)
        weights = np.bincount(group_of, weights=weights, minlength=len(used))
        found = [Group(key=int(keys[root]), weight=int(weight)) for root, weight in zip(used, weights, strict=True)]
        return group_of, found

    def _root(self, number: int) -> int:
        while self._parents[number] != number:
            self._parents[number] = self._parents[self._parents[number]]
            number = self._parents[number]
        return number


def choose_held_out(sizes: Mapping[int, int], *, fraction: float, seed: int) -> set[int]:
    """Choose whole groups until their weight is as near to ``fraction`` of the whole as it gets.

    Groups are taken in an order that follows from seed and group alone, each that still fits: the same images are
    held out whatever order or form the export is in. At least one group is held out, and one is kept.

    Args:
        sizes: weight of each group (its questions), at least 1; a group is a number made from its images' content.
        fraction: wanted fraction of the weight, at most 0.5.
        seed: of the order.

    Raises:
        SplitError: everything is one group.
    """
    if len(sizes) < 2:
        raise SplitError(
            "every sample is about the same picture or of the same group, so that none can be held out: add samples of "
            "other pictures and groups, or name held-out samples in dataset.validation.file"
        )
    return _choose(sizes, fraction * sum(sizes.values()), seed)


LEAST_OF_EACH = 4
"""Groups that select a step, and groups that give the scores, at least: fewer say nothing about others."""


def choose_selecting(sizes: Mapping[int, int], *, seed: int) -> set[int]:
    """Choose about half of the held-out groups, by weight, to select a step by; the others give the scores.

    Args:
        sizes: weight of each held-out group (its questions), as in ``choose_held_out``.
        seed: of the order.

    Raises:
        SplitError: there are fewer than four groups for each side.
    """
    if len(sizes) < 2 * LEAST_OF_EACH:
        raise SplitError(
            f"{len(sizes)} groups are held out, and training.keepBest or earlyStopping needs {2 * LEAST_OF_EACH} at "
            f"least: {LEAST_OF_EACH} that select and {LEAST_OF_EACH} that give the scores"
        )
    order = sorted(sizes, key=lambda group: (-sizes[group], hashlib.sha256(f"{seed}:{group}".encode()).digest()))
    sides: tuple[list[int], list[int]] = ([], [])
    weights = [0, 0]
    for group in order:
        # The heaviest first, to the lighter side; each side takes half of the groups, so that neither has too few.
        is_full = [len(side) >= -(-len(sizes) // 2) for side in sides]
        lighter = min((0, 1), key=lambda side: (is_full[side], weights[side]))
        sides[lighter].append(group)
        weights[lighter] += sizes[group]
    return set(sides[0])


def find_fraction(sizes: Mapping[int, int], *, wanted: int, seed: int) -> float | None:
    """The smallest twentieth of the weight with which so many groups are held out; None if half is not enough."""
    for twentieths in range(1, 11):
        if len(choose_held_out(sizes, fraction=twentieths / 20, seed=seed)) >= wanted:
            return twentieths / 20
    return None


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
