"""Two texts side by side: which words of each the other does not have in its place. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

_WORD = re.compile(r"\s+|\w+|[^\w\s]")
MAX_WORDS = 1000
"""Of both texts together, beyond which nothing is compared: the time grows with the product of the lengths."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A stretch of a text."""

    text: str
    is_same: bool
    """Whether the other text has it in its place too."""


def diff_words(one: str, other: str) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """Cut two texts where they begin and cease to differ, by words, runs of white space and single marks.

    Texts that have no word in common are left whole, as the same: marking all of both would say nothing.
    """
    words, others = _WORD.findall(one), _WORD.findall(other)
    if len(words) + len(others) > MAX_WORDS or not {word for word in words if word[0].isalnum()} & set(others):
        return _whole(one), _whole(other)
    matcher = SequenceMatcher(None, words, others, autojunk=False)
    pieces: list[Piece] = []
    counterparts: list[Piece] = []
    for kind, begin, end, other_begin, other_end in matcher.get_opcodes():
        _append(pieces, words[begin:end], is_same=kind == "equal")
        _append(counterparts, others[other_begin:other_end], is_same=kind == "equal")
    return tuple(pieces), tuple(counterparts)


def _whole(text: str) -> tuple[Piece, ...]:
    return (Piece(text=text, is_same=True),) if text else ()


def _append(pieces: list[Piece], words: Sequence[str], *, is_same: bool) -> None:
    if words:
        pieces.append(Piece(text="".join(words), is_same=is_same))
