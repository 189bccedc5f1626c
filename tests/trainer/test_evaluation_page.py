"""The report as a browser reads it: whole, self-contained, and with nothing of the data's in its markup."""

import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from PIL import Image

from llava_api.constants import StageName
from llava_api.run_config import RunIdentity
from llava_api.spec import Generation
from llava_trainer.data.dataset_report import Note, Shared, summarise
from llava_trainer.data.images import ImageError
from llava_trainer.data.questions import Question, Split
from llava_trainer.data.samples import Sample, Source, Turn
from llava_trainer.evaluation.album import Album, LoadImage
from llava_trainer.evaluation.examples import judge_questions
from llava_trainer.evaluation.page import (
    DATASET_REPORT,
    LIMITS,
    MAX_BYTES,
    AskedPrompt,
    PageContent,
    _render,
    build_evaluation_page,
    judge_exact,
)
from llava_trainer.evaluation.page_training import MAX_STEPS_SHOWN, Hardest, HardSample, thin_out
from llava_trainer.evaluation.pairs import QuestionAnswers, pair_rows
from llava_trainer.evaluation.rows import Row
from llava_trainer.evaluation.scores import Answer, Metrics, score_answers
from llava_trainer.training.curve import CurvePoint
from llava_trainer.training.hardest import SampleLoss
from tests.trainer.runs import dataset_report

NO_GROUPS = Shared()
NASTY = """<script>alert(1)</script>"><img src=x onerror='alert(2)'></td></table>&amp;"""


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


def make_answer(
    sample: str, number: int = 1, *, split: Split = "validation", expected: str | None = "yes", base: str = "no",
    tuned: str = "yes", text: str = "Is it?", image: str | None = "a.png",
) -> Answer:  # fmt: skip
    question = Question(
        split=split, sample=sample, number=number, images=(image,) if image else (),
        turns=(Turn(role="user", text=text),), image_turns=(0,) if image else (), expected=expected,
    )  # fmt: skip
    return Answer.of(question, base, tuned)


def pair(answers: Sequence[Answer]) -> tuple[QuestionAnswers, ...]:
    return pair_rows(
        Row.model_validate(
            {
                "question_id": f"{answer.split}/{place}/{answer.number}",
                "set": answer.split,
                "group": answer.sample,
                "references": () if answer.expected is None else (answer.expected,),
                "model": model,
                "answer": text,
                **answer.model_dump(include={"sample", "number", "images", "question"}),
            }
        )
        for place, answer in enumerate(answers)
        for model, text in (("base", answer.base), ("tuned", answer.tuned))
    )


def make_entry(step: int, loss: float = 1.0) -> CurvePoint:
    return CurvePoint(
        step=step, epoch=1.0, loss=loss, learning_rate=2e-4, grad_norm=1.0, tokens=1, samples_per_second=1.0,
        tokens_per_second=1.0,
    )  # fmt: skip


def render(answers: Sequence[Answer], *arguments: Any, **more: Any) -> str:
    return build_evaluation_page(make_content(answers, *arguments, **more))


def make_content(
    answers: Sequence[Answer],
    curve: Sequence[CurvePoint] = (),
    name: str = "invoices",
    size: int = 900,
    notes: tuple[Note, ...] = (),
    shared: Shared = NO_GROUPS,
    load_image: LoadImage | None = None,
    questions: Sequence[QuestionAnswers] = (),
    **more: Any,
) -> PageContent:
    dataset = dataset_report(held_out=50, trained_on=1234, notes=notes)
    held_out = dataset.validation.model_copy(update={"groups": 4})
    dataset = dataset.model_copy(update={"shared": shared, "validation": held_out})
    metrics = Metrics(
        run=RunIdentity(namespace="team-a", name=name, uid="0c6f", stage=StageName.EVALUATE, attempt=2),
        finished_at="2026-11-24T10:00:00Z",
        device="CPU",
        dtype="float32",
        scores=score_answers(answers, num_shared=shared.pairs),
        prompts=sum(answer.split == "prompt" for answer in answers),
        generation=Generation(),
        dataset=summarise(dataset),
        seconds={"answers_of_base": 1.5},
        versions={"torch": "2.15.0"},
    )
    return PageContent(
        metrics=metrics,
        dataset=dataset,
        questions=questions or [question for question in pair(answers) if question.set != "prompt"],
        prompts=[
            AskedPrompt(answers=question, picture_side="training has seen this picture")
            for question in pair(answers)
            if question.set == "prompt"
        ],
        curve=curve,
        settings=[("Epochs", "1")],
        load_image=load_image or (lambda path: Image.effect_noise((size, size // 2), 80)),
        judge=judge_exact,
        **more,
    )


def test_whatever_data_and_models_say_stays_text() -> None:
    answers = [
        make_answer(NASTY, text=NASTY, expected=NASTY, base=NASTY, tuned=NASTY, image=NASTY),
        make_answer("1", split="prompt", expected=None, text=NASTY, base=NASTY, tuned=NASTY, image=NASTY),
    ]
    read = Page(render(answers, name=NASTY))
    assert len(read.all("script")) == 1
    assert {a["src"][:23] for a in read.all("img")} == {"data:image/jpeg;base64,"}
    assert not [name for _, attributes in read.tags for name in attributes if name.startswith("on")]
    # Title, heading; picture, question, expected, base, tuned and place; picture, question, base and tuned.
    assert "".join(read.texts).count(NASTY) == 1 + 1 + 6 + 4


def test_nothing_is_loaded_from_elsewhere() -> None:
    text = render([make_answer("1")], [make_entry(1), make_entry(2)])
    read = Page(text)
    for tag, attributes in read.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        assert (attributes.get("src") or "data:").startswith("data:")
        assert attributes.get("href", DATASET_REPORT) == DATASET_REPORT
    assert "url(" not in text
    assert "@import" not in text
    assert not re.findall(r"https?://", text)
    policy = next(a["content"] for a in read.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_each_question_is_marked_and_can_be_filtered() -> None:
    answers = {
        "improved": make_answer("1", base="no", tuned="yes"),
        "worse": make_answer("2", base="yes", tuned="no"),
        "both right": make_answer("3", base="yes", tuned="yes"),
        "both wrong": make_answer("4", base="no", tuned="maybe"),
    }
    read = Page(render(list(answers.values())))
    # Regressions, gains, the others.
    assert [a["data-kind"] for a in read.all("article", "sample")] == [
        "wrong worse",
        "right improved",
        "right",
        "wrong",
    ]
    assert (len(read.all("span", "ok")), len(read.all("span", "not"))) == (4, 4)
    text = "".join(read.texts)
    assert text.count("✓") == 4 + 1
    assert "4 questions: 1 worse than the base, 1 better." in text
    assert "Drawn at random" not in text
    assert {a["data-show"] for a in read.all("button")} == {"all", "improved", "worse", "right", "wrong"}


def test_without_javascript_every_answer_is_there_and_the_filters_are_not() -> None:
    read = Page(render([make_answer(str(number)) for number in range(5)]))
    assert "hidden" in read.all("div", "filters")[0]
    assert not [a for a in read.all("section") + read.all("article") if "hidden" in a]


def test_words_that_differ_are_marked_in_both_answers() -> None:
    text = render([make_answer("1", base="it is <red>", tuned="it is <blue>", expected="blue")])
    assert "it is &lt;<mark>red</mark>&gt;" in text
    assert "it is &lt;<mark>blue</mark>&gt;" in text


def test_answers_that_were_cut_off_and_other_ways_of_asking_are_shown() -> None:
    (question,) = pair([make_answer("1")])
    instructed = question.base.model_copy(update={"variant": "instructed", "answer": "so", "is_cut": True})
    more = QuestionAnswers(rows={**question.rows, ("base", "instructed"): instructed})
    content = make_content([], questions=[more])
    text = " ".join(Page(build_evaluation_page(content)).texts)
    assert "base, instructed" in text
    assert text.count("cut off") == 1


def test_a_large_set_is_a_choice_and_says_so() -> None:
    answers = [make_answer(str(number), base="yes", tuned="yes") for number in range(250)]
    answers += [make_answer(str(number), split="train") for number in range(3)]
    read = Page(render(answers, size=20))
    limits = LIMITS[0]
    assert len(read.all("article", "sample")) == limits.most_drawn + 3
    text = "".join(read.texts)
    assert "250 questions: 0 worse than the base, 0 better. 60 are shown here; answers.jsonl" in text
    assert "63 of 63 shown" in text
    assert "Drawn at random from the others" in text


def noise_of_its_own(path: str) -> Image.Image:
    return Image.effect_noise((300, 300), 90)


@pytest.mark.parametrize("long", [False, True], ids=["usual", "as long as can be"])
def test_a_page_of_20_000_questions_has_at_most_5_mb(long: bool) -> None:
    """Every question with a picture of noise, the worst case for JPEG; and with markup, the worst case for escaping."""
    said = "<&>'\"\U0001f600\u202e" * 160 if long else "9.00"
    answers = [
        make_answer(
            str(n), text=said, expected=said, base=said if n % 3 else "no", tuned=said if n % 4 else "x",
            image=f"{n}.png",
        )
        for n in range(20_000)
    ]  # fmt: skip
    prompts = [
        make_answer(str(n), split="prompt", expected=None, text=said, base=said, image=f"p{n}.png") for n in range(32)
    ]
    hardest = make_hardest([make_hard(n, said, images=5) for n in range(40)])
    text = render([*answers, *prompts], hardest=hardest, load_image=noise_of_its_own)
    assert len(text.encode()) <= MAX_BYTES
    read = Page(text)
    assert len(read.all("article", "sample")) >= (5 if long else 30)
    assert len(read.all("img")) >= (0 if long else 60)


def test_the_smallest_page_is_small_enough_whatever_is_said() -> None:
    said = "<&>'\"\U0001f600\u202e" * 160
    answers = [make_answer(str(n), text=said, expected=said, base=said) for n in range(50)]
    prompts = [make_answer(str(n), split="prompt", expected=None, text=said, base=said) for n in range(32)]
    content = make_content([*answers, *prompts], hardest=make_hardest([make_hard(n, said) for n in range(40)]))
    judged = {"validation": judge_questions(content.questions, judge_exact), "train": (), "retention": ()}
    smallest = _render(content, judged, Album(content.load_image), LIMITS[-1])
    assert len(smallest.encode()) <= MAX_BYTES / 2


def test_a_picture_that_is_gone_does_not_end_the_report() -> None:
    def fail(path: str) -> Image.Image:
        raise ImageError("does not exist")

    read = Page(render([make_answer("1")], load_image=fail))
    assert "cannot be shown" in "".join(read.texts)
    assert not read.all("img")


def test_scores_say_how_many_and_how_sure() -> None:
    read = Page(render([make_answer(str(number), base="yes" if number < 2 else "no") for number in range(8)]))
    text = "".join(read.texts).replace("\u202f", " ")
    for part in ("25.0 %", "100.0 %", "+75.0 points", "2 of 8 right", "8 of 8 right", "8 questions. Set aside"):
        assert part in text
    assert [a["style"] for a in read.all("div", "fill")] == ["width: 25.00%", "width: 100.00%"]
    assert [a["style"] for a in read.all("div", "range")] == [
        "left: 7.15%; width: 51.92%",
        "left: 67.56%; width: 32.44%",
    ]


def test_questions_of_groups_that_training_has_too_are_told_beside_their_score() -> None:
    answers = [make_answer("1"), make_answer("2"), make_answer("2", split="train")]
    text = render(answers, shared=Shared(groups=1, pairs=2))
    told = "2 of them are of groups that training has samples of, too (1 of 4): this score flatters."
    assert text.count(told) == 1
    assert "this score flatters" not in render(answers)
    held_out, seen = score_answers(answers, num_shared=2)
    assert (held_out.to_score().samples_shared, seen.to_score().samples_shared) == (2, 0)


def test_a_held_out_set_that_training_asks_too_is_cautioned_against() -> None:
    note = Note(kind="overlap", title="validation questions that training asks", count=7, examples=())
    answers = [make_answer("1"), make_answer("2", split="train")]
    assert "7 of them are asked in training as well" in render(answers, notes=(note,))
    assert render(answers, notes=(note,)).count("asked in training as well") == 1
    assert "asked in training as well" not in render(answers)


def test_facts_of_the_dataset_are_listed_with_what_prepare_noted() -> None:
    note = Note(kind="overlong", title="samples cut off at training.maxLength", count=3, examples=())
    text = " ".join(Page(render([make_answer("1")], notes=(note,))).texts)
    for part in ("1,234 samples, 1,234 questions", "50 samples", "Samples cut off at training.maxLength 3", "Epochs 1"):
        assert part in text


def test_parts_without_content_are_left_out() -> None:
    text = render([])
    assert "No question was scored" in text
    for title in ("Training", "Prompts", "Questions and answers"):
        assert f"<h2>{title}</h2>" not in text
    full = render([make_answer("1"), make_answer("2", split="prompt", expected=None)], [make_entry(1)])
    for title in ("Training", "Prompts", "Questions and answers", "Dataset", "Settings", "This evaluation"):
        assert f"<h2>{title}</h2>" in full
    assert "(nothing)" in render([make_answer("1", base=" ")])


def test_what_held_out_samples_showed_meanwhile_is_drawn_where_it_is_known() -> None:
    seen = [replace(make_entry(step), validation_loss=2.0 - step / 10, validation_exact=0.0) for step in (5, 10)]
    page = render([make_answer("1")], curve=[make_entry(1), seen[0], make_entry(7), seen[1]])
    assert "Loss over step, last value 1; Held-out loss over step, last value 1" in page
    assert "Exact answers over step, last value 0" in page
    assert "Held-out loss" not in render([make_answer("1")], curve=[make_entry(1)])


# --- the course of training


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


def test_the_hardest_samples_are_shown_with_where_they_come_from() -> None:
    read = Page(render([], hardest=make_hardest([make_hard(4), make_hard(5, images=0)])))
    text = "".join(read.texts)
    assert "Training samples with the highest loss" in text
    assert "in epoch 2 of 2" in text
    assert "s-4 · export.json, entry 4" in text
    assert "mixture-0.jsonl line 5" in text
    assert "8.600 a token, 7 tokens" in text
    assert "single epoch" not in text
    assert len(read.all("img")) == 1
    assert "Training samples" not in render([]), "where it is not known"


def test_what_the_hardest_samples_are_not_is_said() -> None:
    text = render([], hardest=make_hardest([make_hard(1)], epochs=1, seen=60))
    assert "Known of 60 of 100 samples." in text
    assert "With a single epoch" in text


def test_hard_samples_and_answers_stay_text_and_small() -> None:
    many = [make_hard(n, NASTY * 100, images=5) for n in range(40)]
    question = make_question(NASTY)
    curve = [replace(make_entry(1), validation_answers=(NASTY,))]
    read = Page(render([], curve, hardest=make_hardest(many), asked=[question], size=200))
    assert len(read.all("script")) == 1
    assert not [name for _, attributes in read.tags for name in attributes if name.startswith("on")]
    assert len(read.all("img")) == 3 * LIMITS[0].hardest + 1
    assert max(len(text) for text in read.texts if text.startswith(NASTY[:8])) < 1100
    assert NASTY in read.texts, "the answer"


def make_question(text: str, expected: str = "yes") -> Question:
    return Question(
        split="validation", sample="1", number=1, images=("a.png",), turns=(Turn(role="user", text=text),),
        image_turns=(0,), expected=expected,
    )  # fmt: skip


def test_answers_are_a_table_of_steps_and_questions() -> None:
    curve = [
        replace(make_entry(step), validation_answers=(f"first said {step}", f"then said {step}")) for step in (10, 20)
    ]
    read = Page(render([], [*curve, make_entry(21)], asked=[make_question("A?"), make_question("B?", "no")]))
    text = " ".join(read.texts)
    assert "Answers while it trained" in text
    assert text.index("A?") < text.index("B?") < text.index("first said 10")
    assert text.index("first said 10") < text.index("then said 10") < text.index("first said 20")
    assert "expected: no" in text
    # Of another number of questions than the report knows: it does not say whose they are.
    assert "Answers while it trained" not in render([], curve, asked=[make_question("A?")])
    assert "Answers while it trained" not in render([], curve)


def test_so_many_validations_are_shown() -> None:
    rows = [(step, ("x",)) for step in range(1, 200)]
    shown = thin_out(rows, MAX_STEPS_SHOWN)
    assert len(shown) == MAX_STEPS_SHOWN
    assert (shown[0][0], shown[-1][0]) == (1, 199)
    assert thin_out(rows[:5], MAX_STEPS_SHOWN) == rows[:5]
    curve = [replace(make_entry(step), validation_answers=answers) for step, answers in rows]
    assert "20 of 199 validations are shown." in render([], curve, asked=[make_question("A?")])
