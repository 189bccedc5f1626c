"""report.html: what evaluation found, for a person to look at. One file that loads nothing.

Values in, markup out; images come through ``load_image``, so that nothing here knows where they lie.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from PIL import Image

from llava_trainer.data.dataset_report import DatasetReport, Side
from llava_trainer.evaluation.scores import Answer, Metrics, ModelScore, SplitScore
from llava_trainer.html import (
    Curve,
    Html,
    definition_list,
    el,
    join,
    line_chart,
    page,
    script_asset,
    thumbnail,
)
from llava_trainer.training.curve import CurvePoint

MAX_QUESTIONS_SHOWN = 200
"""Questions of each split that are shown; images make a report heavy. All of them are in answers.jsonl."""

_SPLIT_TITLES = {"validation": "Held-out questions", "train": "Training questions"}
_SPLIT_NOTES = {
    "validation": "Set aside from training.",
    "train": "Seen in training: how much was learned by heart.",
}
_OVERLAP = "overlap"
"""Kind of prepare's note about held-out questions that training asks too."""
_METRIC_TITLES = {"exact_match": "exact match"}


@dataclass(frozen=True, kw_only=True)
class PageContent:
    """Everything that the report shows."""

    metrics: Metrics
    dataset: DatasetReport
    answers: Sequence[Answer]
    curve: Sequence[CurvePoint]
    """Logged steps of training; may be empty."""
    settings: Sequence[tuple[str, str]]
    """Names and values, in order."""
    load_image: Callable[[str], Image.Image]
    """Opens an image by its path relative to the dataset's image folder."""


def build_evaluation_page(report: PageContent) -> str:
    """The page."""
    metrics = report.metrics
    prompts = [answer for answer in report.answers if answer.split == "prompt"]
    return page(
        f"{metrics.run.name}: base against tuned",
        _top(metrics),
        _scores(metrics.scores, report.dataset),
        _training(report.curve),
        _prompts(prompts, report.load_image),
        _questions(report),
        _facts("Dataset", _dataset(report.dataset)),
        _facts("Settings", report.settings),
        _facts("This evaluation", _circumstances(metrics)),
        script=script_asset("evaluation/page.js"),
    )


def _top(metrics: Metrics) -> Html:
    run = metrics.run
    return el(
        "header",
        el("p", "LLaVA fine-tune · base against tuned", class_="kicker"),
        el("h1", run.name),
        el(
            "p",
            f"Namespace {run.namespace} · evaluation attempt {run.attempt} · finished {metrics.finished_at} · "
            f"run {run.uid}",
            class_="muted small",
        ),
        class_="top",
    )


def _scores(scores: Iterable[SplitScore], dataset: DatasetReport) -> Html:
    cards = [_score_card(score, _caution(score, dataset)) for score in scores]
    if not cards:
        cards = [el("div", "No question was scored: the held-out set is empty.", class_="card muted")]
    return el("section", cards, class_="columns", aria_label="Scores")


def _caution(score: SplitScore, dataset: DatasetReport) -> Html | None:
    overlap = sum(note.count for note in dataset.notes if note.kind == _OVERLAP)
    if score.split != "validation" or overlap == 0:
        return None
    text = f"{overlap:,} of them are asked in training as well, about the same picture."
    return el("p", text, class_="caution small")


def _score_card(score: SplitScore, caution: Html | None) -> Html:
    return el(
        "div",
        el("h3", f"{_SPLIT_TITLES[score.split]} · {_METRIC_TITLES.get(score.metric, score.metric)}"),
        el(
            "div",
            el("span", _percent(score.base.value), class_="figure base", title="base"),
            el("span", "→", class_="muted", aria_hidden="true"),
            el("span", _percent(score.tuned.value), class_="figure tuned", title="tuned"),
            _gain(score.gain),
            class_="versus",
        ),
        el(
            "div",
            _bar("base", score.base, score.samples),
            _bar("tuned", score.tuned, score.samples),
            class_="bars",
        ),
        el(
            "p",
            f"{score.samples:,} questions. {_SPLIT_NOTES[score.split]} Lines: 95\u202f% confidence interval.",
            class_="muted small",
            style="margin: 12px 0 0",
        ),
        caution,
        class_="card",
    )


def _gain(gain: float) -> Html:
    direction = "up" if gain > 0 else "down" if gain < 0 else "same"
    return el("span", f"{gain * 100:+.1f} points", class_=f"gain {direction}")


def _bar(model: Literal["base", "tuned"], score: ModelScore, samples: int) -> Html:
    interval = f"left: {score.low:.2%}; width: {score.high - score.low:.2%}"
    return join(
        el("span", model),
        el(
            "div",
            el("div", class_=f"fill {model}", style=f"width: {score.value:.2%}"),
            el("div", class_="range", style=interval),
            class_="track",
            title=f"95\u202f% confidence interval {_percent(score.low)} to {_percent(score.high)}",
        ),
        el("b", f"{score.right:,} of {samples:,} right"),
    )


def _training(curve: Sequence[CurvePoint]) -> Html | None:
    if not curve:
        return None
    steps = [entry.step for entry in curve]
    loss = Curve(label="Loss", xs=steps, ys=[entry.loss for entry in curve])
    rate = Curve(label="Learning rate", xs=steps, ys=[entry.learning_rate for entry in curve])
    return el(
        "section",
        el("h2", "Training"),
        el(
            "div",
            el("div", el("h3", "Loss per supervised token"), line_chart(loss, x_label="step"), class_="card"),
            el(
                "div",
                el("h3", "Learning rate of the adapter"),
                line_chart(rate, x_label="step", style="second"),
                class_="card",
            ),
            class_="columns",
        ),
    )


def _prompts(prompts: Sequence[Answer], load_image: Callable[[str], Image.Image]) -> Html | None:
    if not prompts:
        return None
    return el("section", el("h2", "Prompts"), (_prompt(answer, load_image) for answer in prompts))


def _prompt(answer: Answer, load_image: Callable[[str], Image.Image]) -> Html:
    shown = _side_by_side(_image(image, load_image, max_px=400) for image in answer.images)
    said = el(
        "div",
        el("p", answer.question, class_="question"),
        el("div", _said("base", answer.base), _said("tuned", answer.tuned), class_="columns"),
    )
    return el("article", shown, said, class_="card prompt" if shown else "card prompt plain")


def _side_by_side(images: Iterable[Html]) -> Html | None:
    shown = list(images)
    return shown[0] if len(shown) == 1 else el("div", shown) if shown else None


def _said(model: Literal["base", "tuned"], text: str) -> Html:
    return el("div", el("div", model, class_="who"), el("div", _text(text), class_="said"), class_=f"answer {model}")


def _questions(report: PageContent) -> Html | None:
    scored = [answer for answer in report.answers if answer.expected is not None]
    if not scored:
        return None
    sections = [
        _split(split, list(answers), report.load_image)
        for split, answers in groupby(scored, key=lambda answer: answer.split)
    ]
    shown = sum(min(score.samples, MAX_QUESTIONS_SHOWN) for score in report.metrics.scores)
    return join(
        el("h2", "Every question and answer"),
        _filters(scored, shown),
        sections,
    )


def _filters(answers: Sequence[Answer], shown: int) -> Html:
    kinds = {"all": "All", "improved": "Improved", "worse": "Worse", "right": "Tuned right", "wrong": "Tuned wrong"}
    return el(
        "div",
        (
            el("button", label, type="button", data_show=kind, aria_pressed="true" if kind == "all" else "false")
            for kind, label in kinds.items()
        ),
        el("input", type="search", placeholder="Search questions, answers, picture names", aria_label="Search"),
        el("span", el("span", shown, data_count=True), f" of {shown} shown", class_="muted small", role="status"),
        class_="filters",
        hidden=True,
    )


def _split(split: str, answers: Sequence[Answer], load_image: Callable[[str], Image.Image]) -> Html:
    visible = answers[:MAX_QUESTIONS_SHOWN]
    samples = [list(rows) for _, rows in groupby(visible, key=lambda answer: answer.sample)]
    note = f"{len(answers):,} questions about {len({answer.sample for answer in answers}):,} samples."
    if len(visible) < len(answers):
        note += f" The first {len(visible)} are shown here; answers.jsonl beside this file holds all of them."
    return el(
        "section",
        el("h3", _SPLIT_TITLES[split], style="margin-top: 20px"),
        el("p", note, class_="muted small"),
        el("div", _heads(), (_sample(rows, load_image) for rows in samples), class_="card samples"),
    )


def _heads() -> Html:
    names = ("Question", "Expected", "Base", "Tuned")
    return el(
        "div",
        el("span", "Picture"),
        el("table", el("tr", (el("th", name) for name in names)), class_="answers"),
        class_="heads",
        aria_hidden="true",
    )


def _sample(rows: Sequence[Answer], load_image: Callable[[str], Image.Image]) -> Html:
    paths = dict.fromkeys(path for answer in rows for path in answer.images)
    shown = _side_by_side(_image(path, load_image) for path in paths) or el("span", "no picture", class_="empty small")
    return el("article", shown, el("table", (_row(answer) for answer in rows), class_="answers"), class_="sample")


def _row(answer: Answer) -> Html:
    return el(
        "tr",
        el("td", answer.question),
        el("td", _text(answer.expected or "")),
        _judged("base", answer.base, answer.base_right),
        _judged("tuned", answer.tuned, answer.tuned_right),
        data_kind=" ".join(_kinds(answer)),
    )


def _kinds(answer: Answer) -> list[str]:
    kinds = ["right" if answer.tuned_right else "wrong"]
    if answer.base_right != answer.tuned_right:
        kinds.append("improved" if answer.tuned_right else "worse")
    return kinds


def _judged(model: str, text: str, right: bool | None) -> Html:
    sign, word = ("✓", "right") if right else ("✗", "wrong")
    mark = join(
        el("span", sign, class_="mark", title=f"{model} is {word}", aria_hidden="true"),
        el("span", f"{model}, {word}: ", class_="only-spoken"),
    )
    return el("td", mark, _text(text), class_="ok" if right else "not")


def _image(path: str, load_image: Callable[[str], Image.Image], max_px: int = 240) -> Html:
    source = thumbnail(load_image(path), max_px=max_px)
    return el("figure", el("img", src=source, alt="", loading="lazy"), el("figcaption", path), class_="picture")


def _text(text: str) -> Html:
    return join(text) if text.strip() else el("span", "(nothing)", class_="empty")


def _facts(title: str, rows: Sequence[tuple[str, str]]) -> Html | None:
    if not rows:
        return None
    return el("section", el("h2", title), el("div", definition_list(rows), class_="card"))


def _dataset(dataset: DatasetReport) -> list[tuple[str, str]]:
    lengths = dataset.lengths
    return [
        ("Training", _side(dataset.train)),
        ("Held out", _side(dataset.validation)),
        ("Pictures", f"{dataset.pictures.files:,}, {dataset.pictures.tokens_each:,} tokens each"),
        ("Learned tokens, an epoch", f"{dataset.train.supervised_tokens:,}"),
        ("Sample length", f"median {lengths.median:,.0f}, longest {lengths.longest:,} tokens"),
        *((note.title[:1].upper() + note.title[1:], f"{note.count:,}") for note in dataset.notes),
    ]


def _side(side: Side) -> str:
    return f"{side.samples:,} samples, {side.pairs:,} questions"


def _circumstances(metrics: Metrics) -> list[tuple[str, str]]:
    return [
        ("Device", f"{metrics.device}, {metrics.dtype}"),
        *((f"Time: {_words(phase).lower()}", f"{seconds:,.1f} s") for phase, seconds in metrics.seconds.items()),
        *((name, version) for name, version in metrics.versions.items()),
    ]


def _percent(value: float) -> str:
    return f"{value * 100:.1f}\u202f%"


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize()
