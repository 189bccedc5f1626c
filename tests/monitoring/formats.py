"""Values and names as Grafana writes them, as far as the dashboards use its units."""

import math
import re
from collections.abc import Mapping

_TEMPLATE = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_TIMES = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs"))
_BYTES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))
_TIME_STEPS = (15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200)
_THOUSANDS = ((1e9, "Bil"), (1e6, "Mil"), (1e3, "K"))


def write_value(value: float, unit: str, decimals: int | None = None) -> str:
    """A value with its unit; as many digits as fit, or ``decimals`` behind the point."""
    if value != value:
        return "-"
    if decimals is not None and unit == "short" and abs(value) < 1000:
        return f"{value:.{decimals}f}"
    match unit:
        case "s":
            return _scaled(value, _TIMES, "s")
        case "bytes":
            return _scaled(value, _BYTES, "B")
        case "percentunit":
            return f"{_short(100 * value)}%"
        case "percent":
            return f"{_short(value)}%"
        case "reqps":
            return f"{_short(value)} req/s"
        case "celsius":
            return f"{_short(value)} °C"
        case "watt":
            return f"{_short(value)} W"
        case "none":
            return f"{value:.4g}"
        case "short":
            return _scaled(value, _THOUSANDS, "").replace(" ", "")
    raise ValueError(f"unit {unit!r} is written nowhere here: add it")


def write_name(legend: str, labels: Mapping[str, str]) -> str:
    """A series' name by its legend."""
    if legend == "__auto":
        return ", ".join(value for key, value in sorted(labels.items()) if key != "__name__")
    return _TEMPLATE.sub(lambda found: labels.get(found[1], ""), legend).strip()


def round_step(step: float, unit: str) -> float:
    """The next larger distance of an axis' ticks that reads well."""
    if unit == "s" and step > 10:
        return next((one for one in _TIME_STEPS if one >= step), math.ceil(step / 86400) * 86400)
    if unit == "bytes":
        return 2.0 ** math.ceil(math.log2(step))
    size = 10.0 ** math.floor(math.log10(step))
    return next(size * one for one in (1, 2, 2.5, 5, 10) if size * one >= step * 0.999)


def _scaled(value: float, scale: tuple[tuple[float, str], ...], smallest: str) -> str:
    for size, name in scale:
        if abs(value) >= size:
            return f"{_short(value / size)} {name}"
    return f"{_short(value)} {smallest}".strip()


def _short(value: float) -> str:
    if value == 0 or float(value).is_integer():
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
