"""Alerts that are broken on purpose, one change each: what an alert's unit tests have to notice."""

import re
from collections.abc import Iterator

_COMPARISON = re.compile(r"(==|!=|>=|<=|>|<) (-?[0-9.]+)(?=[^0-9.]|$)")
_MATCHER = re.compile(r'(?<=[{,])(\w+)(=~|=)"([^"]+)"')
_SET_OPERATOR = re.compile(r"\b(and|unless|or)\b")
_LABELS = re.compile(r"\b(by|on) \(([a-z, ]+)\)")
_RANGE = re.compile(r"(?<=\[)(\d+)([smh])(?=[\]:])|(?<=offset )(\d+)(s)")
_OPPOSITE = {"==": "!=", "!=": "==", ">": "<", ">=": "<", "<": ">", "<=": ">"}


def break_expression(expression: str) -> Iterator[str]:
    """The expression with one thing wrong, for each thing that can be."""
    for found in _COMPARISON.finditer(expression):
        operator, number = found[1], float(found[2])
        for wrong in (
            f"{_OPPOSITE[operator]} {found[2]}",
            f"{operator} {number * 1.5 + 1:g}",
            f"{operator} {number * 0.6 - 1 if number < 1.5 else number * 0.6:g}",
        ):
            yield _put(expression, found, wrong)
    for found in _MATCHER.finditer(expression):
        # That every series is of one installation is looked at in the expressions themselves.
        if found[1] == "job":
            continue
        values = found[3].split("|") if found[2] == "=~" else [found[3]]
        for value in values:
            rest = "|".join(one for one in values if one != value) or "nothing"
            yield _put(expression, found, f'{found[1]}{found[2]}"{rest}"')
        yield _put(expression, found, f'{found[1]}!="nothing"')
    for found in _SET_OPERATOR.finditer(expression):
        yield _put(expression, found, {"and": "unless", "unless": "and", "or": "and"}[found[1]])
    for found in _LABELS.finditer(expression):
        labels = found[2].split(", ")
        for label in labels:
            # There is but one.
            if label == "job" and found[1] == "on":
                continue
            yield _put(expression, found, f"{found[1]} ({', '.join(one for one in labels if one != label)})")
    for found in _RANGE.finditer(expression):
        number, unit = int(found[1] or found[3]), found[2] or found[4]
        # Of rates it says how much they are smoothed.
        if (number, unit) == (10, "m"):
            continue
        for wrong in {number * 3, round(number * 0.4), 0} - {0}:
            yield _put(expression, found, f"{wrong}{unit}")


def break_hold(hold: str) -> Iterator[str]:
    """Other times for which the expression has to be true."""
    number, unit = int(hold[:-1]), hold[-1]
    if number:
        yield "0s"
    yield f"{number * 2 + 3}{unit if number else 'm'}"


def _put(text: str, found: re.Match[str], wrong: str) -> str:
    return text[: found.start()] + wrong + text[found.end() :]
