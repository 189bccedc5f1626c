"""A dashboard read back from its JSON: its panels, and every query that it makes.

What checks queries, runs them against a Prometheus and draws them goes by the file that is shipped.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

from llava_monitoring.promql import BUILT_IN, check_query, expand, split_label_values

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One query of a dashboard."""

    where: str
    """Dashboard and panel, variable or annotation, as a person would look for it."""
    expression: str
    """With the dashboard's variables in it."""
    label: str | None = None
    """Of a variable's query: the label whose values are asked for."""


def as_json(dashboard: models.Dashboard) -> str:
    """The dashboard as a file, the same for the same dashboard."""
    return json.dumps(json.loads(JSONEncoder(sort_keys=True).encode(dashboard)), indent=1, ensure_ascii=False) + "\n"


def panels_of(dashboard: Json) -> Iterator[Json]:
    """Every panel in the order of the page, rows as well; those of folded rows follow the row."""
    for panel in dashboard["panels"]:
        yield panel
        yield from panel.get("panels") or []


def queries_of(dashboard: Json) -> Iterator[Asked]:
    """Every query of panels, annotations and variables."""
    title = dashboard["title"]
    for panel in panels_of(dashboard):
        for target in panel.get("targets") or []:
            yield Asked(where=f"{title}: panel {panel['title']!r}, {target['refId']}", expression=target["expr"])
    for annotation in dashboard["annotations"].get("list") or []:
        if "expr" in annotation:
            yield Asked(where=f"{title}: annotation {annotation['name']!r}", expression=annotation["expr"])
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            selector, label = split_label_values(variable["query"])
            yield Asked(where=f"{title}: variable {variable['name']!r}", expression=selector, label=label)


def names_of_variables(dashboard: Json) -> list[str]:
    """Every variable that a person chooses a value of."""
    return [variable["name"] for variable in dashboard["templating"]["list"]]


def check_dashboard(content: str, values: Mapping[str, str] = BUILT_IN) -> None:
    """Refuse a dashboard one of whose queries names what does not exist.

    Raises:
        QueryError: says which query and why.
    """
    dashboard: Json = json.loads(content)
    chosen = dict.fromkeys(names_of_variables(dashboard), "1")
    for asked in queries_of(dashboard):
        check_query(expand(asked.expression, {**chosen, **values}))
