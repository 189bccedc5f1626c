"""How processes share out one global batch: which samples stand in which row of which micro-batch of which process.

A row is one sample, or several end to end (packing). Whoever is packed how, the same samples are in the global batch,
and the loss is a sum over their tokens: what is decided here changes time and memory, nothing else.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

Row = tuple[int, ...]
"""Indices of the samples that stand in it."""
Rows = tuple[Row, ...]
"""Rows of one micro-batch; none where a process has nothing left to do."""

_SAMPLES_A_ROW = 5
"""Samples of middling length that a packed row should hold at least: with fewer, rows cannot be made alike."""
_TRIALS = 4
"""Numbers of rows that are tried: samples of one length may go into six rows evenly, but not into seven."""
_ROW_LIMITS = 2
"""Longest packed row that is aimed at, in length limits: attention over a row grows with the square of its length."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a rank can hold at a time."""

    per_device_batch: int
    """Samples, each in a row of its own."""
    max_length: int
    """Tokens of the longest sample that there may be."""
    world_size: int

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch, packed or filled up."""
        return self.per_device_batch * self.max_length


def plan_padded_rows(
    batch: Sequence[int], tokens: Sequence[int], limits: Limits, *, by_length: bool
) -> list[tuple[Rows, ...]]:
    """Share out with a row for each sample.

    Args:
        batch: the global batch.
        tokens: lengths of its samples.
        limits: of a process.
        by_length: put samples of like length into one micro-batch; else as they come.

    Returns:
        For each micro-batch of the step, the longest first, what each rank holds: the processes' shares differ by
        one sample at most, and stand side by side in length.
    """
    count = math.ceil(len(batch) / (limits.per_device_batch * limits.world_size))
    rows: list[Row] = [(index,) for index in batch]
    if by_length:
        rows = [rows[position] for position in _longest_first(tokens)]
    return _deal(_split(rows, count * limits.world_size), limits.world_size)


def plan_packed_rows(batch: Sequence[int], tokens: Sequence[int], limits: Limits) -> list[tuple[Rows, ...]]:
    """Share out with samples end to end, in rows of like length.

    Rows are balanced rather than filled up to a length: three samples with an image of 576 tokens hardly ever fit
    into 2,048, but any rows that are alike waste nothing. A micro-batch is bounded by ``limits.tokens``, as without
    packing.

    Returns:
        For each micro-batch of the step, the longest first, what each rank holds.
    """
    total = sum(tokens)
    aim = min(limits.tokens, _ROW_LIMITS * limits.max_length, max(max(tokens), _SAMPLES_A_ROW * total // len(tokens)))
    count = math.ceil(total / (limits.tokens * limits.world_size))
    while (parts := _pack(tokens, count * limits.world_size, aim, limits)) is None:
        # It ends: with a row for each sample, rows are no longer than the length limit.
        count += 1
    named = [tuple(tuple(batch[position] for position in row) for row in rows) for rows in parts]
    return _deal(named, limits.world_size)


def _pack(tokens: Sequence[int], num_parts: int, aim: int, limits: Limits) -> list[Rows] | None:
    """Positions in rows, in parts with as little filling as is found; None if one of them would be too large."""
    best: tuple[int, list[Rows]] | None = None
    fewest = math.ceil(sum(tokens) / num_parts / aim)
    for rows_a_part in range(fewest, fewest + _TRIALS):
        parts = _split(_balance(tokens, min(len(tokens), num_parts * rows_a_part)), num_parts)
        # Each part is filled up to the first of its rows.
        computed = [len(rows) * sum(tokens[position] for position in rows[0]) if rows else 0 for rows in parts]
        if max(computed) <= limits.tokens and (best is None or sum(computed) < best[0]):
            best = (sum(computed), parts)
    return best and best[1]


def _split(rows: Sequence[Row], num_parts: int) -> list[Rows]:
    """Parts of consecutive rows, the same number in each or one less; the first has the most."""
    cuts = [-(-len(rows) * part // num_parts) for part in range(num_parts + 1)]
    return [tuple(rows[begin:end]) for begin, end in pairwise(cuts)]


def _balance(tokens: Sequence[int], num_rows: int) -> list[Row]:
    """Positions in rows of like total length, the longest row first: each sample to the shortest row, longest first."""
    lengths = [(0, row) for row in range(num_rows)]
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    for position in _longest_first(tokens):
        length, row = heapq.heappop(lengths)
        rows[row].append(position)
        heapq.heappush(lengths, (length + tokens[position], row))
    return [tuple(rows[row]) for _, row in sorted(lengths, key=lambda entry: (-entry[0], entry[1]))]


def _deal(parts: Sequence[Rows], world_size: int) -> list[tuple[Rows, ...]]:
    """Deal parts out to processes, turning round each time so that nobody always gets the longer one."""
    dealt = []
    for number, begin in enumerate(range(0, len(parts), world_size)):
        hand = tuple(parts[begin : begin + world_size])
        dealt.append(hand if number % 2 == 0 else hand[::-1])
    return dealt


def _longest_first(tokens: Sequence[int]) -> list[int]:
    return sorted(range(len(tokens)), key=lambda position: -tokens[position])
