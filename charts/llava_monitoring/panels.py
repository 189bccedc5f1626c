"""How every panel looks: one function for each kind, so that all dashboards read alike.

Sizes are of Grafana's grid, 24 wide: numbers stand six in a row, graphs two or three, so that a laptop shows a row of
them and a wall can be read from afar. No panel goes without a unit and a description.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, table, text, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as prometheus_models

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
COUNT, RATIO, SECONDS, BYTES, CORES = "short", "percentunit", "s", "bytes", "short"
RED, YELLOW, GREEN, BLUE, GRAY = "red", "yellow", "green", "blue", "gray"
_REF_IDS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

OF_PHASES = {"Pending": GRAY, "Running": GREEN, "Suspended": YELLOW, "Succeeded": BLUE, "Failed": RED}

Panel = Builder[models.Panel]
Row = Callable[[dashboard.Dashboard], dashboard.Dashboard]


@dataclass(frozen=True)
class Query:
    """One query of a panel."""

    expression: str
    legend: str = ""
    """Name of each of its series; ``{{label}}`` stands for the label's value."""


@dataclass(frozen=True)
class Column:
    """A column of a table: the values of one query, or a label that all of them share."""

    title: str
    field: str
    """``Value #A`` for the first query's values, a label's name for a label."""
    unit: str = ""


def _targets(queries: Sequence[Query], *, instant: bool, as_table: bool = False) -> list[Any]:
    targets = []
    for ref_id, query in zip(_REF_IDS, queries, strict=False):
        target = prometheus.Dataquery().expr(query.expression).ref_id(ref_id).datasource(SOURCE)
        target = target.legend_format(query.legend or "__auto")
        target = target.instant() if instant else target.range()
        targets.append(target.format(prometheus_models.PromQueryFormat.TABLE) if as_table else target)
    return targets


def _dress(panel: Any, title: str, description: str, unit: str, *, width: int, height: int) -> Any:
    return panel.title(title).description(description).unit(unit).datasource(SOURCE).span(width).height(height)


def _thresholds(steps: Sequence[tuple[float | None, str]]) -> Builder[models.ThresholdsConfig]:
    made = [models.Threshold(value=value, color=color) for value, color in steps]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(made)


def number(
    title: str,
    description: str,
    unit: str,
    query: Query,
    *,
    steps: Sequence[tuple[float | None, str]] = ((None, BLUE),),
    width: int = 4,
    named: bool = False,
    absent: str = "0",
    decimals: int | None = None,
) -> Panel:
    """One number, readable from afar.

    Args:
        title: of the panel.
        description: what it says and what to do about it.
        unit: of Grafana.
        query: its newest value is shown.
        steps: colours from a value on, the first from anything on.
        width: in the grid.
        named: show the series' name instead of its value.
        absent: what is shown where there is no series.
        decimals: digits behind the point; as many as fit if None.
    """
    panel: Any = _dress(stat.Panel(), title, description, unit, width=width, height=4)
    panel = panel.targets(_targets([query], instant=True)).thresholds(_thresholds(steps)).no_value(absent)
    mode = common_models.BigValueTextMode.NAME if named else common_models.BigValueTextMode.VALUE
    panel = panel.text_mode(mode).graph_mode(common_models.BigValueGraphMode.NONE)
    panel = panel.color_mode(common_models.BigValueColorMode.VALUE).reduce_options(_newest())
    return panel if decimals is None else panel.decimals(decimals)  # type: ignore[no-any-return]


def _newest() -> Builder[common_models.ReduceDataOptions]:
    return common.ReduceDataOptions().calcs(["lastNotNull"]).values(False)


def graph(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    width: int = 8,
    stacked: bool = False,
    least: float | None = 0,
    most: float | None = None,
    logarithmic: bool = False,
    colors: Mapping[str, str] | None = None,
) -> Panel:
    """Values over time.

    Args:
        title: of the panel.
        description: what it says and what to do about it.
        unit: of Grafana.
        queries: every series of them is a line.
        width: in the grid.
        stacked: lines on top of each other, where their sum means something.
        least: lowest value of the axis; None lets the values decide.
        most: highest value of the axis; None lets the values decide.
        logarithmic: scale of the axis.
        colors: of lines by their names, where a colour says what the name means.
    """
    panel: Any = _dress(timeseries.Panel(), title, description, unit, width=width, height=8)
    panel = panel.targets(_targets(queries, instant=False)).line_width(2).fill_opacity(30 if stacked else 8)
    panel = panel.show_points(common_models.VisibilityMode.AUTO).tooltip(
        common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI)
    )
    panel = panel.legend(
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(common_models.LegendDisplayMode.LIST)
        .placement(common_models.LegendPlacement.BOTTOM)
    )
    for name, color in (colors or {}).items():
        fixed = models.DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": color})
        panel = panel.override_by_name(name, [fixed])
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    if logarithmic:
        scale = common.ScaleDistributionConfig().type(common_models.ScaleDistribution.LOG).log(10)
        panel = panel.scale_distribution(scale)
    elif least is not None:
        panel = panel.min(least)
    return panel if most is None else panel.max(most)  # type: ignore[no-any-return]


def bars(title: str, description: str, unit: str, query: Query, *, width: int = 8, most: float | None = None) -> Panel:
    """The newest values beside each other, one bar a series."""
    panel: Any = _dress(bargauge.Panel(), title, description, unit, width=width, height=8)
    panel = panel.targets(_targets([query], instant=True)).reduce_options(_newest()).min(0)
    panel = panel.orientation(common_models.VizOrientation.HORIZONTAL).thresholds(_thresholds([(None, BLUE)]))
    panel = panel.display_mode(common_models.BarGaugeDisplayMode.BASIC)
    return panel if most is None else panel.max(most)  # type: ignore[no-any-return]


def rows_of(
    title: str,
    description: str,
    queries: Sequence[Query],
    columns: Sequence[Column],
    *,
    width: int = 24,
    height: int = 8,
    unit: str = COUNT,
    link: tuple[str, str, str] | None = None,
) -> Panel:
    """A table whose rows are made of all queries, joined by the labels that they share.

    Args:
        title: of the panel.
        description: what it says and what to do about it.
        queries: their values are columns.
        columns: what is shown, in this order; everything else is hidden.
        width: in the grid.
        height: in the grid.
        unit: of columns that name none.
        link: a column's title, the link's title and its address, which each of the column's cells leads to.
    """
    panel: Any = _dress(table.Panel(), title, description, unit, width=width, height=height)
    panel = panel.targets(_targets(queries, instant=True, as_table=True)).filterable(True)
    order = {column.field: number for number, column in enumerate(columns)}
    names = {column.field: column.title for column in columns}
    shown = {"include": {"names": list(order)}}
    panel = panel.with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
    panel = panel.with_transformation(models.DataTransformerConfig(id_val="filterFieldsByName", options=shown))
    arranged = {"indexByName": order, "renameByName": names, "excludeByName": {}}
    panel = panel.with_transformation(models.DataTransformerConfig(id_val="organize", options=arranged))
    for column in columns:
        settings = [models.DynamicConfigValue(id_val="unit", value=column.unit)] if column.unit else []
        if link and column.title == link[0]:
            settings.append(models.DynamicConfigValue(id_val="links", value=[{"title": link[1], "url": link[2]}]))
        if settings:
            panel = panel.override_by_name(column.title, settings)
    return panel  # type: ignore[no-any-return]


def note(title: str, description: str, content: str, *, width: int = 12, height: int = 8) -> Panel:
    """A text (Markdown), with the dashboard's variables filled in."""
    panel = text.Panel().title(title).description(description).content(content)
    return panel.span(width).height(height)


def row(title: str, *panels: Panel, folded: bool = False) -> Row:
    """A row that folds, with its panels; their queries are made only where it is open."""

    def add(to: dashboard.Dashboard) -> dashboard.Dashboard:
        head = dashboard.Row(title).collapsed(folded)
        if folded:
            for panel in panels:
                head = head.with_panel(panel)
            return to.with_row(head)
        to = to.with_row(head)
        for panel in panels:
            to = to.with_panel(panel)
        return to

    return add
