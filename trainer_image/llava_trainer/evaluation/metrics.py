"""Scores of answers. Pure functions of strings and counts."""

import math
import unicodedata
from dataclasses import dataclass

EXACT_MATCH = "exact_match"
_SENTENCE_MARKS = ".,;:!?"
_Z_95 = 1.959963984540054
"""97.5 % quantile of the standard normal distribution."""


def normalise_answer(text: str) -> str:
    """What of an answer counts for exact match.

    Unicode compatibility forms are made one (NFKC), capitals do not matter, runs of white space are one space, white
    space around the answer and sentence marks (``. , ; : ! ?``) behind it are dropped. Marks inside stay: 9.00 is not
    900. An answer that is nothing but marks is kept as it is, so that it never equals an empty one.
    """
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return plain.rstrip(_SENTENCE_MARKS + " ") or plain


def is_exact_match(answer: str, expected: str) -> bool:
    """Whether two answers are the same once normalised."""
    return normalise_answer(answer) == normalise_answer(expected)


@dataclass(frozen=True, kw_only=True)
class Proportion:
    """The proportion of right answers, with what chance alone could make of it."""

    right: int
    total: int

    @property
    def value(self) -> float:
        """Right answers by all; 0 when there are none."""
        return self.right / self.total if self.total else 0.0

    def interval(self) -> tuple[float, float]:
        """95 % confidence interval after Wilson, 1927 (J. Am. Stat. Assoc. 22); (0, 1) without answers."""
        if self.total == 0:
            return 0.0, 1.0
        spread = _Z_95**2 / self.total
        centre = (self.value + spread / 2) / (1 + spread)
        half = _Z_95 / (1 + spread) * math.sqrt(self.value * (1 - self.value) / self.total + spread / (4 * self.total))
        # None right and all right have bounds of exactly 0 and 1, which rounding would miss.
        low = 0.0 if self.right == 0 else max(0.0, centre - half)
        high = 1.0 if self.right == self.total else min(1.0, centre + half)
        return low, high
