"""The part of report.html about training: its curves, what was answered meanwhile, and the hardest samples."""

from collections.abc import Sequence
from dataclasses import dataclass

from llava_api.text import cut
from llava_trainer.data.questions import Question
from llava_trainer.data.samples import Sample
from llava_trainer.evaluation.page_answers import LoadImage, show_image, show_text, side_by_side
from llava_trainer.html import Curve, Html, definition_list, el, line_chart
from llava_trainer.training.curve import CurvePoint
from llava_trainer.training.hardest import SampleLoss

MAX_STEPS_SHOWN = 20
"""Validations whose answers are shown, the first and the last among them; the curve's file has all."""
MAX_HARDEST_SHOWN = 24
_MAX_IMAGES = 3
"""Images of one sample that are shown."""
_MAX_CHARS = 1000
"""Of one text."""


@dataclass(frozen=True, kw_only=True)
class HardSample:
    """A training sample, and what its loss was."""

    sample: Sample
    place: str
    """File of the run's volume in which it stands, and line."""
    found: SampleLoss


@dataclass(frozen=True, kw_only=True)
class Hardest:
    """The training samples with the highest loss, the hardest first."""

    epoch: int
    """Counted from 1, of ``epochs``."""
    epochs: int
    seen: int
    """Samples that they are the hardest of, of ``num_samples``."""
    num_samples: int
    samples: Sequence[HardSample]


def show_curves(curve: Sequence[CurvePoint]) -> Html | None:
    """Numbers over the steps; None without a curve."""
    if not curve:
        return None
    drawn = [
        ("Loss per supervised token", "Loss", "curve", "loss"),
        ("Held-out loss per supervised token", "Held-out loss", "curve", "validation_loss"),
        ("Share of held-out answers that are exact", "Exact answers", "second", "validation_exact"),
        ("Learning rate of the adapter", "Learning rate", "second", "learning_rate"),
        ("Real tokens a second", "Tokens a second", "second", "tokens_per_second"),
        ("Share of the time that was spent waiting for data", "Waiting for data", "second", "data_wait_ratio"),
        ("Model FLOPs utilisation (MFU)", "MFU", "second", "mfu"),
    ]
    cards = [_draw(curve, title, label, style, field) for title, label, style, field in drawn]
    return el("section", el("h2", "Training"), el("div", cards, class_="columns"))


def _draw(points: Sequence[CurvePoint], title: str, label: str, style: str, field: str) -> Html | None:
    """One number over the steps at which it is known; nothing where it never is."""
    known = [(point.step, value) for point in points if (value := getattr(point, field)) is not None]
    if not known:
        return None
    steps, values = zip(*known, strict=True)
    chart = line_chart(Curve(label=label, xs=list(steps), ys=list(values)), x_label="step", style=style)
    return el("div", el("h3", title), chart, class_="card")


def show_answers(curve: Sequence[CurvePoint], asked: Sequence[Question], load_image: LoadImage) -> Html | None:
    """What was answered to a few held-out questions at each validation; None where none was asked."""
    rows = [
        (point.step, point.validation_answers)
        for point in curve
        if point.validation_answers is not None and len(point.validation_answers) == len(asked)
    ]
    if not asked or not rows:
        return None
    note = "Greedy, by the model as it was after each step. These samples are held out: nothing is learned from them."
    if len(rows) > MAX_STEPS_SHOWN:
        note += f" {MAX_STEPS_SHOWN} of {len(rows):,} validations are shown."
    table = el(
        "table",
        el("tr", el("th", "Step"), (el("th", _asked(question, load_image)) for question in asked)),
        (
            el("tr", el("th", f"{step:,}"), (el("td", _short(answer)) for answer in answers))
            for step, answers in thin_out(rows, MAX_STEPS_SHOWN)
        ),
        class_="course",
    )
    return el(
        "section",
        el("h2", "Answers while it trained"),
        el("p", note, class_="muted small"),
        el("div", table, class_="card wide"),
    )


def thin_out(rows: Sequence[tuple[int, tuple[str, ...]]], most: int) -> list[tuple[int, tuple[str, ...]]]:
    """At most so many of the rows, evenly, the first and the last among them."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(number * (len(rows) - 1) / (most - 1))] for number in range(most)]


def _asked(question: Question, load_image: LoadImage) -> Html:
    return el(
        "div",
        side_by_side(show_image(path, load_image) for path in question.images[-_MAX_IMAGES:]),
        el("div", _short(question.text)),
        el("div", "expected: ", _short(question.expected or ""), class_="muted small"),
    )


def show_hardest(hardest: Hardest | None, load_image: LoadImage) -> Html | None:
    """The training samples with the highest loss; None where it is not known."""
    if hardest is None or not hardest.samples:
        return None
    note = (
        f"What the model found least likely when it learned from it in epoch {hardest.epoch} of {hardest.epochs}, by "
        "loss per supervised token: wrong labels, unreadable pictures and answers that nobody could guess come first."
    )
    if hardest.epochs == 1:
        note += " With a single epoch the first steps' samples met a model that had learned little yet."
    if hardest.seen < hardest.num_samples:
        note += f" Known of {hardest.seen:,} of {hardest.num_samples:,} samples."
    return el(
        "section",
        el("h2", "Training samples with the highest loss"),
        el("p", note, class_="muted small"),
        (_hard_sample(one, load_image) for one in hardest.samples[:MAX_HARDEST_SHOWN]),
    )


def _hard_sample(one: HardSample, load_image: LoadImage) -> Html:
    sample, found = one.sample, one.found
    shown = side_by_side(show_image(path, load_image) for path in sample.images[:_MAX_IMAGES])
    facts = [
        ("Loss", f"{found.loss:.3f} a token, {found.tokens:,} tokens"),
        ("Sample", f"{sample.id} · {sample.source.file}, entry {sample.source.index:,}"),
        ("Checked as", one.place),
        ("Learned from", f"step {found.step:,}"),
    ]
    turns = [
        el("p", _short(turn.text), class_="question") if turn.role == "user" else el(
            "div", el("div", "learned", class_="who"), el("div", _short(turn.text), class_="said"), class_="answer"
        )
        for turn in sample.turns
    ]  # fmt: skip
    return el(
        "article",
        shown,
        el("div", turns, definition_list(facts)),
        class_="card prompt" if shown else "card prompt plain",
    )


def _short(text: str) -> Html:
    return show_text(cut(text, max_chars=_MAX_CHARS))
