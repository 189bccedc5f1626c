"""The dataset report for a person: one HTML file with the images as the model will see them.

What it says and how it looks is in ``pages/templates/dataset.html``; this chooses what is shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llava_api.judging import needed_groups
from llava_api.text import show
from llava_trainer.data.dataset import PreparedDataset
from llava_trainer.data.dataset_report import DatasetReport, Note
from llava_trainer.data.findings import LEFT_OUT, Kind
from llava_trainer.data.sample_grid import Card, build_cards, grid_size
from llava_trainer.data.token_counts import Bar
from llava_trainer.pages import charts
from llava_trainer.pages.charts import Histogram, place_bars
from llava_trainer.pages.rendering import render_html

REFUSED_ENTRIES = "refused.jsonl"
"""Lies beside the page: it has too many entries to be within it."""
_SHOWN_ENTRIES = 50
_LEFT_OUT = frozenset(kind.name.lower() for kind in LEFT_OUT)
_WARNINGS = frozenset(kind.name.lower() for kind in (Kind.ILLEGIBLE, Kind.TOO_FEW_GROUPS))
"""About the dataset as a whole: shown open, before everything else."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One dataset as the page shows it."""

    title: str
    """Empty where there is only one."""
    source: str
    report: DatasetReport
    usable: int
    """Samples."""
    warnings: tuple[str, ...]
    left_out: tuple[Note, ...]
    notes: tuple[Note, ...]
    """What is neither of these."""
    lengths: Histogram | None
    supervised: Histogram | None
    cards: tuple[Card, ...]


def build_dataset_page(name: str, phases: Sequence[PreparedDataset], report: DatasetReport) -> str:
    """Build the page.

    Args:
        name: the run's.
        phases: training's dataset, those of the mixture, alignment's and the retention set, as far as there are any;
            samples for the grid.
        report: the facts.
    """
    others = [part.dataset for part in report.mixture]
    further = {"Alignment": report.alignment, "Retention": report.retention}
    beside = {title: one for title, one in further.items() if one is not None}
    reports = [report, *others, *beside.values()]
    mixed = [f"Mixture {number}" for number in range(1, len(others) + 1)]
    titles = ("Training", *mixed, *beside) if reports[1:] else ("",)
    return render_html(
        "dataset.html",
        name=name,
        report=report,
        phases=[
            _describe(title, phase, one, num_cards=grid_size(len(phases)))
            for title, phase, one in zip(titles, phases, reports, strict=True)
        ],
        shown_entries=_SHOWN_ENTRIES,
        least_groups=needed_groups(is_gated=phases[0].request.is_gated),
        refused_file=REFUSED_ENTRIES,
    )


def _describe(title: str, dataset: PreparedDataset, report: DatasetReport, *, num_cards: int) -> Phase:
    selecting = report.selection.samples if report.selection else 0
    return Phase(
        title=title,
        source=show(dataset.request.dataset.source),
        report=report,
        usable=report.train.samples + report.validation.samples + selecting,
        warnings=tuple(entry.message for note in report.notes if note.kind in _WARNINGS for entry in note.examples),
        left_out=tuple(note for note in report.notes if note.kind in _LEFT_OUT),
        notes=tuple(note for note in report.notes if note.kind not in _LEFT_OUT | _WARNINGS),
        lengths=_place(report.lengths.histogram, report.lengths.max_length),
        supervised=_place(report.supervised.histogram),
        cards=build_cards(dataset, num_cards),
    )


def _place(bars: Sequence[Bar], limit: int | None = None) -> Histogram | None:
    return place_bars(
        [charts.Bar(begin=bar.from_tokens, end=bar.to_tokens, count=bar.samples) for bar in bars], limit=limit
    )
