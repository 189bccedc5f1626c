"""Small pieces of HTML and SVG for the reports: what goes in as text comes out escaped, for HTML and for eyes.

A report is one file that loads nothing: styles, images and curves are inside, and a content security policy keeps
it so. Knows nothing about what is reported.
"""

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib import resources

from PIL import Image

from llava_api import text

_VOID = frozenset({"br", "col", "hr", "img", "input", "meta"})


class Html(str):
    """Markup that may stand in a page as it is; every other string is escaped on its way in."""

    __slots__ = ()


Child = str | Html | int | None


def el(tag: str, *children: Child | Iterable[Child], **attributes: str | int | bool | None) -> Html:
    """One element.

    Args:
        tag: its name.
        children: text (escaped), markup (taken as it is), or iterables of these; None is left out.
        attributes: ``class_`` and ``for_`` stand for ``class`` and ``for``, ``data_x`` for ``data-x``; True is a bare
            attribute, False and None leave it out.
    """
    names = {name: name.rstrip("_").replace("_", "-") for name in attributes}
    opening = tag + "".join(
        f" {names[name]}" if value is True else f' {names[name]}="{escape(text.escape(str(value)))}"'
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    if tag in _VOID:
        return Html(f"<{opening}>")
    return Html(f"<{opening}>{join(*children)}</{tag}>")


def join(*children: Child | Iterable[Child]) -> Html:
    """Children one after the other, without an element around them."""
    return Html("".join(_flatten(children)))


def _flatten(children: Iterable[Child | Iterable[Child]]) -> Iterable[str]:
    for child in children:
        if child is None:
            continue
        if isinstance(child, Html):
            yield str(child)
        elif isinstance(child, str | int):
            yield escape(text.escape(str(child), multiline=True))
        else:
            yield from _flatten(child)


def page(title: str, *body: Child | Iterable[Child], script: str = "") -> str:
    """A whole page in the reports' style, light or dark as the reader has it.

    Args:
        title: shown by the browser.
        body: what stands in ``<main>``.
        script: JavaScript of ours, never with data in it; the page must say everything without it as well.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        el("style", Html(_asset("page.css"))),
    )
    code = el("script", Html(script)) if script else None
    return f"<!doctype html>\n{el('html', head, el('body', el('main', *body), code), lang='en')}\n"


@cache
def _asset(name: str) -> str:
    return resources.files("llava_trainer").joinpath(name).read_text(encoding="utf-8")


def script_asset(name: str) -> str:
    """JavaScript that ships with the package, to hand to :func:`page`."""
    return _asset(name)


def definition_list(rows: Iterable[tuple[str, Child]]) -> Html:
    """Names and values in two columns."""
    return el("dl", (el("div", el("dt", name), el("dd", value)) for name, value in rows), class_="facts")


def thumbnail(image: Image.Image, max_px: int = 240, quality: int = 72) -> str:
    """A ``data:`` URI with a JPEG of ``image``, at most ``max_px`` wide and high."""
    small = image.convert("RGB")
    small.thumbnail((max_px, max_px))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a chart."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]


_CHART_WIDTH, _CHART_HEIGHT = 560, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 14, 22, 34
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MAX_POINTS = 1000


def line_chart(curve: Curve, *, x_label: str, style: str = "curve") -> Html:
    """A line chart as inline SVG, y from 0, with rounded ticks; points that are not finite are left out.

    Args:
        curve: the line; more than 1000 points are thinned out evenly, first and last kept.
        x_label: what x counts.
        style: class of the line, which decides its colour.
    """
    points = _thin_out([(x, y) for x, y in zip(curve.xs, curve.ys, strict=True) if math.isfinite(y)])
    if not points:
        return el("p", f"{curve.label}: no points.", class_="muted")
    x_low, x_high = points[0][0], max(points[-1][0], points[0][0] + 1)
    y_ticks = round_ticks(max(y for _, y in points))
    x_scale = (_CHART_WIDTH - _LEFT - _RIGHT) / (x_high - x_low)
    y_scale = (_CHART_HEIGHT - _TOP - _BOTTOM) / y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + (x - x_low) * x_scale, _CHART_HEIGHT - _BOTTOM - max(y, 0.0) * y_scale

    exponent = _exponent(y_ticks[-1])
    path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
    last_x, last_y = place(*points[-1])
    return el(
        "svg",
        el("title", f"{curve.label} over {x_label}, last value {points[-1][1]:.4g}"),
        (_y_tick(_tick_label(tick / 10.0**exponent), place(x_low, tick)[1]) for tick in y_ticks),
        el("text", f"×10{str(exponent).translate(_SUPERSCRIPT)}", x=_LEFT, y=11, class_="axis") if exponent else None,
        (_x_tick(tick, place(tick, 0)[0]) for tick in _x_ticks(x_low, x_high)),
        el("text", x_label, x=_CHART_WIDTH - _RIGHT, y=_CHART_HEIGHT - 4, class_="axis end"),
        el("path", d=path, class_=style),
        el("circle", cx=f"{last_x:.1f}", cy=f"{last_y:.1f}", r=3, class_=style),
        viewBox=f"0 0 {_CHART_WIDTH} {_CHART_HEIGHT}",
        role="img",
        class_="chart",
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


def _y_tick(label: str, y: float) -> Html:
    return join(
        el("line", x1=_LEFT, x2=_CHART_WIDTH - _RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid"),
        el("text", label, x=_LEFT - 8, y=f"{y + 4:.1f}", class_="axis end"),
    )


def _x_tick(value: int, x: float) -> Html:
    return el("text", f"{value:,}", x=f"{x:.1f}", y=_CHART_HEIGHT - _BOTTOM + 16, class_="axis middle")
