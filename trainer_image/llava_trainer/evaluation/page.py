"""report.html: what evaluation found, for a person to look at. One file that loads nothing, and of bounded size.

What it says and how it looks is in ``pages/templates/evaluation.html``; this chooses what is shown, and of how much.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llava_api.text import cut
from llava_trainer.data.dataset_report import DatasetReport
from llava_trainer.data.questions import Question
from llava_trainer.evaluation.album import Album, LoadImage, Shown
from llava_trainer.evaluation.examples import Examples, Judge, Judged, choose_examples, judge_questions
from llava_trainer.evaluation.page_training import Hardest, draw_curves, list_course, list_hardest
from llava_trainer.evaluation.pairs import QuestionAnswers
from llava_trainer.evaluation.rows import Model, QuestionSet, Variant
from llava_trainer.evaluation.scores import Metrics, SplitScore
from llava_trainer.evaluation.serving import Served
from llava_trainer.evaluation.summary import METRIC_TITLES
from llava_trainer.pages.rendering import render_html, render_markdown
from llava_trainer.pages.word_diff import Piece, diff_words
from llava_trainer.training.curve import CurvePoint

MAX_BYTES = 5_000_000
"""Of the page, whatever the size of the set."""
DATASET_REPORT = "../data/report.html"
"""Where the dataset report lies as seen from the page, on the run's volume and where both folders are copied to."""
_SETS: Sequence[tuple[QuestionSet, str]] = (
    ("validation", "Held-out questions"),
    ("retention", "Questions of the retention set"),
    ("train", "Training questions"),
)
_ASKED: Sequence[tuple[Model, Variant, str]] = (
    ("bare", "asked", "bare"),
    ("base", "asked", "base"),
    ("base", "instructed", "base, instructed"),
    ("tuned", "asked", "tuned"),
    ("tuned", "instructed", "tuned, instructed"),
    ("base", "alone", "base, alone"),
    ("tuned", "alone", "tuned, alone"),
)
_MAX_REFERENCES = 5
"""Of one question that are shown."""
_OVERLAP = "overlap"
"""Kind of prepare's note about held-out questions that training asks too."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much is shown."""

    most_changed: int
    """Regressions of a set, and as many gains."""
    most_drawn: int
    """Further questions of a set."""
    hardest: int
    image_px: int
    prompt_px: int
    max_chars: int
    """Of one text."""


LIMITS = (
    Limits(most_changed=25, most_drawn=60, hardest=24, image_px=240, prompt_px=400, max_chars=1000),
    Limits(most_changed=15, most_drawn=20, hardest=12, image_px=200, prompt_px=320, max_chars=500),
    Limits(most_changed=5, most_drawn=5, hardest=4, image_px=120, prompt_px=200, max_chars=200),
    Limits(most_changed=2, most_drawn=2, hardest=2, image_px=0, prompt_px=0, max_chars=100),
)
"""Tried one after the other until the page is small enough."""
_IN_MARKDOWN = Limits(most_changed=10, most_drawn=5, hardest=0, image_px=0, prompt_px=0, max_chars=300)


@dataclass(frozen=True, kw_only=True)
class AskedPrompt:
    """A prompt of the spec with its answers."""

    answers: QuestionAnswers
    picture_side: str | None
    """What training has seen of its picture, like ``training has seen this picture``; None without one."""


@dataclass(frozen=True, kw_only=True)
class PageContent:
    """Everything that the report shows."""

    metrics: Metrics
    dataset: DatasetReport
    questions: Sequence[QuestionAnswers]
    """Those that were scored."""
    prompts: Sequence[AskedPrompt] = ()
    curve: Sequence[CurvePoint]
    """Logged steps of training; may be empty."""
    asked: Sequence[Question] = ()
    """What was asked at each validation, in the order of the curve's answers."""
    hardest: Hardest | None = None
    """None: it is not known."""
    settings: Sequence[tuple[str, str]]
    """Names and values, in order."""
    served: Sequence[Served] = ()
    """Places to serve the model from."""
    load_image: LoadImage
    """Of the dataset."""
    load_retention_image: LoadImage | None = None
    """Of the retention set; None where there is none."""
    judges: Mapping[QuestionSet, Judge]
    """Of each set that has scores, by the first of its metrics: of what the first one of all has no say about, another
    one may."""


@dataclass(frozen=True, kw_only=True)
class ShownAnswer:
    """One answer as the page has it."""

    title: str
    """Which model, and how it was asked."""
    model: Model
    pieces: tuple[Piece, ...]
    score: float | None
    is_cut: bool


@dataclass(frozen=True, kw_only=True)
class ShownQuestion:
    """One question as the page has it."""

    text: str
    references: tuple[str, ...]
    answers: tuple[ShownAnswer, ...]
    images: tuple[Shown, ...]
    kinds: str
    """For the filters: right, wrong, improved, worse."""
    place: str
    question_type: str
    picture_side: str | None = None


@dataclass(frozen=True, kw_only=True)
class ShownSet:
    """The questions of one set that are shown."""

    title: str
    examples: Examples
    regressions: tuple[ShownQuestion, ...]
    gains: tuple[ShownQuestion, ...]
    drawn: tuple[ShownQuestion, ...]


def build_evaluation_page(content: PageContent) -> str:
    """The page: as much as fits into MAX_BYTES."""
    albums = _open_albums(content)
    judged = _judge_sets(content)
    page = ""
    for limits in LIMITS:
        page = _render(content, judged, albums, limits)
        if len(page.encode()) <= MAX_BYTES:
            return page
    return page


def _judge_sets(content: PageContent) -> dict[QuestionSet, tuple[Judged, ...]]:
    scores: dict[str, SplitScore] = {score.split: score for score in find_primary(content.metrics)}
    return {
        name: judge_questions(
            [question for question in content.questions if question.set == name],
            content.judges[name],
            base_variant=score.base_variant,
            tuned_variant=score.tuned_variant,
        )
        for name, _ in _SETS
        if (score := scores.get(name)) is not None
    }


def _open_albums(content: PageContent) -> dict[str, Album]:
    """Where the pictures of each set are."""
    album = Album(content.load_image)
    retention = Album(content.load_retention_image) if content.load_retention_image is not None else album
    return {"validation": album, "train": album, "prompt": album, "retention": retention}


def build_evaluation_markdown(content: PageContent) -> str:
    """The same without pictures and curves, for pull requests, chats and terminals."""
    judged = _judge_sets(content)
    albums = _open_albums(content)
    return render_markdown(
        "evaluation.md",
        metrics=content.metrics,
        dataset=content.dataset,
        primary=find_primary(content.metrics),
        metric_titles=METRIC_TITLES,
        prompts=[
            _show(asked.answers, None, albums["prompt"], _IN_MARKDOWN, px=0, side=asked.picture_side)
            for asked in content.prompts
        ],
        sets=[
            _show_set(title, judged[name], content.judges[name], albums[name], _IN_MARKDOWN)
            for name, title in _SETS
            if name in judged
        ],
        settings=content.settings,
        served=content.served,
    )


def _render(
    content: PageContent, judged: Mapping[QuestionSet, Sequence[Judged]], albums: Mapping[str, Album], limits: Limits
) -> str:
    dataset, hardest, album = content.dataset, content.hardest, albums["train"]
    return render_html(
        "evaluation.html",
        metrics=content.metrics,
        dataset=dataset,
        primary=find_primary(content.metrics),
        metric_titles=METRIC_TITLES,
        dataset_report=DATASET_REPORT,
        overlap=sum(note.count for note in dataset.notes if note.kind == _OVERLAP),
        charts=draw_curves(content.curve),
        course=list_course(content.curve, content.asked, album, max_px=limits.image_px, max_chars=limits.max_chars),
        prompts=[
            _show(asked.answers, None, album, limits, px=limits.prompt_px, side=asked.picture_side)
            for asked in content.prompts
        ],
        sets=[
            _show_set(title, judged[name], content.judges[name], albums[name], limits)
            for name, title in _SETS
            if name in judged
        ],
        hardest=hardest,
        hard_samples=()
        if hardest is None
        else list_hardest(hardest, album, most=limits.hardest, max_px=limits.image_px, max_chars=limits.max_chars),
        settings=content.settings,
        served=content.served,
    )


def find_primary(metrics: Metrics) -> list[SplitScore]:
    """The first score of each set."""
    return list({score.split: score for score in reversed(metrics.scores)}.values())[::-1]


def _show_set(title: str, judged: Sequence[Judged], judge: Judge, album: Album, limits: Limits) -> ShownSet:
    examples = choose_examples(judged, most_changed=limits.most_changed, most_drawn=limits.most_drawn)

    def show(chosen: Sequence[Judged]) -> tuple[ShownQuestion, ...]:
        return tuple(_show(one.question, judge, album, limits, px=limits.image_px, kinds=_kinds(one)) for one in chosen)

    return ShownSet(
        title=title,
        examples=examples,
        regressions=show(examples.regressions),
        gains=show(examples.gains),
        drawn=show(examples.drawn),
    )


def _show(
    question: QuestionAnswers,
    judge: Judge | None,
    album: Album,
    limits: Limits,
    *,
    px: int,
    side: str | None = None,
    kinds: Sequence[str] = (),
) -> ShownQuestion:
    def shorten(text: str) -> str:
        return cut(text, max_chars=limits.max_chars)

    base, tuned = diff_words(shorten(question.base.answer), shorten(question.tuned.answer))
    marked = {("base", "asked"): base, ("tuned", "asked"): tuned}
    answers = []
    for model, variant, title in _ASKED:
        row = question.find(model, variant)
        if row is not None:
            pieces = marked.get((model, variant)) or (Piece(text=shorten(row.answer), is_same=True),)
            score = judge(row) if judge is not None else None
            answers.append(ShownAnswer(title=title, model=model, pieces=pieces, score=score, is_cut=row.is_cut))
    return ShownQuestion(
        text=shorten(question.question),
        references=tuple(shorten(reference) for reference in question.references[:_MAX_REFERENCES]),
        answers=tuple(answers),
        images=album.show(question.images, max_px=px),
        kinds=" ".join(kinds),
        place=shorten(f"{question.sample}, question {question.number}"),
        question_type=shorten(question.question_type),
        picture_side=side,
    )


def _kinds(judged: Judged) -> list[str]:
    kinds = ["right" if judged.tuned == 1 else "wrong"]
    if judged.change:
        kinds.append("improved" if judged.change > 0 else "worse")
    return kinds
