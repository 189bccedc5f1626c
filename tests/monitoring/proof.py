"""Whether the queries of dashboards, and of anything else, find what they ask for in a real Prometheus."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llava_monitoring.promql import expand
from llava_monitoring.reading import Asked
from tests.monitoring.prometheus import Prometheus, Series, Span

RATE_INTERVAL = "1m"


@dataclass(frozen=True)
class Missing:
    """Queries that are allowed to find nothing: a part of their place, and why nothing can be there."""

    where: str
    why: str


def values_for(span: Span, **chosen: str) -> dict[str, str]:
    """Grafana's variables for a piece of time, and what a person chose."""
    own = {
        "__range": f"{span.seconds}s",
        "__range_s": str(span.seconds),
        "__interval": f"{max(1, round(span.step_s))}s",
        "__rate_interval": RATE_INTERVAL,
    }
    return own | chosen


def finds(prometheus: Prometheus, asked: Asked, span: Span, choices: Iterable[Mapping[str, str]]) -> bool:
    """Whether a query returns anything in a piece of time, for at least one of the choices of variables.

    What people see while a run goes on counts: a run that has ended has no time left. A series that never has a number
    (a quantile of nothing is NaN) is nothing to see.
    """
    for chosen in choices:
        expression = expand(asked.expression, values_for(span, **chosen))
        if asked.label is not None:
            if prometheus.label_values(expression, asked.label, span):
                return True
        elif any(_has_number(series) for series in prometheus.query_range(expression, span)):
            return True
    return False


def _has_number(series: Series) -> bool:
    return any(math.isfinite(value) for _, value in series.points)


def find_faults(
    prometheus: Prometheus,
    queries: Sequence[Asked],
    span: Span,
    choices: Sequence[Mapping[str, str]],
    exceptions: Sequence[Missing],
) -> list[str]:
    """What is wrong, a line each: queries that find nothing, and exceptions that do, or that are about no query."""
    faults = []
    for asked in queries:
        excepted = next((one for one in exceptions if one.where in asked.where), None)
        found = finds(prometheus, asked, span, choices)
        if excepted is None and not found:
            faults.append(f"{asked.where} finds nothing: {asked.expression}")
        if excepted is not None and found:
            faults.append(f"{asked.where} finds something: it is no exception any more ({excepted.why})")
    used = {one for one in exceptions for asked in queries if one.where in asked.where}
    return faults + [f"exception {one.where!r} is about no query" for one in exceptions if one not in used]
