"""The part of the report about training: its curves, what was answered meanwhile, and the hardest samples."""

from collections.abc import Sequence
from dataclasses import dataclass

from llava_api.text import cut
from llava_trainer.data.questions import Question
from llava_trainer.data.samples import Sample
from llava_trainer.evaluation.album import Album, Shown
from llava_trainer.pages.charts import Curve, LineChart, place_lines
from llava_trainer.training.curve import CurvePoint
from llava_trainer.training.hardest import SampleLoss

MAX_STEPS_SHOWN = 20
"""Validations whose answers are shown, the first and the last among them; the curve's file has all."""
_MAX_TURNS = 12
"""Of one sample that are shown."""
_CHARTS: Sequence[tuple[str, Sequence[tuple[str, str, str]]]] = (
    (
        "Loss per supervised token",
        (("Loss", "curve", "loss"), ("Held-out loss", "second", "validation_loss")),
    ),
    ("Share of held-out answers that are exact", (("Exact answers", "second", "validation_exact"),)),
    ("Learning rate of the adapter", (("Learning rate", "second", "learning_rate"),)),
    ("Real tokens a second", (("Tokens a second", "second", "tokens_per_second"),)),
    ("Share of the time that was spent waiting for data", (("Waiting for data", "second", "data_wait_ratio"),)),
    ("Model FLOPs utilisation (MFU)", (("MFU", "second", "mfu"),)),
)
"""Titles of charts, and label, style and field of each line."""


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


@dataclass(frozen=True, kw_only=True)
class TitledChart:
    """A chart under its title; None where none of its points is a number."""

    title: str
    chart: LineChart | None


@dataclass(frozen=True, kw_only=True)
class Course:
    """What was answered to a few held-out questions after each of some steps."""

    questions: tuple["AskedThen", ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]
    """Step, and an answer to each question."""
    num_validations: int


@dataclass(frozen=True, kw_only=True)
class AskedThen:
    """One of its questions."""

    text: str
    expected: str
    images: tuple[Shown, ...]


@dataclass(frozen=True, kw_only=True)
class ShownSample:
    """One of the hardest samples."""

    images: tuple[Shown, ...]
    turns: tuple[tuple[bool, str], ...]
    """Whether it is learned, and the text."""
    num_further_turns: int
    facts: tuple[tuple[str, str], ...]


def draw_curves(curve: Sequence[CurvePoint]) -> tuple[TitledChart, ...]:
    """Numbers over the steps at which they are known; no chart of what never is."""
    return tuple(
        TitledChart(title=title, chart=place_lines(drawn, x_label="step"))
        for title, lines in _CHARTS
        if (drawn := [found for line in lines if (found := _curve(curve, *line)) is not None])
    )


def _curve(points: Sequence[CurvePoint], label: str, style: str, field: str) -> Curve | None:
    known = [(point.step, value) for point in points if (value := getattr(point, field)) is not None]
    if not known:
        return None
    steps, values = zip(*known, strict=True)
    return Curve(label=label, xs=list(steps), ys=list(values), style=style)


def list_course(
    curve: Sequence[CurvePoint], asked: Sequence[Question], album: Album, *, max_px: int, max_chars: int
) -> Course | None:
    """What was answered to a few held-out questions at each validation; None where none was asked."""
    rows = [
        (point.step, point.validation_answers)
        for point in curve
        if point.validation_answers is not None and len(point.validation_answers) == len(asked)
    ]
    if not asked or not rows:
        return None
    return Course(
        questions=tuple(
            AskedThen(
                text=cut(question.text, max_chars=max_chars),
                expected=cut(question.expected or "", max_chars=max_chars),
                images=album.show(question.images, max_px=max_px),
            )
            for question in asked
        ),
        rows=tuple(
            (step, tuple(cut(answer, max_chars=max_chars) for answer in answers))
            for step, answers in thin_out(rows, MAX_STEPS_SHOWN)
        ),
        num_validations=len(rows),
    )


def thin_out(rows: Sequence[tuple[int, tuple[str, ...]]], most: int) -> list[tuple[int, tuple[str, ...]]]:
    """At most so many of the rows, evenly, the first and the last among them."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(number * (len(rows) - 1) / (most - 1))] for number in range(most)]


def list_hardest(hardest: Hardest, album: Album, *, most: int, max_px: int, max_chars: int) -> tuple[ShownSample, ...]:
    """The hardest samples as the page shows them."""
    return tuple(_show_sample(one, album, max_px, max_chars) for one in hardest.samples[:most])


def _show_sample(one: HardSample, album: Album, max_px: int, max_chars: int) -> ShownSample:
    sample, found = one.sample, one.found
    return ShownSample(
        images=album.show(sample.images, max_px=max_px),
        turns=tuple((turn.role != "user", cut(turn.text, max_chars=max_chars)) for turn in sample.turns[:_MAX_TURNS]),
        num_further_turns=max(0, len(sample.turns) - _MAX_TURNS),
        facts=(
            ("Loss", f"{found.loss:.3f} a token, {found.tokens:,} tokens"),
            ("Sample", f"{cut(sample.id, max_chars=max_chars)} · {sample.source.file}, entry {sample.source.index:,}"),
            ("Checked as", one.place),
            ("Learned from", f"step {found.step:,}"),
        ),
    )
