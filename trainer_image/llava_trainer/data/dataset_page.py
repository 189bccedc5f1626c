"""The dataset report for a person: one HTML file with the images as the model will see them."""

from collections.abc import Sequence

from llava_api.judging import least_groups
from llava_api.text import show
from llava_trainer.data.dataset import PreparedDataset
from llava_trainer.data.dataset_report import DatasetReport, GlobalBatch, Note, Side, Told
from llava_trainer.data.findings import LEFT_OUT, Kind
from llava_trainer.data.sample_grid import build_grid, grid_size
from llava_trainer.data.token_counts import Bar
from llava_trainer.html import Html, definition_list, el, join, page

REFUSED_ENTRIES = "refused.jsonl"
"""Lies beside the page: it has too many entries to be within it."""
_SHOWN_ENTRIES = 50
_CHART_WIDTH, _CHART_HEIGHT, _MARGIN = 520, 190, 34
_LEFT_OUT = frozenset(kind.name.lower() for kind in LEFT_OUT)
_WARNINGS = frozenset(kind.name.lower() for kind in (Kind.ILLEGIBLE, Kind.TOO_FEW_GROUPS))
"""About the dataset as a whole: shown open, before everything else."""

_STYLE = """
.verdict { display: inline-block; padding: 3px 12px; border-radius: 99px; font-weight: 600; font-size: 13px; }
.verdict.ok { background: var(--right-ground); color: var(--right); }
.verdict.bad { background: var(--wrong-ground); color: var(--wrong); }
.entries { width: 100%; border-collapse: collapse; font-size: 13.5px; }
.entries td { padding: 6px 12px 6px 0; vertical-align: top; overflow-wrap: anywhere; }
.entries tr + tr td { border-top: 1px solid var(--line); }
.entries td:first-child { width: 1%; padding-right: 24px; }
.entries td:first-child { white-space: nowrap; font-variant-numeric: tabular-nums; color: var(--muted); }
.chart rect { fill: var(--tuned); } .chart rect.over { fill: var(--second); }
.chart line.limit { stroke: var(--wrong); stroke-dasharray: 4 3; }
.seen { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(440px, 100%), 1fr)); gap: 16px; }
.seen .pictures { display: grid; gap: 10px; }
.seen .pair { display: grid; grid-template-columns: 1fr 1fr; gap: 8px; }
.seen figure { margin: 0; }
.seen figcaption { margin-top: 2px; }
.seen img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: 6px;
  background: var(--ground); }
.warnings li + li { margin-top: 8px; }
.seen .said { margin: 10px 0 0; font: 12.5px/1.5 ui-monospace, "Liberation Mono", monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; max-height: 260px; overflow-y: auto; color: var(--muted); }
.seen .pictures { margin-bottom: 12px; }
.seen mark { background: var(--right-ground); color: var(--right); border-radius: 3px; padding: 1px 0; }
.seen s { opacity: .6; }
.side { display: inline-block; margin-right: 8px; padding: 0 8px; border: 1px solid var(--line); border-radius: 99px;
  font-size: 12px; color: var(--ink); }
.phase { margin-top: 56px; padding-top: 8px; border-top: 2px solid var(--line); }
summary { cursor: pointer; }
details + details { margin-top: 8px; }
"""


def build_dataset_page(name: str, phases: Sequence[PreparedDataset], report: DatasetReport) -> str:
    """Build the page.

    Args:
        name: the run's.
        phases: training's dataset, then those of the mixture, then alignment's if there is one; samples for the grid.
        report: the facts.
    """
    others = [part.dataset for part in report.mixture]
    reports = [report, *others, *([report.alignment] if report.alignment is not None else [])]
    count = sum(one.refused_count for one in reports)
    verdict = el("span", "Accepted", class_="verdict ok")
    if not report.accepted:
        verdict = el("span", f"Refused: {count:,} {'entry' if count == 1 else 'entries'}", class_="verdict bad")
    sources = [show(phase.request.dataset.source) for phase in phases]
    mixed = [f"Mixture {number}" for number in range(1, len(others) + 1)]
    titles = ("Training", *mixed, *(["Alignment"] if report.alignment is not None else [])) if reports[1:] else ("",)
    return page(
        f"Dataset of {name}",
        el("style", Html(_STYLE)),
        el(
            "header",
            el("p", "Dataset report", class_="kicker"),
            el("h1", name),
            (el("p", f"{title}{': ' if title else ''}{one.file} in {source}, format {one.format}", class_="muted")
             for title, one, source in zip(titles, reports, sources, strict=True)),
            verdict,
            class_="top",
        ),
        _mixture(report) if report.mixture else None,
        (
            _phase(title, phase, one, shown=grid_size(len(phases)))
            for title, phase, one in zip(titles, phases, reports, strict=True)
        ),
    )  # fmt: skip


def _mixture(report: DatasetReport) -> Html:
    """What an epoch is made of."""
    total = report.samples_per_epoch
    rows = [("Training", f"{_number(report.train.samples, 'sample')} of {total:,}: each once")]
    for number, part in enumerate(report.mixture, start=1):
        usable = part.dataset.train.samples
        told = f"{part.drawn:,} of {total:,} ({part.share:.0%} asked for), from {_number(usable, 'sample')}"
        if part.withheld:
            told += f"; {part.withheld:,} left out, since they show or belong to what is held out"
        rows.append((f"Mixture {number}", told))
    return el("section", el("h2", "What an epoch has"), el("div", definition_list(rows), class_="card"))


def _phase(title: str, dataset: PreparedDataset, report: DatasetReport, *, shown: int) -> Html:
    return join(
        el("h2", f"{title} dataset", class_="phase") if title else None,
        _refused(report),
        _warnings(report),
        _facts(report),
        _charts(report),
        _left_out(report),
        _file_of_entries(report),
        _notes(report),
        build_grid(dataset, shown),
    )


def _refused(report: DatasetReport) -> Html | None:
    if not report.refused_count:
        return None
    return el(
        "section",
        el("h2", "What cannot be trained on"),
        el("div", _entries(report.refused, report.refused_count), class_="card"),
    )


def _warnings(report: DatasetReport) -> Html | None:
    told = [entry.message for note in report.notes if note.kind in _WARNINGS for entry in note.examples]
    if not told:
        return None
    items = (el("li", f"{message[:1].upper()}{message[1:]}.") for message in told)
    return el(
        "section", el("h2", "Before a GPU is taken"), el("div", el("ul", items, class_="warnings"), class_="card")
    )


def _entries(told: Sequence[Told], count: int) -> Html:
    shown = told[:_SHOWN_ENTRIES]
    rows = (el("tr", el("td", entry.where), el("td", entry.message)) for entry in shown)
    more = el("p", f"and {count - len(shown):,} more", class_="muted small") if count > len(shown) else None
    return el("div", el("table", rows, class_="entries"), more)


def _facts(report: DatasetReport) -> Html:
    images, lengths, supervised = report.pictures, report.lengths, report.supervised
    sizes = "none"
    if images.smallest_px and images.largest_px:
        sizes = f"{_by(images.smallest_px)} to {_by(images.largest_px)} px"
    shape = "padded to a square" if images.aspect_ratio == "pad" else "cut to a square"
    seen = f"{shape} of {images.side_px:,} px, {images.tokens_each:,} tokens each"
    if images.median_scale is not None:
        seen += f"; the median one is scaled to {images.median_scale:.0%}"
    if images.median_text_px is not None:
        seen += f", its texts to {images.median_text_px:.1f} px"
    usable = report.train.samples + report.validation.samples + (report.selection.samples if report.selection else 0)
    rows = (
        ("Training", _side(report.train)),
        ("Held out", _side(report.validation) if report.validation.samples else "nothing"),
        *([("To select a step by", _side(report.selection))] if report.selection else []),
        ("Groups", _groups(report)),
        *([("Can scores decide", _decision(report))] if report.can_decide is not None else []),
        ("In the export", f"{report.samples_read:,} samples, {usable:,} of them usable"),
        ("Left out", f"{_number(report.left_out, 'sample')}" if report.left_out else "none"),
        ("Pictures", f"{images.files:,} files, {images.different:,} different ones"),
        ("Picture sizes", sizes),
        ("As the model sees them", seen),
        ("Sample length", f"median {lengths.median:,.0f}, longest {lengths.longest:,} tokens"),
        ("Cut off", f"{lengths.overlong:,} of {usable:,} samples, at {lengths.max_length:,} tokens"),
        ("Learned tokens, an epoch", f"{report.train.supervised_tokens:,}"),
        ("Learned tokens, a sample", f"{supervised.fewest:,} to {supervised.most:,}, median {supervised.median:,.0f}"),
        *([("Global batch", _global_batch(report.global_batch))] if report.global_batch else []),
    )
    return el("section", el("h2", "What is in it"), el("div", definition_list(rows), class_="card"))


def _decision(report: DatasetReport) -> str:
    least = f"{least_groups()} groups at least have to give the scores"
    if report.can_decide:
        return f"yes: {least}"
    fraction = report.sufficient_fraction
    return f"no: {least}{f'; dataset.validation.fraction {fraction:g} would do' if fraction else ''}"


def _global_batch(chosen: GlobalBatch) -> str:
    return f"{_number(chosen.samples, 'sample')}, chosen by the data: {chosen.reason}"


def _groups(report: DatasetReport) -> str:
    told = f"{report.train.groups:,} in training, {report.validation.groups:,} held out"
    if report.selection:
        told += f", {report.selection.groups:,} to select by"
    shared = report.shared
    return f"{told}, {shared.groups:,} on both sides ({_number(shared.pairs, 'pair')})" if shared.groups else told


def _side(side: Side) -> str:
    return f"{_number(side.samples, 'sample')}, {_number(side.pairs, 'pair')}, {_number(side.pictures, 'picture')}"


def _number(count: int, what: str, several: str | None = None) -> str:
    return f"{count:,} {what if count == 1 else several or what + 's'}"


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]:,} x {size[1]:,}"


def _charts(report: DatasetReport) -> Html | None:
    if not report.lengths.histogram:
        return None
    supervised = report.supervised.histogram
    return el(
        "section",
        el("h2", "Tokens a sample"),
        el(
            "div",
            el(
                "div",
                el("h3", "Whole length, pictures included"),
                _bar_chart(report.lengths.histogram, "length", report.lengths.max_length),
                class_="card",
            ),
            el("div", el("h3", "Learned"), _bar_chart(supervised, "learned tokens"), class_="card")
            if supervised
            else None,
            class_="columns",
        ),
    )


def _bar_chart(bars: Sequence[Bar], what: str, limit: int | None = None) -> Html:
    highest = max(bar.samples for bar in bars)
    begin, end = bars[0].from_tokens, bars[-1].to_tokens
    x_scale = (_CHART_WIDTH - 2 * _MARGIN) / (end - begin)
    floor = _CHART_HEIGHT - 24

    def place(tokens: int) -> float:
        return _MARGIN + (tokens - begin) * x_scale

    def draw(bar: Bar) -> Html:
        height = bar.samples / highest * (floor - 20)
        return el(
            "rect",
            el("title", f"{bar.from_tokens:,} to {bar.to_tokens - 1:,} tokens: {_number(bar.samples, 'sample')}"),
            x=f"{place(bar.from_tokens):.1f}", y=f"{floor - height:.1f}", height=f"{height:.1f}",
            width=f"{max(1.0, (bar.to_tokens - bar.from_tokens) * x_scale - 2):.1f}",
            class_="over" if limit is not None and bar.from_tokens > limit else None,
        )  # fmt: skip

    limit_line = None
    if limit is not None and begin <= limit < end:
        x = f"{place(limit):.1f}"
        limit_line = el(
            "line", el("title", f"training.maxLength {limit:,}"), x1=x, x2=x, y1=8, y2=floor, class_="limit"
        )
    return el(
        "svg",
        el("title", f"Histogram of {what}, {begin:,} to {end - 1:,} tokens"),
        (draw(bar) for bar in bars if bar.samples),
        el("line", x1=_MARGIN, x2=_CHART_WIDTH - _MARGIN, y1=floor, y2=floor, class_="grid"),
        limit_line,
        el("text", f"{begin:,} tokens", x=_MARGIN, y=_CHART_HEIGHT - 6, class_="axis"),
        el("text", f"{end - 1:,}", x=_CHART_WIDTH - _MARGIN, y=_CHART_HEIGHT - 6, class_="axis end"),
        el("text", f"highest: {_number(highest, 'sample')}", x=_CHART_WIDTH - _MARGIN, y=12, class_="axis end"),
        viewBox=f"0 0 {_CHART_WIDTH} {_CHART_HEIGHT}", role="img", class_="chart",
    )  # fmt: skip


def _left_out(report: DatasetReport) -> Html | None:
    found = [note for note in report.notes if note.kind in _LEFT_OUT]
    if not found:
        return None
    entries = (_entries(note.examples, note.count) for note in found)
    return el("section", el("h2", "Left out"), el("div", entries, class_="card"))


def _file_of_entries(report: DatasetReport) -> Html | None:
    if not report.listed_entries:
        return None
    link = el("a", REFUSED_ENTRIES, href=REFUSED_ENTRIES, download=REFUSED_ENTRIES)
    told = f" lists {_number(report.listed_entries, 'entry', 'entries')} to work through, a line of JSON each."
    return el("p", link, told, class_="muted")


def _notes(report: DatasetReport) -> Html | None:
    notes = [note for note in report.notes if note.kind not in _LEFT_OUT | _WARNINGS]
    if not notes:
        return None
    return el("section", el("h2", "Worth knowing"), el("div", (_note(note) for note in notes), class_="card"))


def _note(note: Note) -> Html:
    title = note.title[:1].upper() + note.title[1:]
    return el("details", el("summary", f"{title}: {note.count:,}"), _entries(note.examples, note.count))
