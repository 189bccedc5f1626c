"""VQA accuracy, as VQA v2 is scored. Pure functions of strings.

A. Agrawal et al., "VQA: Visual Question Answering", IJCV 123 (2017), https://arxiv.org/abs/1505.00468; the rule is that
of https://visualqa.org/evaluation.html. Its code leaves answers as they are where all references are the same word by
word, because VQA's references are plain already. Ours need not be, so both sides always go through all of it.
"""

import re
from collections import Counter
from collections.abc import Sequence

LEAST_REFERENCES = 4
"""An answer that three others gave is right, and each annotator is left out in turn: with fewer references than this a
right answer would never get all of its point, and with one none of it."""
_MARKS = ';/[]{}()"=+\\_-><@`,?!'
"""All but periods, apostrophes (girl's is not girls) and colons (2:50 is a time)."""
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD_OF_SENTENCE = re.compile(r"\.(?!\d)")
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}
_CONTRACTIONS = {
    whole.replace("'", ""): whole
    for whole in (
        *(f"{verb}n't" for verb in (
            "ai", "are", "ca", "could", "did", "does", "do", "had", "has", "have", "is", "might", "must", "need",
            "ought", "sha", "should", "was", "were", "wo", "would",
        )),
        *(f"{word}'ve" for word in (
            "could", "might", "must", "not", "should", "they", "we", "what", "where", "who", "would", "you",
            "couldn't", "hadn't", "mightn't", "shouldn't", "wouldn't", "he'd", "i'd", "it'd", "she'd", "somebody'd",
            "someone'd", "something'd", "there'd", "they'd", "we'd", "who'd", "y'all'd", "you'd",
        )),
        *(f"{word}'d" for word in (
            "he", "how", "it", "someone", "something", "there", "they", "where", "who", "you",
        )),
        *(f"{word}'ll" for word in (
            "how", "it", "somebody", "someone", "something", "they", "what", "who", "why", "y'all", "you",
        )),
        *(f"{word}'re" for word in ("there", "they", "what", "why", "you")),
        *(f"{word}'s" for word in (
            "he", "how", "somebody", "someone", "that", "there", "what", "when", "where", "who", "why",
        )),
        "ma'am", "o'clock", "'twas", "y'all",
    )
}  # fmt: skip
"""By how they are written without their apostrophes. Of the official list; words that are others without one (he'll,
we're) are not in it."""
_ENOUGH = 3


def normalise_vqa(text: str) -> str:
    """An answer as VQA compares it: small letters, number words up to ten as digits, no articles, few marks, don't.

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
    return " ".join(_CONTRACTIONS.get(word.replace("'", ""), word) for word in words if word not in _ARTICLES)


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
