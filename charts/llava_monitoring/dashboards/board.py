"""What all dashboards have in common: names and addresses, how they lead to each other, and marks in the graphs."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as models

from llava_monitoring.panels import SOURCE, Row
from llava_monitoring.variables import Variable, source

TAG = "llava-finetune"


@dataclass(frozen=True, kw_only=True)
class Name:
    """What a dashboard is called, and where."""

    uid: str
    """Last part of its address, and name of its file."""
    title: str


FLEET = Name(uid="llava-fleet", title="LLaVA fine-tuning / Fleet")
RUN = Name(uid="llava-run", title="LLaVA fine-tuning / Run")
OPERATOR = Name(uid="llava-operator", title="LLaVA fine-tuning / Operator")


class _Moments(models.AnnotationQuery):
    """Marks at instants that are the query's values (milliseconds since 1970), which the SDK has no fields for."""

    def __init__(self, title: str, text: str, expression: str, color: str, *, shown: bool) -> None:
        super().__init__(name=title, datasource=SOURCE, enable=shown, icon_color=color, expr=expression)
        self._text = text

    def to_json(self) -> dict[str, object]:
        """The annotation as Grafana reads it."""
        return super().to_json() | {"useValueForTime": True, "titleFormat": self._text, "textFormat": self._text}


@dataclass(frozen=True, kw_only=True)
class Moments(Builder[models.AnnotationQuery]):
    """Marks in all graphs of a dashboard."""

    title: str
    text: str
    """Of each mark; ``{{label}}`` stands for the label's value."""
    expression: str
    """Its values are instants in seconds since 1970."""
    color: str
    shown: bool = True
    """From the beginning, or once somebody switches them on."""

    def build(self) -> models.AnnotationQuery:
        """The annotation of Grafana."""
        return _Moments(self.title, self.text, f"({self.expression}) * 1000", self.color, shown=self.shown)


def build(
    name: Name,
    description: str,
    *,
    since: str,
    variables: Sequence[Variable],
    rows: Sequence[Row],
    moments: Sequence[Moments] = (),
) -> models.Dashboard:
    """A dashboard.

    Args:
        name: of it.
        description: what it is for.
        since: how far it looks back at first, like ``now-6h``.
        variables: besides the data source.
        rows: with their panels.
        moments: marks in all graphs.
    """
    made = dashboard.Dashboard(name.title).uid(name.uid).description(description).tags([TAG]).readonly()
    made = made.time(since, "now").refresh("30s").timezone("browser").tooltip(models.DashboardCursorSync.CROSSHAIR)
    made = made.link(
        dashboard.DashboardLink("LLaVA fine-tuning")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .include_vars(True)
        .keep_time(True)
        .as_dropdown(True)
    )
    for variable in (source(), *variables):
        made = made.with_variable(variable)
    for moment in moments:
        made = made.annotation(moment)
    for add_row in rows:
        made = add_row(made)
    built = made.build()
    _number_panels(built)
    return built


def _number_panels(built: models.Dashboard) -> None:
    """Give every panel and row a number of its own, by which links and Grafana know it."""
    numbers = count(1)
    for panel in built.panels or []:
        panel.id_val = next(numbers)
        for inner in panel.panels if isinstance(panel, models.RowPanel) else []:
            inner.id_val = next(numbers)
