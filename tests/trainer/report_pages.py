"""Evaluation reports of made-up answers, and a reader that takes pages apart as a browser would."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from html.parser import HTMLParser
from typing import Any

from PIL import Image

from llava_api.constants import StageName
from llava_api.run_config import RunIdentity
from llava_api.spec import Generation
from llava_trainer.data.dataset_report import Note, Shared, summarise
from llava_trainer.data.samples import Sample, Source, Turn
from llava_trainer.evaluation.album import LoadImage
from llava_trainer.evaluation.joining import count_answers
from llava_trainer.evaluation.metrics import select_metrics
from llava_trainer.evaluation.page import AskedPrompt, PageContent, build_evaluation_page
from llava_trainer.evaluation.page_training import Hardest, HardSample
from llava_trainer.evaluation.pairs import QuestionAnswers, pair_rows
from llava_trainer.evaluation.rows import QuestionSet, Row
from llava_trainer.evaluation.scores import Metrics
from llava_trainer.evaluation.scoring import judge_row, score_rows
from llava_trainer.evaluation.summary import summarise as summarise_metrics
from llava_trainer.training.curve import CurvePoint
from llava_trainer.training.hardest import SampleLoss
from tests.trainer.runs import dataset_report

NO_GROUPS = Shared()
NASTY = """<script>alert(1)</script>"><img src=x onerror='alert(2)'></td></table>&amp;"""
EXACT_MATCH = select_metrics(["exact_match"], number_tolerance=0)


class Page(HTMLParser):
    """Tags, attributes and text of a page; complains of tags that do not fit."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"img", "input", "meta", "br", "hr", "col"}:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str, cls: str | None = None) -> list[dict[str, str | None]]:
        return [a for name, a in self.tags if name == tag and (cls is None or cls in (a.get("class") or "").split())]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question with what base and tuned have answered."""

    sample: str
    number: int = 1
    set: QuestionSet = "validation"
    expected: str | None = "yes"
    base: str = "no"
    tuned: str = "yes"
    instructed: str | None = None
    """Of the base, with the instruction."""
    alone: str | None = None
    """Of both, without earlier turns."""
    text: str = "Is it?"
    image: str | None = "a.png"
    type: str = ""
    is_cut: bool = False


def make_answer(sample: str, number: int = 1, **fields: Any) -> Asked:
    return Asked(sample=sample, number=number, **fields)


def make_rows(asked: Iterable[Asked]) -> list[Row]:
    rows = []
    for place, one in enumerate(asked):
        said = {
            ("base", "asked"): one.base,
            ("tuned", "asked"): one.tuned,
            ("base", "instructed"): one.instructed,
            ("base", "alone"): one.alone,
            ("tuned", "alone"): one.alone,
        }
        rows += [
            Row(
                question_id=f"{one.set}/{place}/{one.number}", set=one.set, sample=one.sample, number=one.number,
                group=one.sample, question_type=one.type, images=(one.image,) if one.image else (), question=one.text,
                references=() if one.expected is None else (one.expected,), model=model, variant=variant, answer=answer,
                is_cut=one.is_cut,
            )
            for (model, variant), answer in said.items()
            if answer is not None
        ]  # fmt: skip
    return rows


def pair(asked: Iterable[Asked]) -> tuple[QuestionAnswers, ...]:
    return pair_rows(make_rows(asked))


def make_entry(step: int, loss: float = 1.0) -> CurvePoint:
    return CurvePoint(
        step=step, epoch=1.0, loss=loss, learning_rate=2e-4, grad_norm=1.0, tokens=1, samples_per_second=1.0,
        tokens_per_second=1.0,
    )  # fmt: skip


def render(answers: Sequence[Asked], *arguments: Any, **more: Any) -> str:
    return build_evaluation_page(make_content(answers, *arguments, **more))


def make_metrics(
    answers: Sequence[Asked], *, name: str = "invoices", shared: Shared = NO_GROUPS, **more: Any
) -> Metrics:
    rows = make_rows(answers)
    dataset = dataset_report(held_out=50, trained_on=1234)
    metrics = Metrics(
        run=RunIdentity(namespace="team-a", name=name, uid="0c6f", stage=StageName.EVALUATE, attempt=2),
        finished_at="2026-11-24T10:00:00Z",
        device="CPU",
        dtype="float32",
        prompts=sum(answer.set == "prompt" for answer in answers),
        generation=Generation(),
        dataset=summarise(dataset),
        seconds={"answers_of_base": 1.5},
        versions={"torch": "2.15.0"},
        **{"scores": score_rows(rows, EXACT_MATCH, num_shared=shared.pairs), "answers": count_answers(rows), **more},
    )
    return metrics.model_copy(update={"summary": summarise_metrics(metrics)})


def make_content(
    answers: Sequence[Asked],
    curve: Sequence[CurvePoint] = (),
    *,
    metrics: Metrics | None = None,
    name: str = "invoices",
    size: int = 300,
    notes: tuple[Note, ...] = (),
    shared: Shared = NO_GROUPS,
    load_image: LoadImage | None = None,
    **more: Any,
) -> PageContent:
    dataset = dataset_report(held_out=50, trained_on=1234, notes=notes)
    held_out = dataset.validation.model_copy(update={"groups": 4})
    dataset = dataset.model_copy(update={"shared": shared, "validation": held_out})
    paired = pair(answers)
    return PageContent(
        metrics=metrics or make_metrics(answers, name=name, shared=shared),
        dataset=dataset,
        questions=[question for question in paired if question.set != "prompt"],
        prompts=[
            AskedPrompt(answers=question, picture_side="training has seen this picture")
            for question in paired
            if question.set == "prompt"
        ],
        curve=curve,
        settings=[("Epochs", "1")],
        load_image=load_image or (lambda path: Image.effect_noise((size, size // 2), 80)),
        **{"judges": dict.fromkeys(("validation", "train", "retention"), partial(judge_row, EXACT_MATCH[0])), **more},
    )


def make_hard(number: int, text: str = "Is it?", images: int = 1) -> HardSample:
    turns = (Turn(role="user", text=text), Turn(role="assistant", text=text))
    sample = Sample(
        id=text if text == NASTY else f"s-{number}", images=tuple(f"{number}-{n}.png" for n in range(images)),
        image_turns=(0,) * images, turns=turns, source=Source(file="export.json", index=number),
    )  # fmt: skip
    found = SampleLoss(loss=9.0 - number / 10, index=number, tokens=7, step=3)
    return HardSample(sample=sample, place=f"mixture-0.jsonl line {number + 1}", found=found)


def make_hardest(samples: Sequence[HardSample], *, epochs: int = 2, seen: int = 100) -> Hardest:
    return Hardest(epoch=epochs, epochs=epochs, seen=seen, num_samples=100, samples=samples)
