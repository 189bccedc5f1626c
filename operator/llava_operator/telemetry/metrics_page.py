"""docs/metrics.md, made from the contract: ``python -m llava_operator.telemetry.metrics_page`` writes it."""

from collections.abc import Iterable
from pathlib import Path

from llava_api.generated import write_files
from llava_operator.telemetry.contract import OPERATOR_FAMILIES, RUN_FAMILIES, RUN_LABELS, Family, Kind

PATH = Path("docs/metrics.md")
_HEAD = """# Metrics

Made from `operator/llava_operator/telemetry/contract.py` by `make generate`. How they are scraped, plainly or over TLS,
is in [monitoring.md](monitoring.md).

The list only grows: a metric that is here keeps its name, type, unit and labels. Its query is one that somebody would
ask.
"""
_RUNS = """## Runs

Made from the runs' status at the moment of asking, by the operator that leads and no other: a restart or another leader
changes nothing. Values never stand in labels, and every series has the labels `namespace` and `name` of its run. What
is not known of a run is no series. Those of a run that has ended go after `metrics.finishedRunSeconds` of the chart (an
hour), and at once where it is deleted; what was scraped stays in Prometheus.

A run that trains is about 50 series, one that has ended about 60 until they go.
"""
_OPERATOR = """## The operator itself

Counted by each process since it began. What runs leave behind when they are deleted is here.
"""
_FOOT = """Besides these, the usual `process_…` metrics. A histogram has the series `_bucket` (with the label `le`),
`_sum` and `_count`.
"""


def build_metrics_page() -> str:
    """The whole page as Markdown."""
    own = {family.name: family.labels[len(RUN_LABELS) :] for family in RUN_FAMILIES}
    return "\n".join(
        (
            _HEAD,
            _RUNS,
            _table("labels besides these", ((family, own[family.name]) for family in RUN_FAMILIES)),
            _OPERATOR,
            _table("labels", ((family, family.labels) for family in OPERATOR_FAMILIES)),
            _FOOT,
        )
    )


def _table(labels: str, rows: Iterable[tuple[Family, tuple[str, ...]]]) -> str:
    lines: list[tuple[str, ...]] = [("metric", "type", "unit", labels, "meaning", "a query"), ("---",) * 6]
    for family, names in rows:
        # In the text format an info is a gauge.
        kind = Kind.GAUGE if family.kind is Kind.INFO else family.kind
        unit = family.unit.replace("timestamp_seconds", "seconds since 1970")
        listed = ", ".join(f"`{name}`" for name in names)
        lines.append((f"`{family.name}`", kind, unit, listed, family.help, f"`{family.example}`"))
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines) + "\n"


def build_files() -> dict[Path, str]:
    """The page, by its path from the repository's root."""
    return {PATH: build_metrics_page()}


def main() -> None:
    """Write it."""
    write_files(build_files())


if __name__ == "__main__":
    main()
