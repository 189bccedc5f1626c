"""report.html: what evaluation found, for a person to look at. One file that loads nothing.

Values in, markup out; images come through ``load_image``, so that nothing here knows where they lie.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llava_trainer.data.dataset_report import DatasetReport, Side
from llava_trainer.data.questions import Question
from llava_trainer.evaluation.page_answers import SPLIT_TITLES, LoadImage, Model, show_prompts, show_questions
from llava_trainer.evaluation.page_training import Hardest, show_answers, show_curves, show_hardest
from llava_trainer.evaluation.scores import Answer, Metrics, ModelScore, SplitScore
from llava_trainer.html import Html, definition_list, el, join, page, script_asset
from llava_trainer.training.curve import CurvePoint

_SPLIT_NOTES = {
    "validation": "Set aside from training.",
    "train": "Seen in training: how much was learned by heart.",
    "retention": "Of another dataset: how much was forgotten.",
}
_GIVEN = " Base: with the adapter that the run went on from; bare: without it."
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
    asked: Sequence[Question] = ()
    """What was asked at each validation, in the order of the curve's answers."""
    hardest: Hardest | None = None
    """None: it is not known."""
    settings: Sequence[tuple[str, str]]
    """Names and values, in order."""
    load_image: LoadImage


def build_evaluation_page(report: PageContent) -> str:
    """The page."""
    metrics = report.metrics
    prompts = [answer for answer in report.answers if answer.split == "prompt"]
    return page(
        f"{metrics.run.name}: base against tuned",
        _top(metrics),
        _scores(metrics.scores, report.dataset),
        show_curves(report.curve),
        show_answers(report.curve, report.asked, report.load_image),
        show_prompts(prompts, report.load_image),
        show_questions(report.answers, metrics.scores, report.load_image),
        show_hardest(report.hardest, report.load_image),
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
    if score.split != "validation":
        return None
    overlap = sum(note.count for note in dataset.notes if note.kind == _OVERLAP)
    told = []
    if overlap:
        told.append(f"{overlap:,} of them are asked in training as well, about the same picture.")
    if score.samples_shared:
        told.append(
            f"{score.samples_shared:,} of them are of groups that training has samples of, too "
            f"({dataset.shared.groups:,} of {dataset.validation.groups:,}): this score flatters."
        )
    return el("p", " ".join(told), class_="caution small") if told else None


def _score_card(score: SplitScore, caution: Html | None) -> Html:
    return el(
        "div",
        el("h3", f"{SPLIT_TITLES[score.split]} · {_METRIC_TITLES.get(score.metric, score.metric)}"),
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
            _bar("bare", score.bare, score.samples) if score.bare else None,
            _bar("base", score.base, score.samples),
            _bar("tuned", score.tuned, score.samples),
            class_="bars",
        ),
        el(
            "p",
            f"{score.samples:,} questions. {_SPLIT_NOTES[score.split]} Lines: 95\u202f% confidence interval."
            + (_GIVEN if score.bare else ""),
            class_="muted small",
            style="margin: 12px 0 0",
        ),
        caution,
        class_="card",
    )


def _gain(gain: float) -> Html:
    direction = "up" if gain > 0 else "down" if gain < 0 else "same"
    return el("span", f"{gain * 100:+.1f} points", class_=f"gain {direction}")


def _bar(model: Model, score: ModelScore, samples: int) -> Html:
    interval = f"left: {score.low:.2%}; width: {score.high - score.low:.2%}"
    return join(
        el("span", model),
        el(
            "div",
            el("div", class_=f"fill {'base' if model == 'bare' else model}", style=f"width: {score.value:.2%}"),
            el("div", class_="range", style=interval),
            class_="track",
            title=f"95\u202f% confidence interval {_percent(score.low)} to {_percent(score.high)}",
        ),
        el("b", f"{score.right:,} of {samples:,} right"),
    )


def _facts(title: str, rows: Sequence[tuple[str, str]]) -> Html | None:
    if not rows:
        return None
    return el("section", el("h2", title), el("div", definition_list(rows), class_="card"))


def _dataset(dataset: DatasetReport) -> list[tuple[str, str]]:
    lengths = dataset.lengths
    return [
        ("Training", _side(dataset.train)),
        ("Held out", _side(dataset.validation)),
        *([("To select a step by", _side(dataset.selection))] if dataset.selection else []),
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
