"""How many tokens samples have, for the dataset report."""

from collections.abc import Sequence

import numpy as np

from llava_api.base import Lenient
from llava_trainer.data.sample_table import SampleTable

HISTOGRAM_BARS = 24


class Bar(Lenient):
    """One bar of a histogram: samples of ``from_tokens`` to below ``to_tokens``."""

    from_tokens: int
    to_tokens: int
    samples: int


class Lengths(Lenient):
    """Lengths of usable samples in tokens, image tokens included, before cutting off."""

    longest: int
    median: float
    total: int
    max_length: int
    """training.maxLength."""
    overlong: int
    histogram: tuple[Bar, ...]


class Supervised(Lenient):
    """Tokens that are learned, of usable samples, after cutting off."""

    fewest: int = 0
    median: float = 0
    most: int = 0
    histogram: tuple[Bar, ...] = ()


def describe_lengths(table: SampleTable, max_length: int) -> Lengths:
    """How long the samples of a dataset are."""
    tokens = table.tokens
    return Lengths(
        longest=int(tokens.max(initial=0)),
        median=float(np.median(tokens)) if len(tokens) else 0,
        total=int(tokens.sum()),
        max_length=max_length,
        overlong=int((tokens > max_length).sum()),
        histogram=build_histogram(tokens),
    )


def describe_supervised(table: SampleTable) -> Supervised:
    """How much of them is learned."""
    tokens = table.supervised
    if not len(tokens):
        return Supervised()
    return Supervised(
        fewest=int(tokens.min()),
        median=float(np.median(tokens)),
        most=int(tokens.max()),
        histogram=build_histogram(tokens),
    )


def build_histogram(lengths: Sequence[int] | np.ndarray, num_bars: int = HISTOGRAM_BARS) -> tuple[Bar, ...]:
    """At most ``num_bars`` bars of one width from the shortest to the longest; empty without lengths."""
    values = np.asarray(lengths, dtype=np.int64)
    if not len(values):
        return ()
    shortest, longest = int(values.min()), int(values.max())
    width = max(1, -(-(longest - shortest + 1) // num_bars))
    counts = np.bincount((values - shortest) // width)
    return tuple(
        Bar(from_tokens=shortest + index * width, to_tokens=shortest + (index + 1) * width, samples=int(count))
        for index, count in enumerate(counts)
    )
