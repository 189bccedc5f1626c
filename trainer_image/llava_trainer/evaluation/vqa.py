"""VQA accuracy, as VQA v2 is scored. Pure functions of strings.

A. Agrawal et al., "VQA: Visual Question Answering", IJCV 123 (2017), https://arxiv.org/abs/1505.00468; the rule is that
of https://visualqa.org/evaluation.html. Its code strips marks from references only where they differ and leaves their
words as they are, because VQA's references are plain already. Ours need not be, so both sides go through all of it. Its
list of contractions (dont is don't) is left out: apostrophes are gone by then, and it cannot make two answers equal.
"""

import re
from collections import Counter
from collections.abc import Sequence

LEAST_REFERENCES = 4
"""An answer that three others gave is right, and each annotator is left out in turn: with fewer references than this a
right answer would never get all of its point, and with one none of it."""
_MARKS = ";:/'[]\"()=+\\_><@`,?"
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD_OF_SENTENCE = re.compile(r"\.(?!\d)")
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}
_ENOUGH = 3


def normalise_vqa(text: str) -> str:
    """An answer as VQA compares it: small letters, number words up to ten as digits, no articles, few marks.

    A mark beside a space anywhere in the answer is dropped, and so are all marks where a comma divides digits; others
    become a space. Periods go, but for those in front of a digit.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    plain = text
    joins_all = _COMMA_IN_NUMBER.search(text) is not None
    for mark in _MARKS:
        is_beside_space = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if joins_all or is_beside_space else " ")
    words = (_DIGITS.get(word, word) for word in _PERIOD_OF_SENTENCE.sub("", plain).lower().split())
    return " ".join(word for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """From 0 to 1: the mean, over every annotator left out, of how many of the others agree, three being enough.

    Args:
        answer: of the model.
        references: one of each annotator, ``LEAST_REFERENCES`` or more.
    """
    found = normalise_vqa(answer)
    given = Counter(normalise_vqa(reference) for reference in references)
    agreeing, num_all = given[found], len(references)
    left_out_agrees = agreeing * min(1.0, (agreeing - 1) / _ENOUGH)
    left_out_differs = (num_all - agreeing) * min(1.0, agreeing / _ENOUGH)
    return (left_out_agrees + left_out_differs) / num_all
