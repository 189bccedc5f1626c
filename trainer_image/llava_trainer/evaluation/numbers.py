"""Answers that are numbers, within a tolerance. Pure functions of strings.

The tolerance is relative, as in ChartQA's relaxed accuracy (A. Masry et al., Findings of ACL 2022,
https://arxiv.org/abs/2203.10244). What stands around a number (currency, unit, per cent, a sentence) is not compared.
"""

import math
import re
import unicodedata

_LIKE = str.maketrans({"\N{MINUS SIGN}": "-", "\N{EN DASH}": "-", "’": "'"})
_NUMBER = re.compile(
    # No end of another number, and no sign that is a hyphen.
    r"(?<!\d)(?<!\d[.,'])(?:(?<!\w)[-+])?"
    # Thousands in groups, digits, or a fraction alone.
    r"(?:\d{1,3}(?:(?P<mark>[,.' ])\d{3})(?:(?P=mark)\d{3}){0,5}(?:(?!(?P=mark))[.,]\d{1,30})?"
    r"|\d{1,30}(?:[.,]\d{1,30})?|(?<!\w)[.,]\d{1,30})"
    r"(?:[eE][-+]?\d{1,3})?(?![.,]?\d)"
)
_SIGN_OF_CURRENCY = re.compile(r"(?<=[-+])\s*[^\w\s.,'+-]\s*(?=[\d.,])")
_BEFORE, _BEHIND = re.compile(r"(?:[A-Z][A-Za-z]{0,2}\.?)?"), re.compile(r"(?:°?[^\W\d_]{1,20}|%)?\.?")
"""What may stand before and behind a number that is a whole answer: a currency; a unit, or per cent."""


def _plain(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).translate(_LIKE)
    # -$5 is a number, and 1€50 are two.
    text = _SIGN_OF_CURRENCY.sub("", text)
    return " ".join("".join(" " if unicodedata.category(char) == "Sc" else char for char in text).split())


def find_number(text: str) -> float | None:
    """The only number in a text; None where there is none, or several.

    ``1,234.5``, ``1.234,5``, ``1 234,5`` and ``1'234.5`` are the same number. One mark with three digits behind it is
    read as thousands by a comma and as a fraction by a point: 1,234 is 1234 and 1.234 is a little more than 1.
    """
    found = list(_NUMBER.finditer(_plain(text)))
    return _read(found[0]) if len(found) == 1 else None


def is_number(text: str) -> bool:
    """Whether a text is a number, with at most a unit or a currency around it."""
    plain = _plain(text)
    found = list(_NUMBER.finditer(plain))
    if len(found) != 1 or _read(found[0]) is None:
        return False
    before, behind = plain[: found[0].start()].strip(), plain[found[0].end() :].strip()
    return bool(_BEFORE.fullmatch(before) and _BEHIND.fullmatch(behind))


def matches_number(answer: str, reference: str, *, tolerance: float) -> float:
    """1 where the answer's only number is off by at most ``tolerance`` of the reference's, else 0."""
    found, right = find_number(answer), find_number(reference)
    if found is None or right is None:
        return 0.0
    # 105 is within 5 % of 100, whatever 0.05 x 100 comes to.
    return float(abs(found - right) <= tolerance * abs(right) * (1 + 1e-9))


def _read(found: re.Match[str]) -> float | None:
    text, mark = found[0], found["mark"]
    if mark == "." and text.count(".") == 1 and "," not in text:
        # One point alone divides off a fraction.
        mark = None
    if mark is not None:
        text = text.replace(mark, "")
    number = float(text.replace(",", "."))
    return number if math.isfinite(number) else None
