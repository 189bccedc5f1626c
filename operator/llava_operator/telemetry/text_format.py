"""Prometheus' text format, version 0.0.4: the lines of a family.

The client's own exposition makes everything of a registry at once. Its other format, OpenMetrics, is not offered:
without exemplars it would tell nothing more.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.utils import floatToGoString

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
_SLICE: Final = 128
"""Lines of a slice of a registry: 1 or 2 ms."""
_TYPES = {"info": "gauge", "unknown": "untyped"}
_ENDINGS = {"info": "_info", "counter": "_total"}


def list_slices(registry: CollectorRegistry) -> Iterator[str]:
    """Everything that a registry has, in pieces of so many lines and one a family at least."""
    for metric in registry.collect():
        lines = [write_head(metric.name + _ENDINGS.get(metric.type, ""), metric.type, metric.documentation)]
        for sample in metric.samples:
            # The client tells of every counter when it was made, as a series of its own: nobody asks for that.
            if not sample.name.endswith("_created"):
                lines.append(write_sample(sample.name, sorted(sample.labels.items()), sample.value))
            if len(lines) >= _SLICE:
                yield "".join(lines)
                lines.clear()
        yield "".join(lines)


def write_head(name: str, kind: str, documentation: str) -> str:
    """The lines before a family's samples."""
    text = documentation.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {name} {text}\n# TYPE {name} {_TYPES.get(kind, kind)}\n"


def write_sample(name: str, labels: Iterable[tuple[str, str]], value: float) -> str:
    """The line of a sample."""
    listed = ",".join([f'{label}="{_escape(text)}"' for label, text in labels])
    number = floatToGoString(value)  # type: ignore[no-untyped-call]
    return f"{name}{{{listed}}} {number}\n" if listed else f"{name} {number}\n"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
