"""The part of report.html that shows what both models have answered, beside the images they were asked about."""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Literal

from PIL import Image

from llava_trainer.evaluation.scores import Answer, SplitScore
from llava_trainer.html import Html, el, join, thumbnail

MAX_QUESTIONS_SHOWN = 200
"""Questions of each split that are shown; images make a report heavy. All of them are in answers.jsonl."""
Model = Literal["bare", "base", "tuned"]
"""Bare: the base without the adapter that the run went on from."""
SPLIT_TITLES = {"validation": "Held-out questions", "train": "Training questions", "retention": "Not to be forgotten"}
LoadImage = Callable[[str], Image.Image]
"""Opens an image by its path relative to the dataset's image folder."""


def show_prompts(prompts: Sequence[Answer], load_image: LoadImage) -> Html | None:
    """What both models answer to the run's own prompts; None where it has none."""
    if not prompts:
        return None
    return el("section", el("h2", "Prompts"), (_prompt(answer, load_image) for answer in prompts))


def _prompt(answer: Answer, load_image: LoadImage) -> Html:
    shown = side_by_side(show_image(image, load_image, max_px=400) for image in answer.images)
    said = el(
        "div",
        el("p", answer.question, class_="question"),
        el(
            "div",
            None if answer.bare is None else _said("bare", answer.bare),
            _said("base", answer.base),
            _said("tuned", answer.tuned),
            class_="columns",
        ),
    )
    return el("article", shown, said, class_="card prompt" if shown else "card prompt plain")


def side_by_side(images: Iterable[Html]) -> Html | None:
    """Images of one sample; None without any."""
    shown = list(images)
    return shown[0] if len(shown) == 1 else el("div", shown) if shown else None


def _said(model: Model, text: str) -> Html:
    return el(
        "div", el("div", model, class_="who"), el("div", show_text(text), class_="said"), class_=f"answer {model}"
    )


def show_questions(answers: Sequence[Answer], scores: Iterable[SplitScore], load_image: LoadImage) -> Html | None:
    """What both models answer to what was scored, to be filtered and searched; None where nothing was."""
    scored = [answer for answer in answers if answer.expected is not None]
    if not scored:
        return None
    sections = [
        _split(split, list(of_split), load_image)
        for split, of_split in groupby(scored, key=lambda answer: answer.split)
    ]
    shown = sum(min(score.samples, MAX_QUESTIONS_SHOWN) for score in scores)
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


def _split(split: str, answers: Sequence[Answer], load_image: LoadImage) -> Html:
    visible = answers[:MAX_QUESTIONS_SHOWN]
    samples = [list(rows) for _, rows in groupby(visible, key=lambda answer: answer.sample)]
    note = f"{len(answers):,} questions about {len({answer.sample for answer in answers}):,} samples."
    if len(visible) < len(answers):
        note += f" The first {len(visible)} are shown here; answers.jsonl beside this file holds all of them."
    return el(
        "section",
        el("h3", SPLIT_TITLES[split], style="margin-top: 20px"),
        el("p", note, class_="muted small"),
        el(
            "div",
            _heads(has_bare=answers[0].bare is not None),
            (_sample(rows, load_image) for rows in samples),
            class_="card samples",
        ),
    )


def _heads(*, has_bare: bool) -> Html:
    names = ("Question", "Expected", *(("Bare",) if has_bare else ()), "Base", "Tuned")
    return el(
        "div",
        el("span", "Picture"),
        el("table", el("tr", (el("th", name) for name in names)), class_="answers"),
        class_="heads",
        aria_hidden="true",
    )


def _sample(rows: Sequence[Answer], load_image: LoadImage) -> Html:
    paths = dict.fromkeys(path for answer in rows for path in answer.images)
    shown = side_by_side(show_image(path, load_image) for path in paths) or el(
        "span", "no picture", class_="empty small"
    )
    return el("article", shown, el("table", (_row(answer) for answer in rows), class_="answers"), class_="sample")


def _row(answer: Answer) -> Html:
    return el(
        "tr",
        el("td", answer.question),
        el("td", show_text(answer.expected or "")),
        None if answer.bare is None else _judged("bare", answer.bare, answer.bare_right),
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
    return el("td", mark, show_text(text), class_="ok" if right else "not")


def show_image(path: str, load_image: LoadImage, max_px: int = 240) -> Html:
    """An image, small, with its name."""
    source = thumbnail(load_image(path), max_px=max_px)
    return el("figure", el("img", src=source, alt="", loading="lazy"), el("figcaption", path), class_="picture")


def show_text(text: str) -> Html:
    """What somebody has said, or that it is nothing."""
    return join(text) if text.strip() else el("span", "(nothing)", class_="empty")
