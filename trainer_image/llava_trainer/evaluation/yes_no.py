"""Questions that are answered by yes or no, as POPE scores them. Pure functions of strings.

Y. Li et al., "Evaluating Object Hallucination in Large Vision-Language Models", EMNLP 2023,
https://arxiv.org/abs/2305.10355: an answer whose first sentence says no or not is a no, and every other one a yes.
Precision and recall are those of yes.
"""

import re
from collections.abc import Sequence

_TRUTHS = {"yes": True, "no": False}
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_NEGATIONS = frozenset({"no", "not"})


def truth_of(references: Sequence[str]) -> bool | None:
    """Whether yes is right; None where the first reference, the dataset's own, is neither yes nor no."""
    if not references:
        return None
    return _TRUTHS.get(references[0].strip().casefold().rstrip(".!"))


def is_yes(answer: str) -> bool:
    """What an answer says. POPE looks for no, No and not; capitals do not matter here."""
    sentence = answer.partition(".")[0]
    return _NEGATIONS.isdisjoint(_WORD.findall(sentence.casefold()))


def _precision(said: bool, truth: bool) -> tuple[float, float]:
    return float(said and truth), float(said)


def _recall(said: bool, truth: bool) -> tuple[float, float]:
    return float(said and truth), float(truth)


def _f1(said: bool, truth: bool) -> tuple[float, float]:
    return 2.0 * (said and truth), float(said) + float(truth)


YES_NO_PARTS = {"yes_no_precision": _precision, "yes_no_recall": _recall, "yes_no_f1": _f1}
"""By name: what an answer (whether it says yes, and whether yes is right) adds to numerator and denominator."""
