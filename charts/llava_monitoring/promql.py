"""Queries as text: Grafana's variables in them filled in, and checked before they are ever shipped.

A query that cannot be parsed, that names a metric which nobody promises or a label which the metric has not, or that
takes the rate of a gauge, ends `make generate` with an error that says so.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import promql_parser as parser

from llava_monitoring.foreign import FOREIGN, TARGET_LABELS
from llava_operator.telemetry.contract import FAMILIES, Kind

BUILT_IN = {"__range": "1h", "__range_s": "3600", "__interval": "30s", "__rate_interval": "1m"}
"""Grafana's own variables, with values that fit any query."""
_VARIABLE = re.compile(r"\$(?:\{(?P<braced>\w+)(?::\w+)?\}|(?P<plain>[A-Za-z_]\w*))")
_LABEL_VALUES = re.compile(r"label_values\((?P<selector>.+), *(?P<label>\w+)\)")
_OF_COUNTERS = {"rate", "irate", "increase"}


class QueryError(ValueError):
    """A query that must not be shipped; the message says why, and shows it."""


@dataclass(frozen=True)
class _Series:
    kind: Kind
    labels: frozenset[str]


def _known_series() -> dict[str, _Series]:
    known = {}
    for family in FAMILIES:
        if family.kind is Kind.HISTOGRAM:
            known[f"{family.name}_bucket"] = _Series(Kind.COUNTER, frozenset({*family.labels, "le"}))
            for suffix in ("_count", "_sum"):
                known[family.name + suffix] = _Series(Kind.COUNTER, frozenset(family.labels))
        else:
            known[family.name] = _Series(family.kind, frozenset(family.labels))
    return known | {foreign.name: _Series(foreign.kind, frozenset(foreign.labels)) for foreign in FOREIGN}


_KNOWN = _known_series()


def expand(text: str, values: Mapping[str, str]) -> str:
    """The text with every ``$name`` and ``${name}`` filled in.

    Raises:
        QueryError: there is no value for a variable.
    """

    def value(found: re.Match[str]) -> str:
        name = found["braced"] or found["plain"]
        if name not in values:
            raise QueryError(f"variable ${name} has no value; known are {', '.join(sorted(values))}: {text}")
        return values[name]

    return _VARIABLE.sub(value, text)


def split_label_values(query: str) -> tuple[str, str]:
    """Selector and label of a dashboard variable's ``label_values(selector, label)``.

    Raises:
        QueryError: it is not of that form.
    """
    found = _LABEL_VALUES.fullmatch(query)
    if found is None:
        raise QueryError(f"a variable's query must be label_values(SELECTOR, LABEL): {query}")
    return found["selector"], found["label"]


def check_query(expression: str) -> None:
    """Refuse what cannot be parsed, or names what does not exist.

    Args:
        expression: PromQL without variables (see ``expand``).

    Raises:
        QueryError: the query must not be shipped.
    """
    labels = set(TARGET_LABELS)
    nodes = list(_walk(_parse(expression)))
    for node in nodes:
        if isinstance(node, parser.VectorSelector):
            labels |= _check_selector(node, expression)
    for node in nodes:
        if isinstance(node, parser.Call) and node.func.name in _OF_COUNTERS:
            _check_counter(node, expression)
        for label in _grouped_by(node):
            if label not in labels:
                raise QueryError(f"no metric of this query has the label {label!r}: {expression}")


def metrics_of(expression: str) -> set[str]:
    """Names of all series that a query without variables reads."""
    nodes = _walk(_parse(expression))
    return {node.name for node in nodes if isinstance(node, parser.VectorSelector) and node.name}


def _parse(expression: str) -> parser.Expr:
    try:
        return parser.parse(expression)
    except ValueError as error:
        raise QueryError(f"{error}: {expression}") from error


def _walk(expression: parser.Expr) -> Iterator[parser.Expr]:
    found: list[parser.Expr] = []

    def note(node: parser.Expr) -> None:
        found.append(node)
        # A range is no selector itself: what it is of is.
        if isinstance(node, parser.MatrixSelector):
            found.append(node.vector_selector)

    parser.walk(expression, note)
    return iter(found)


def _check_selector(selector: parser.VectorSelector, expression: str) -> frozenset[str]:
    """Labels of the series that are selected."""
    known = _KNOWN.get(selector.name or "")
    if known is None:
        raise QueryError(
            f"{selector.name!r} is neither in the operator's contract nor listed in llava_monitoring.foreign: "
            f"{expression}"
        )
    for matcher in selector.matchers.matchers:
        if matcher.name not in known.labels and matcher.name not in TARGET_LABELS:
            raise QueryError(f"{selector.name} has no label {matcher.name!r}: {expression}")
    return known.labels


def _check_counter(call: parser.Call, expression: str) -> None:
    for argument in call.args:
        if isinstance(argument, parser.MatrixSelector):
            name = argument.vector_selector.name
            if name in _KNOWN and _KNOWN[name].kind is not Kind.COUNTER:
                raise QueryError(f"{call.func.name}() of {name}, which is a {_KNOWN[name].kind}: {expression}")


def _grouped_by(node: parser.Expr) -> list[str]:
    if isinstance(node, parser.AggregateExpr):
        return list(node.modifier.labels) if node.modifier else []
    if isinstance(node, parser.BinaryExpr) and node.modifier:
        matching = node.modifier.matching
        return [*(matching.labels if matching else []), *(node.modifier.group_labels or [])]
    return []
