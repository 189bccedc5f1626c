"""A dashboard's panels drawn from a real Prometheus, laid out as Grafana lays them out: by the shipped JSON alone.

Each panel makes its own queries over its own range and writes its own unit. It is no Grafana, and good enough to see
what a panel shows, and that it shows something.
"""

import io
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, DateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MultipleLocator
from PIL import Image

from llava_monitoring.promql import expand
from llava_monitoring.reading import Json, panels_of
from tests.monitoring.formats import round_step, write_name, write_value
from tests.monitoring.prometheus import Prometheus, Series, Span
from tests.monitoring.proof import values_for

WIDTH_PX, CELL_PX, DPI = 1500, 30, 100
_GRID = 24
_GAP_PX = 4
_TITLE_PX = 20
_INK, _FAINT, _PAGE, _PANEL = "#1f2329", "#6b7280", "#f4f5f5", "#ffffff"
_LINES = ("#5794F2", "#73BF69", "#F2495C", "#FF9830", "#B877D9", "#37872D", "#FADE2A", "#8F3BB8", "#1F60C4", "#C4162A")
_COLORS = {"red": "#E02F44", "yellow": "#E0A000", "green": "#37872D", "blue": "#3274D9", "gray": "#9AA0A6"}
_MAX_COLORS = 128
_MAX_LEGEND = 8
_MAX_TICKS = 5
_AXIS_PX = 66


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One dashboard at one moment, with what was chosen at its top."""

    prometheus: Prometheus
    dashboard: Json
    span: Span
    chosen: Mapping[str, str]
    empty: list[str] = field(default_factory=list)
    """Titles of panels that had nothing to show."""

    def save(self, path: Path) -> None:
        """Write the whole page as a PNG with few colours."""
        rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels_of(self.dashboard)) + 1
        height_px = rows * CELL_PX
        figure = Figure(figsize=(WIDTH_PX / DPI, height_px / DPI), dpi=DPI, facecolor=_PAGE)
        top = ", ".join(f"{name}: {value}" for name, value in self.chosen.items())
        title = f"{self.dashboard['title']}    {top}"
        figure.text(0.006, 1 - 15 / height_px, title, size=11, weight="bold", color=_INK, va="center")
        with matplotlib.rc_context({"font.size": 8, "axes.edgecolor": "#d0d4da", "text.color": _INK}):
            for panel in panels_of(self.dashboard):
                self._draw(figure, panel, height_px)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        picture = Image.open(buffer).convert("RGB").quantize(_MAX_COLORS, dither=Image.Dither.NONE)
        picture.save(path, optimize=True)

    def _draw(self, figure: Figure, panel: Json, height_px: int) -> None:
        place = panel["gridPos"]
        box = _Box(
            left=place["x"] * WIDTH_PX / _GRID + _GAP_PX, width=place["w"] * WIDTH_PX / _GRID - 2 * _GAP_PX,
            top=(place["y"] + 1) * CELL_PX + _GAP_PX, height=place["h"] * CELL_PX - 2 * _GAP_PX, page=height_px,
        )  # fmt: skip
        if panel["type"] == "row":
            figure.text(box.left / WIDTH_PX, 1 - (box.top + 11) / height_px, f"▾ {panel['title']}", size=10,
                        weight="bold", color=_FAINT, va="center")  # fmt: skip
            return
        back = figure.add_axes(box.fractions())
        back.set(xticks=[], yticks=[], facecolor=_PANEL)
        back.text(6 / box.width, 1 - 11 / box.height, panel["title"], va="center", size=9)
        draw = {"stat": self._stat, "timeseries": self._graph, "bargauge": self._bars, "table": self._table,
                "text": self._text}[panel["type"]]  # fmt: skip
        if not draw(figure, back, box, panel):
            self.empty.append(panel["title"])

    # --- what Prometheus says

    def _instant(self, panel: Json) -> Iterator[tuple[Json, list[Series]]]:
        for target in panel["targets"]:
            expression = expand(target["expr"], values_for(self.span, **self.chosen))
            yield target, self.prometheus.query(expression, self.span.end)

    def _named(self, panel: Json) -> list[tuple[str, float]]:
        found = [(write_name(target["legendFormat"], series.labels), series.points[-1][1])
                 for target, answer in self._instant(panel) for series in answer]  # fmt: skip
        return sorted(found)

    # --- kinds of panels; each returns whether there was anything to show

    def _stat(self, _: Figure, back: Axes, box: "_Box", panel: Json) -> bool:
        defaults, found = panel["fieldConfig"]["defaults"], self._named(panel)
        if not found:
            back.text(0.5, 0.42, defaults["noValue"], size=22, ha="center", va="center", color=_COLORS["blue"])
            return False
        name, value = found[0]
        text = (
            name
            if panel["options"]["textMode"] == "name"
            else write_value(value, defaults["unit"], defaults.get("decimals"))
        )
        color = "blue"
        for step in defaults["thresholds"]["steps"]:
            if step["value"] is None or value >= step["value"]:
                color = step["color"]
        size = min(26.0, 1.1 * box.width / max(len(text), 4))
        back.text(0.5, 0.42, text, size=size, ha="center", va="center", color=_COLORS[color])
        return True

    def _graph(self, figure: Figure, back: Axes, box: "_Box", panel: Json) -> bool:
        unit, custom = panel["fieldConfig"]["defaults"]["unit"], panel["fieldConfig"]["defaults"]["custom"]
        lines: list[tuple[str, Series]] = []
        for target in panel["targets"]:
            expression = expand(target["expr"], values_for(self.span, **self.chosen))
            for series in self.prometheus.query_range(expression, self.span):
                lines.append((write_name(target["legendFormat"], series.labels), series))
        if not lines:
            return _say_nothing(back)
        axes = figure.add_axes(box.inner(left=_AXIS_PX, right=10, top=_TITLE_PX + 6, bottom=40))
        colors = {name: color["fixedColor"] for name, color in _overrides(panel, "color").items()}
        self._draw_lines(axes, sorted(lines, key=lambda line: line[0]), colors, stacked="stacking" in custom)
        axes.set_xlim(_when(self.span.start), _when(self.span.end))
        axes.xaxis.set_major_locator(AutoDateLocator(maxticks=6))
        axes.xaxis.set_major_formatter(DateFormatter("%H:%M", tz=UTC))
        is_logarithmic = custom.get("scaleDistribution", {}).get("type") == "log"
        if is_logarithmic:
            axes.set_yscale("log")
        least, most = (panel["fieldConfig"]["defaults"].get(key) for key in ("min", "max"))
        axes.set_ylim(bottom=least, top=most * 1.05 if most else None)
        if is_logarithmic:
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        else:
            low, high = axes.get_ylim()
            axes.yaxis.set_major_locator(MultipleLocator(round_step((high - low) / _MAX_TICKS, unit)))
        axes.yaxis.set_major_formatter(lambda value, _: write_value(value, unit))
        axes.yaxis.set_minor_formatter(lambda *_: "")
        axes.tick_params(length=0, colors=_FAINT)
        axes.grid(visible=True, color="#eceef1")
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        self._marks(axes)
        below = (-(_AXIS_PX - 8) / (box.width - _AXIS_PX), -18 / (box.height - _TITLE_PX - 46))
        axes.legend(loc="upper left", bbox_to_anchor=below, ncols=4, frameon=False, fontsize=7, borderaxespad=0,
                    handlelength=1, columnspacing=1)  # fmt: skip
        return True

    def _draw_lines(
        self, axes: Axes, lines: Sequence[tuple[str, Series]], colors: Mapping[str, str], *, stacked: bool
    ) -> None:
        base: dict[float, float] = {}
        for number, (name, series) in enumerate(lines):
            color = _COLORS[colors[name]] if name in colors else _LINES[number % len(_LINES)]
            at = [when for when, _ in series.points]
            under = [base.get(when, 0.0) if stacked else 0.0 for when in at]
            over = [value + low for (_, value), low in zip(series.points, under, strict=True)]
            base |= dict(zip(at, over, strict=True))
            label = name if number < _MAX_LEGEND else "_"
            for start, end in _pieces(at, 1.5 * self.span.step_s):
                times = [_when(when) for when in at[start:end]]
                marker = "o" if end - start < 3 else None
                axes.plot(times, over[start:end], color=color, linewidth=1.4, label=label, marker=marker, markersize=3)
                alpha = 0.25 if stacked else 0.05
                axes.fill_between(times, under[start:end], over[start:end], color=color, alpha=alpha)
                label = "_"

    def _marks(self, axes: Axes) -> None:
        """The dashboard's annotations, at the instants that are their values."""
        for annotation in self.dashboard["annotations"].get("list") or []:
            if not annotation["enable"] or "expr" not in annotation:
                continue
            expression = expand(annotation["expr"], values_for(self.span, **self.chosen))
            for series in self.prometheus.query_range(expression, self.span):
                for instant in {value / 1000 for _, value in series.points}:
                    if self.span.start <= instant <= self.span.end:
                        axes.axvline(_when(instant), color=_COLORS[annotation["iconColor"]], linewidth=1, linestyle=":")

    def _bars(self, figure: Figure, back: Axes, box: "_Box", panel: Json) -> bool:
        unit, found = panel["fieldConfig"]["defaults"]["unit"], self._named(panel)
        found = [(name, value) for name, value in found if value == value]
        if not found:
            return _say_nothing(back)
        axes = figure.add_axes(box.inner(left=10, right=60, top=_TITLE_PX + 8, bottom=8))
        names, values = [name for name, _ in found], [value for _, value in found]
        places = range(len(found), 0, -1)
        axes.barh(list(places), values, height=min(0.45, 0.12 * len(found) + 0.1), color=_LINES[0])
        longest = panel["fieldConfig"]["defaults"].get("max") or max(*values, 1e-9)
        axes.set(xlim=(0, longest), ylim=(0.3, len(found) + 0.8))
        for place, name, value in zip(places, names, values, strict=True):
            axes.text(0, place + 0.36, name, size=8, va="center")
            axes.text(longest * 1.01, place, write_value(value, unit), size=9, va="center", clip_on=False)
        axes.axis("off")
        return True

    def _table(self, figure: Figure, back: Axes, box: "_Box", panel: Json) -> bool:
        rows: list[dict[str, Any]] = []
        answers = list(self._instant(panel))
        for target, answer in answers:
            # As Grafana names it: of one query there is nothing to tell apart.
            value = f"Value #{target['refId']}" if len(answers) > 1 else "Value"
            for series in answer:
                _merge(rows, {**series.labels}, value, series.points[-1][1])
        if not rows:
            return _say_nothing(back)
        arranged = panel["transformations"][-1]["options"]
        names = {
            key: arranged["renameByName"][key]
            for key in sorted(arranged["indexByName"], key=arranged["indexByName"].get)
        }
        units = _overrides(panel, "unit")
        default = panel["fieldConfig"]["defaults"]["unit"]
        fits = int((box.height - _TITLE_PX - 8) // 20) - 1
        for column, (key, title) in enumerate(names.items()):
            x = (10 + column * (box.width - 20) / len(names)) / box.width
            back.text(x, 1 - (_TITLE_PX + 14) / box.height, title, size=8, weight="bold", color=_FAINT, va="center")
            for number, row in enumerate(rows[:fits]):
                value = row.get(key, "")
                text = write_value(value, units.get(title, default)) if isinstance(value, float) else value
                back.text(x, 1 - (_TITLE_PX + 34 + 20 * number) / box.height, text, size=8, va="center")
        return True

    def _text(self, _: Figure, back: Axes, box: "_Box", panel: Json) -> bool:
        content = expand(panel["options"]["content"], {**self.chosen})
        lines = [part for line in content.splitlines() for part in textwrap.wrap(line, int(box.width / 6.5)) or [""]]
        back.text(10 / box.width, 1 - (_TITLE_PX + 8) / box.height, "\n".join(lines), size=8, va="top", linespacing=1.4)
        return True


@dataclass(frozen=True, kw_only=True)
class _Box:
    """A panel's place on the page, in pixels from its upper left corner."""

    left: float
    width: float
    top: float
    height: float
    page: int

    def fractions(self) -> tuple[float, float, float, float]:
        """As matplotlib has it: from the lower left corner, in parts of the page."""
        return self.inner(left=0, right=0, top=0, bottom=0)

    def inner(self, *, left: float, right: float, top: float, bottom: float) -> tuple[float, float, float, float]:
        """The same without margins."""
        low = self.page - self.top - self.height + bottom
        return ((self.left + left) / WIDTH_PX, low / self.page, (self.width - left - right) / WIDTH_PX,
                (self.height - top - bottom) / self.page)  # fmt: skip


def _say_nothing(back: Axes) -> bool:
    back.text(0.5, 0.45, "No data", size=10, ha="center", va="center", color=_FAINT)
    return False


def _overrides(panel: Json, setting: str) -> dict[str, Any]:
    """What a panel sets for single columns or lines, by their names."""
    return {one["matcher"]["options"]: made["value"] for one in panel["fieldConfig"]["overrides"]
            for made in one["properties"] if made["id"] == setting}  # fmt: skip


def _when(seconds: float) -> float:
    return float(date2num(datetime.fromtimestamp(seconds, UTC)))


def _pieces(at: Sequence[float], longest_s: float) -> Iterator[tuple[int, int]]:
    """From where to where a line goes without a gap."""
    start = 0
    for index in range(1, len(at) + 1):
        if index == len(at) or at[index] - at[index - 1] > longest_s:
            yield start, index
            start = index


def _merge(rows: list[dict[str, Any]], labels: dict[str, str], column: str, value: float) -> None:
    """Put a value into the rows that have its labels, or into one of its own."""
    fitting = [row for row in rows if all(row.get(key, text) == text for key, text in labels.items())]
    for row in fitting:
        row |= labels | {column: value}
    if not fitting:
        rows.append({**labels, column: value})
