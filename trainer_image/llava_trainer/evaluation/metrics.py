"""Scores of answers: which metrics there are, and what an answer adds to each. Pure functions of strings.

Every score is a ratio of two sums over questions, so that a resample of questions is scored by adding up again. Of a
mean the sums are points and questions; of precision, recall and F1 they are counts of answers.
"""

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from llava_trainer.evaluation.numbers import is_number, matches_number
from llava_trainer.evaluation.overlap import anls, rouge_l, token_f1
from llava_trainer.evaluation.vqa import LEAST_REFERENCES, vqa_accuracy
from llava_trainer.evaluation.yes_no import YES_NO_PARTS, is_yes, truth_of

EXACT_MATCH = "exact_match"
_SENTENCE_MARKS = ".,;:!?"
Tally = tuple[float, float]
"""What one answer adds to a score's numerator and to its denominator."""
_RIGHT, _WRONG = (1.0, 1.0), (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A score of answers: the sum of all numerators by the sum of all denominators, 0 by 0 being 0."""

    name: str
    judges: Callable[[Sequence[str]], bool]
    """Whether it has a say about a question with these references; others are not counted."""
    tally: Callable[[str, Sequence[str]], Tally]
    """What an answer adds to it, where it judges the references."""
    best: Callable[[Sequence[str]], Tally] = lambda _: _RIGHT
    """What the best answer would add."""
    worst: Callable[[Sequence[str]], Tally] = lambda _: _WRONG
    """What the worst would."""


def select_metrics(names: Iterable[str], *, number_tolerance: float) -> tuple[Metric, ...]:
    """The metrics of these names, in their order; ``yes_no`` brings precision, recall and F1 with it.

    Args:
        names: as in ``evaluation.metrics``.
        number_tolerance: part of the right number by which one may be off.

    Raises:
        ValueError: there is no metric of a name.
    """
    known = _list_metrics(number_tolerance)
    selected: dict[str, Metric] = {}
    for name in names:
        if name not in known:
            raise ValueError(f"evaluation.metrics has {name!r} but must be of {', '.join(known)}")
        for one in (name, *(YES_NO_PARTS if name == "yes_no" else ())):
            selected[one] = known[one]
    return tuple(selected.values())


def _list_metrics(number_tolerance: float) -> dict[str, Metric]:
    means: tuple[tuple[str, Callable[[Sequence[str]], bool], Callable[[str, Sequence[str]], float]], ...] = (
        (EXACT_MATCH, bool, lambda answer, references: float(any(is_exact_match(answer, one) for one in references))),
        ("vqa_accuracy", lambda references: len(references) >= LEAST_REFERENCES, vqa_accuracy),
        ("anls", bool, partial(_best_of, anls)),
        ("token_f1", bool, partial(_best_of, token_f1)),
        ("rouge_l", bool, partial(_best_of, rouge_l)),
        ("yes_no", _asks_yes_or_no, lambda answer, references: float(is_yes(answer) is truth_of(references))),
        ("number", _asks_a_number, partial(_best_of, partial(matches_number, tolerance=number_tolerance))),
    )
    metrics = {name: Metric(name=name, judges=judges, tally=_mean_of(score)) for name, judges, score in means}
    return metrics | {name: _make_part(name, part) for name, part in YES_NO_PARTS.items()}


def _make_part(name: str, part: Callable[[bool, bool], Tally]) -> Metric:
    def is_true(references: Sequence[str]) -> bool:
        return truth_of(references) is True

    return Metric(
        name=name,
        judges=_asks_yes_or_no,
        tally=lambda answer, references: part(is_yes(answer), is_true(references)),
        best=lambda references: part(is_true(references), is_true(references)),
        worst=lambda references: part(not is_true(references), is_true(references)),
    )


def _mean_of(score: Callable[[str, Sequence[str]], float]) -> Callable[[str, Sequence[str]], Tally]:
    return lambda answer, references: (score(answer, references), 1.0)


def _best_of(score: Callable[[str, str], float], answer: str, references: Sequence[str]) -> float:
    return max(score(answer, reference) for reference in references)


def _asks_yes_or_no(references: Sequence[str]) -> bool:
    return truth_of(references) is not None


def _asks_a_number(references: Sequence[str]) -> bool:
    return bool(references) and is_number(references[0])


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
