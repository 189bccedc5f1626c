"""What stands in a dataset more than once, and what is held out and trained on at the same time.

Repeated pairs are told; training on something twice is a choice. Where held-out samples come from a file of their own,
a question that training asks about the same image fails the run: its score would tell what was learned by heart, and
the cure is to delete an entry. Training on another question about a held-out image, or on other samples of a held-out
group, is told. The split that prepare makes itself goes by group and image, so that none of it can happen there.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from llava_trainer.data.findings import KEPT_PER_KIND, Findings, Kind, noted
from llava_trainer.data.sample_table import SampleTable
from llava_trainer.data.samples import Sample


@dataclass(frozen=True, kw_only=True)
class _Repeats:
    """Pairs, by their numbers, and for each the pair that it has to do with."""

    pairs: np.ndarray
    others: np.ndarray


class Comparison:
    """Compares the samples of a table by the numbers in it, and tells what it finds by the samples themselves."""

    def __init__(
        self,
        table: SampleTable,
        held_out: np.ndarray,
        group_of: np.ndarray,
        load: Callable[[int], Sample],
        findings: Findings,
    ) -> None:
        """Prepare to compare.

        Args:
            table: facts of all samples.
            held_out: bool [samples].
            group_of: int64 [samples].
            load: reads a sample by its number.
            findings: what is found is added here.
        """
        self._table = table
        self._held_out = held_out
        self._group_of = group_of
        self._load = load
        self._findings = findings
        self._keys = table.pair_keys
        self._answers = table.pair_answers
        self._owners = table.pair_owners
        self._firsts = np.concatenate(([0], np.cumsum(table.num_pairs, dtype=np.int64)))

    def compare(self) -> None:
        """Tell repeated and contradicting pairs of each side, and what both sides share."""
        if not len(self._table):
            return
        repeats = self._find_repeats()
        same = self._answers[repeats.pairs] == self._answers[repeats.others]
        self._tell(Kind.REPEATED_PAIR, repeats.pairs[same], repeats.others[same], _tell_question)
        self._tell(Kind.CONTRADICTION, repeats.pairs[~same], repeats.others[~same], _tell_contradiction)
        shared = self._find_shared()
        about_images = np.zeros(len(self._table), dtype=bool)
        about_images[self._table.shown[0]] = True
        leaks = about_images[self._owners[shared.pairs]]
        self._tell(Kind.REFUSED, shared.pairs[leaks], shared.others[leaks], _tell_leak)
        self._tell(Kind.OVERLAP, shared.pairs[~leaks], shared.others[~leaks], _tell_question)
        self._tell_shared_images(set(self._owners[shared.pairs].tolist()))
        self._tell_shared_groups()

    def _find_repeats(self) -> _Repeats:
        """Pairs whose question the same side has asked before, with the first that asks it."""
        sides = self._held_out[self._owners]
        order = np.lexsort((np.arange(len(self._keys)), sides, self._keys))
        keys, sides = self._keys[order], sides[order]
        begins = np.ones(len(order), dtype=bool)
        begins[1:] = (keys[1:] != keys[:-1]) | (sides[1:] != sides[:-1])
        first_of_run = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
        return _in_order(order[~begins], order[first_of_run[~begins]])

    def _find_shared(self) -> _Repeats:
        """Held-out pairs whose question training asks, with the first of training that asks it."""
        sides = self._held_out[self._owners]
        trained, held_out = np.flatnonzero(~sides), np.flatnonzero(sides)
        keys, first = np.unique(self._keys[trained], return_index=True)
        if not len(keys):
            return _Repeats(pairs=trained[:0], others=trained[:0])
        place = np.minimum(np.searchsorted(keys, self._keys[held_out]), len(keys) - 1)
        found = keys[place] == self._keys[held_out]
        return _Repeats(pairs=held_out[found], others=trained[first[place[found]]])

    def _tell_shared_images(self, told: set[int]) -> None:
        shown_by, shown = self._table.shown
        held_out = self._held_out[shown_by]
        seen_in_training = np.zeros(int(shown.max(initial=0)) + 1, dtype=bool)
        seen_in_training[shown[~held_out]] = True
        samples = np.unique(shown_by[held_out & seen_in_training[shown]])
        others = [int(sample) for sample in samples if sample not in told]
        for sample in others[:KEPT_PER_KIND]:
            found = self._load(sample)
            message = f"shows {', '.join(found.images)}"
            self._findings.add(noted(Kind.SHARED_PICTURE, found.source, message))
        self._findings.count(Kind.SHARED_PICTURE, len(others[KEPT_PER_KIND:]))

    def _tell_shared_groups(self) -> None:
        shared = find_shared_groups(self._group_of, self._held_out)
        for group in shared[:KEPT_PER_KIND]:
            members = self._group_of == group
            held_out, trained = np.flatnonzero(members & self._held_out), np.flatnonzero(members & ~self._held_out)
            first, other = self._load(int(held_out[0])), self._load(int(trained[0]))
            message = (
                f"{_tell_group(first)}: {len(held_out):,} held-out and {len(trained):,} training samples, like "
                f"{other.source}"
            )
            self._findings.add(noted(Kind.SHARED_GROUP, first.source, message))
        self._findings.count(Kind.SHARED_GROUP, len(shared[KEPT_PER_KIND:]))

    def _tell(
        self,
        kind: Kind,
        pairs: np.ndarray,
        others: np.ndarray,
        describe: Callable[[Sample, int, Sample, int], str],
    ) -> None:
        for pair, other in zip(pairs[:KEPT_PER_KIND], others[:KEPT_PER_KIND], strict=True):
            sample, number = self._load_pair(int(pair))
            message = describe(sample, number, *self._load_pair(int(other)))
            self._findings.add(noted(kind, sample.source, message))
        self._findings.count(kind, len(pairs[KEPT_PER_KIND:]))

    def _load_pair(self, pair: int) -> tuple[Sample, int]:
        owner = int(self._owners[pair])
        return self._load(owner), pair - int(self._firsts[owner])


def find_shared_groups(group_of: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """int64: the groups that have samples on both sides."""
    return np.intersect1d(group_of[held_out], group_of[~held_out])


def _tell_group(sample: Sample) -> str:
    if sample.group:
        return f"group {sample.group!r:.80}"
    return f"of {', '.join(sample.images)}" if sample.images else f"asked {sample.turns[0].text!r:.80}"


def _in_order(pairs: np.ndarray, others: np.ndarray) -> _Repeats:
    order = np.argsort(pairs)
    return _Repeats(pairs=pairs[order], others=others[order])


def _texts(sample: Sample, number: int) -> tuple[str, str]:
    return sample.turns[2 * number].text, sample.turns[2 * number + 1].text


def _tell_question(sample: Sample, number: int, _other: Sample, _other_number: int) -> str:
    return f"{_texts(sample, number)[0]!r:.80}"


def _tell_contradiction(sample: Sample, number: int, other: Sample, other_number: int) -> str:
    question, answer = _texts(sample, number)
    return f"{question!r:.80}: {_texts(other, other_number)[1]!r:.40} and {answer!r:.40}"


def _tell_leak(sample: Sample, number: int, other: Sample, _other_number: int) -> str:
    return (
        f"{_texts(sample, number)[0]!r:.80} is held out, but {other.source} trains on it with the same picture: take "
        "it out of one of the two files"
    )
