"""Where the lines, bars and ticks of a chart lie; the templates draw them as SVG. Pure, in pixels of the viewBox."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MAX_POINTS = 1000


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a chart."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    style: str = "curve"
    """Class of the line, which decides its colour."""


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A mark on an axis, ``at`` so many pixels from the left or the top."""

    label: str
    at: float


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve as it is drawn."""

    label: str
    style: str
    path: str
    """SVG path data."""
    end: tuple[float, float]
    """Where the last point lies."""
    last: str
    """The last value."""


@dataclass(frozen=True, kw_only=True)
class LineChart:
    """Curves over one x, y from 0."""

    lines: tuple[Line, ...]
    x_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    factor: str
    """What the labels of y are to be multiplied with, like ``×10⁻⁴``; empty where that is 1."""
    width: int = 560
    height: int = 220
    left: int = 44
    right: int = 546
    top: int = 22
    floor: int = 186


def place_lines(curves: Sequence[Curve], *, x_label: str) -> LineChart | None:
    """Lay out a line chart with rounded ticks; None where no point of it is finite.

    Args:
        curves: the lines; points that are not finite are left out, more than 1000 are thinned out evenly, first and
            last kept.
        x_label: what x counts.
    """
    drawn = [
        (curve, points)
        for curve in curves
        if (points := _thin_out([(x, y) for x, y in zip(curve.xs, curve.ys, strict=True) if math.isfinite(y)]))
    ]
    if not drawn:
        return None
    area = LineChart(lines=(), x_label="", x_ticks=(), y_ticks=(), factor="")
    x_low = min(points[0][0] for _, points in drawn)
    x_high = max(*(points[-1][0] for _, points in drawn), x_low + 1)
    y_ticks = round_ticks(max(y for _, points in drawn for _, y in points))
    x_scale = (area.right - area.left) / (x_high - x_low)
    y_scale = (area.floor - area.top) / y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        return round(area.left + (x - x_low) * x_scale, 1), round(area.floor - max(y, 0.0) * y_scale, 1)

    def draw(curve: Curve, points: Sequence[tuple[float, float]]) -> Line:
        path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        return Line(
            label=curve.label, style=curve.style, path=path, end=place(*points[-1]), last=f"{points[-1][1]:.4g}"
        )

    exponent = _exponent(y_ticks[-1])
    return LineChart(
        lines=tuple(draw(curve, points) for curve, points in drawn),
        x_label=x_label,
        x_ticks=tuple(Tick(label=f"{tick:,}", at=place(tick, 0)[0]) for tick in _x_ticks(x_low, x_high)),
        y_ticks=tuple(Tick(label=_tick_label(tick / 10.0**exponent), at=place(x_low, tick)[1]) for tick in y_ticks),
        factor=f"×10{str(exponent).translate(_SUPERSCRIPT)}" if exponent else "",
    )


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar of a histogram: what lies from ``begin`` to below ``end``."""

    begin: int
    end: int
    count: int


@dataclass(frozen=True, kw_only=True)
class Column:
    """A bar as it is drawn."""

    bar: Bar
    x: float
    y: float
    width: float
    height: float
    is_over: bool
    """Whether all of it lies beyond the limit."""


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Bars side by side."""

    columns: tuple[Column, ...]
    begin: int
    end: int
    highest: int
    """Of the highest bar."""
    limit: int | None
    limit_x: float | None
    """None where the limit lies outside."""
    width: int = 520
    height: int = 190
    left: int = 34
    right: int = 486
    floor: int = 166


def place_bars(bars: Sequence[Bar], *, limit: int | None = None) -> Histogram | None:
    """Lay out a histogram; None without bars.

    Args:
        bars: from left to right.
        limit: where a line is drawn, beyond which bars count as over.
    """
    if not bars:
        return None
    highest = max(bar.count for bar in bars)
    begin, end = bars[0].begin, bars[-1].end
    area = Histogram(columns=(), begin=begin, end=end, highest=highest, limit=limit, limit_x=None)
    scale = (area.right - area.left) / (end - begin)

    def place(value: int) -> float:
        return round(area.left + (value - begin) * scale, 1)

    def draw(bar: Bar) -> Column:
        height = round(bar.count / highest * (area.floor - 20), 1)
        return Column(
            bar=bar,
            x=place(bar.begin),
            y=round(area.floor - height, 1),
            width=round(max(1.0, (bar.end - bar.begin) * scale - 2), 1),
            height=height,
            is_over=limit is not None and bar.begin > limit,
        )

    return Histogram(
        columns=tuple(draw(bar) for bar in bars if bar.count),
        begin=begin,
        end=end,
        highest=highest,
        limit=limit,
        limit_x=place(limit) if limit is not None and begin <= limit < end else None,
    )


def _thin_out(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= _MAX_POINTS:
        return points
    step = (len(points) - 1) / (_MAX_POINTS - 1)
    return [points[round(index * step)] for index in range(_MAX_POINTS)]


def round_ticks(highest: float, wanted: int = 4) -> list[float]:
    """Ticks from 0 to at least ``highest``, a step of 1, 2 or 5 times a power of ten apart."""
    if highest <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(highest / wanted))
    step = next(unit * power for unit in (1, 2, 5, 10) if unit * power * wanted >= highest * (1 - 1e-9))
    count = math.ceil(highest / step - 1e-9)
    return [index * step for index in range(count + 1)]


def _x_ticks(low: float, high: float) -> list[int]:
    return sorted({round(low + (high - low) * part / 4) for part in range(5)})


def _exponent(highest: float) -> int:
    """Power of ten to take out of tick labels; 0 while they are short as they are."""
    return 0 if 0.01 < highest < 100_000 else math.floor(math.log10(highest))


def _tick_label(value: float) -> str:
    # .3g would write 1,500 as 1.5e+03, which has no room beside the axis.
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
