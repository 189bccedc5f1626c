"""The dataset report for a person: one HTML file with the pictures as the model will see them."""

import logging
from collections.abc import Sequence

from llava_api.run_config import RunConfig
from llava_trainer.data.check import Checked, PictureFolder
from llava_trainer.data.dataset import PreparedDataset
from llava_trainer.data.images import PictureError, open_image, visible_image
from llava_trainer.data.processing import Processing
from llava_trainer.data.report import Bar, DatasetReport, Side, Told
from llava_trainer.data.template import render
from llava_trainer.html import Html, definition_list, el, page, thumbnail

GRID_SAMPLES = 24
_SHOWN_CHARACTERS = 400
_SHOWN_REFUSED = 50
_CHART_WIDTH, _CHART_HEIGHT, _MARGIN = 720, 180, 34

logger = logging.getLogger(__name__)

_STYLE = """
.verdict { display: inline-block; padding: 3px 12px; border-radius: 99px; font-weight: 600; font-size: 13px; }
.verdict.ok { background: var(--right-ground); color: var(--right); }
.verdict.bad { background: var(--wrong-ground); color: var(--wrong); }
.entries { width: 100%; border-collapse: collapse; font-size: 13.5px; }
.entries td { padding: 6px 12px 6px 0; vertical-align: top; overflow-wrap: anywhere; }
.entries tr + tr td { border-top: 1px solid var(--line); }
.entries td:first-child { white-space: nowrap; font-variant-numeric: tabular-nums; color: var(--muted); }
.chart rect { fill: var(--tuned); } .chart rect.over { fill: var(--second); }
.chart line.limit { stroke: var(--wrong); stroke-dasharray: 4 3; }
.seen { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 16px; }
.seen img { display: block; width: 100%; aspect-ratio: 1; border-radius: 6px; background: var(--ground); }
.seen .said { margin: 10px 0 0; font: 12.5px/1.5 ui-monospace, "Liberation Mono", monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; max-height: 220px; overflow-y: auto; color: var(--muted); }
.seen mark { background: var(--right-ground); color: var(--right); border-radius: 3px; padding: 1px 0; }
summary { cursor: pointer; }
"""


def build_page(config: RunConfig, processing: Processing, dataset: PreparedDataset, report: DatasetReport) -> str:
    """Build the page.

    Args:
        config: names the run and the picture folder.
        processing: the checkpoint's; shows pictures as its vision tower sees them.
        dataset: samples for the grid.
        report: the facts.
    """
    folder = PictureFolder(root=config.dataset_dir, name=config.dataset.images)
    verdict = el("span", "Accepted", class_="verdict ok")
    if not report.accepted:
        verdict = el("span", f"Refused: {report.refused_count:,} entries", class_="verdict bad")
    return page(
        f"Dataset of {config.run.name}",
        el("style", Html(_STYLE)),
        el(
            "header",
            el("p", "Dataset report", class_="kicker"),
            el("h1", config.run.name),
            el("p", f"{report.file} in {config.dataset.source}, format {report.format}", class_="muted"),
            verdict,
            class_="top",
        ),
        _refused(report),
        _facts(report),
        _histogram(report),
        _notes(report),
        _grid(dataset, folder, processing, report.lengths.max_length),
    )


def _refused(report: DatasetReport) -> Html | None:
    if report.accepted:
        return None
    return el(
        "section",
        el("h2", "What cannot be trained on"),
        el("div", _entries(report.refused[:_SHOWN_REFUSED], report.refused_count), class_="card"),
    )


def _entries(told: Sequence[Told], count: int) -> Html:
    rows = (el("tr", el("td", entry.where), el("td", entry.message)) for entry in told)
    more = el("p", f"and {count - len(told):,} more", class_="muted small") if count > len(told) else None
    return el("div", el("table", rows, class_="entries"), more)


def _facts(report: DatasetReport) -> Html:
    pictures, lengths = report.pictures, report.lengths
    sizes = "none"
    if pictures.smallest_px and pictures.largest_px:
        sizes = f"{_by(pictures.smallest_px)} to {_by(pictures.largest_px)} px"
    shape = "padded to a square" if pictures.aspect_ratio == "pad" else "cut to a square"
    return el(
        "section",
        el("h2", "What is in it"),
        el(
            "div",
            definition_list(
                (
                    ("Training", _side(report.train)),
                    ("Held out", _side(report.validation)),
                    ("Pictures", f"{pictures.files:,} files, {pictures.different:,} different ones"),
                    ("Picture sizes", sizes),
                    ("As the model sees them", f"{shape}, {pictures.tokens_each:,} tokens each"),
                    ("Learned tokens, an epoch", f"{report.train.supervised_tokens:,}"),
                    ("Sample length", f"median {lengths.median:,.0f}, longest {lengths.longest:,} tokens"),
                    ("Cut off", f"{lengths.overlong:,} of {report.train.samples + report.validation.samples:,} "
                                f"samples, at {lengths.max_length:,} tokens"),
                )
            ),
            class_="card",
        ),
    )  # fmt: skip


def _side(side: Side) -> str:
    return f"{side.samples:,} samples, {side.pairs:,} pairs, {side.pictures:,} pictures"


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]:,} x {size[1]:,}"


def _histogram(report: DatasetReport) -> Html | None:
    bars = report.lengths.histogram
    if not bars:
        return None
    return el(
        "section",
        el("h2", "Sample lengths in tokens, image tokens included"),
        el("div", _bar_chart(bars, report.lengths.max_length), class_="card"),
    )


def _bar_chart(bars: Sequence[Bar], limit: int) -> Html:
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
            el("title", f"{bar.from_tokens:,} to {bar.to_tokens - 1:,} tokens: {bar.samples:,} samples"),
            x=f"{place(bar.from_tokens):.1f}", y=f"{floor - height:.1f}", height=f"{height:.1f}",
            width=f"{max(1.0, (bar.to_tokens - bar.from_tokens) * x_scale - 2):.1f}",
            class_="over" if bar.from_tokens > limit else None,
        )  # fmt: skip

    limit_line = None
    if begin <= limit < end:
        x = f"{place(limit):.1f}"
        limit_line = el(
            "line", el("title", f"training.maxLength {limit:,}"), x1=x, x2=x, y1=8, y2=floor, class_="limit"
        )
    return el(
        "svg",
        el("title", f"Histogram of sample lengths, {begin:,} to {end - 1:,} tokens"),
        (draw(bar) for bar in bars if bar.samples),
        el("line", x1=_MARGIN, x2=_CHART_WIDTH - _MARGIN, y1=floor, y2=floor, class_="grid"),
        limit_line,
        el("text", f"{begin:,}", x=_MARGIN, y=_CHART_HEIGHT - 6, class_="axis"),
        el("text", f"{end - 1:,}", x=_CHART_WIDTH - _MARGIN, y=_CHART_HEIGHT - 6, class_="axis end"),
        el("text", f"{highest:,} samples at most", x=_CHART_WIDTH - _MARGIN, y=12, class_="axis end"),
        viewBox=f"0 0 {_CHART_WIDTH} {_CHART_HEIGHT}", role="img", class_="chart",
    )  # fmt: skip


def _notes(report: DatasetReport) -> Html | None:
    if not report.notes:
        return None
    return el(
        "section",
        el("h2", "Worth knowing"),
        el(
            "div",
            (
                el("details", el("summary", f"{note.title}: {note.count:,}"), _entries(note.examples, note.count))
                for note in report.notes
            ),
            class_="card",
        ),
    )


def _grid(dataset: PreparedDataset, folder: PictureFolder, processing: Processing, max_length: int) -> Html | None:
    labelled = [("training", item) for item in dataset.train] + [("held out", item) for item in dataset.validation]
    chosen = _spread(labelled, GRID_SAMPLES)
    if not chosen:
        return None
    return el(
        "section",
        el("h2", "Samples as the model sees them"),
        el(
            "p",
            "What is marked is learned, what is struck out is cut off; everything else is only read.",
            class_="muted",
        ),
        el("div", (_card(side, item, folder, processing, max_length) for side, item in chosen), class_="seen"),
    )


def _card(side: str, item: Checked, folder: PictureFolder, processing: Processing, max_length: int) -> Html:
    sample = item.sample
    pictures = []
    for relative in sample.images:
        try:
            seen = visible_image(open_image(folder.resolve(relative)), processing)
        except PictureError as error:
            # It was whole a moment ago: the volume changes under our feet, and training will say so.
            logger.warning("picture %s %s", relative, error)
            continue
        pictures.append(el("img", src=thumbnail(seen, max_px=processing.image_size_px), alt=relative))
    about = f"{sample.source} · {side} · {item.num_tokens:,} tokens, {item.num_supervised:,} learned"
    if item.num_tokens > max_length:
        about += f", cut off after {max_length:,}"
    return el("article", pictures, el("p", about, class_="muted small"), _conversation(item), class_="card")


def _conversation(item: Checked) -> Html:
    """The conversation with what is learned marked and what is cut off struck out."""
    conversation = render(item.sample)
    kept = item.num_characters
    parts: list[str | Html] = []
    position = 0
    for begin, end in conversation.supervised:
        if begin >= kept:
            break
        parts.append(_shorten(conversation.text[position:begin]))
        parts.append(el("mark", _shorten(conversation.text[begin : min(end, kept)])))
        position = min(end, kept)
    parts.append(_shorten(conversation.text[position:kept]))
    lost = el("s", _shorten(conversation.text[kept:])) if kept < len(conversation.text) else None
    return el("p", parts, lost, class_="said")


def _shorten(text: str) -> str:
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    half = _SHOWN_CHARACTERS // 2
    return f"{text[:half]} […] {text[-half:]}"


def _spread(items: Sequence[tuple[str, Checked]], count: int) -> list[tuple[str, Checked]]:
    """At most ``count`` items, evenly spread, each picture once while there are enough of them."""
    first_of_each: dict[str, tuple[str, Checked]] = {}
    for side, item in items:
        first_of_each.setdefault(item.group, (side, item))
    candidates = list(first_of_each.values())
    if len(candidates) <= count:
        return candidates
    step = (len(candidates) - 1) / (count - 1)
    return [candidates[round(index * step)] for index in range(count)]
