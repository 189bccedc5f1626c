"""The report as a browser reads it: whole, self-contained, and with nothing of the data's in its markup."""

import re
from dataclasses import replace

from PIL import Image

from llava_api.constants import GateOutcome
from llava_api.report import Judgement
from llava_trainer.data.dataset_report import Note, Shared
from llava_trainer.data.images import ImageError
from llava_trainer.data.questions import Question
from llava_trainer.data.samples import Turn
from llava_trainer.evaluation.page import DATASET_REPORT, LIMITS
from llava_trainer.evaluation.page_training import MAX_STEPS_SHOWN, thin_out
from tests.trainer.report_pages import (
    NASTY,
    Page,
    make_answer,
    make_entry,
    make_hard,
    make_hardest,
    make_metrics,
    render,
)


def test_whatever_data_and_models_say_stays_text() -> None:
    answers = [
        make_answer(NASTY, text=NASTY, expected=NASTY, base=NASTY, tuned=NASTY, image=NASTY),
        make_answer("1", set="prompt", expected=None, text=NASTY, base=NASTY, tuned=NASTY, image=NASTY),
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
    text = " ".join(Page(render([make_answer("1", instructed="so", alone="and so", is_cut=True)])).texts)
    for title in ("base, instructed", "base, alone", "tuned, alone"):
        assert title in text
    assert text.count("cut off ") >= 5
    assert "validation base, instructed" in " ".join(text.split())
    assert "100.0\u202f% of the tuned model's answers were cut off at 512 tokens" in text


def test_what_the_base_says_when_it_is_asked_better_is_what_changes_are_told_by() -> None:
    answers = [make_answer(str(n), base="It is no", tuned="no", expected="no", instructed="no") for n in range(9)]
    text = " ".join(Page(render(answers)).texts)
    assert "9 questions: 0 worse than the base, 0 better." in text
    assert "is shown so" in text
    assert "format against content" in text
    assert "+100.0 points" in text


def test_a_large_set_is_a_choice_and_says_so() -> None:
    answers = [make_answer(str(number), base="yes", tuned="yes") for number in range(250)]
    answers += [make_answer(str(number), set="train") for number in range(3)]
    read = Page(render(answers, size=20))
    limits = LIMITS[0]
    assert len(read.all("article", "sample")) == limits.most_drawn + 3
    text = "".join(read.texts)
    assert "250 questions: 0 worse than the base, 0 better. 60 are shown here; answers.jsonl" in text
    assert "63 of 63 shown" in text
    assert "Drawn at random from the others" in text


def test_a_picture_that_is_gone_does_not_end_the_report() -> None:
    def fail(path: str) -> Image.Image:
        raise ImageError("does not exist")

    read = Page(render([make_answer("1")], load_image=fail))
    assert "cannot be shown" in "".join(read.texts)
    assert not read.all("img")


def test_scores_say_how_many_and_how_sure() -> None:
    answers = [make_answer(str(number), base="yes" if number < 2 else "no") for number in range(8)]
    read = Page(render(answers))
    text = "".join(read.texts).replace("\u202f", " ")
    for part in ("25.0 %", "100.0 %", "+75.0 points", "2 of 8 right", "8 of 8 right", "8 questions of 8 groups. Set"):
        assert part in text
    assert [a["style"] for a in read.all("div", "fill")] == ["width: 25.00%", "width: 100.00%"]
    (score,) = make_metrics(answers).scores
    left, width = f"{score.tuned.low:.2%}", f"{score.tuned.high - score.tuned.low:.2%}"
    assert read.all("div", "range")[1]["style"] == f"left: {left}; width: {width}"
    assert score.gain_low is not None
    assert f"95 % interval {score.gain_low * 100:+.1f} to" in text
    assert len(read.all("svg", "interval")) == 1


def judgement(outcome: GateOutcome, **numbers: float) -> Judgement:
    told = {"gain": 0.4, "low": 0.1, "high": 0.6, "limit": 0.05, "smallest_difference": 0.25, **numbers}
    return Judgement(outcome=outcome, metric="exact_match", samples=40, groups=12, **told)


def test_the_judgements_are_shown_with_their_intervals_and_limits() -> None:
    metrics = make_metrics(
        [make_answer("1")],
        gate=judgement(GateOutcome.PASSED),
        retention=judgement(GateOutcome.UNDECIDED, gain=-0.02, low=-0.1, high=0.06, limit=-0.02),
    )
    read = Page(render([make_answer("1")], metrics=metrics))
    text = " ".join(" ".join(read.texts).replace("\u202f", " ").split())
    assert "Gate Passed" in text
    assert "+40.0 points , 95 % interval +10.0 to +60.0, limit +5.0." in text
    assert "40 questions of 12 groups. Differences below 25.0 points this set cannot show." in text
    assert "Retention Undecided" in text
    assert "the gate (limit +5.0) is passed" in text
    assert "retention (limit -2.0) is undecided with -2.0" in text
    assert "Is it good enough?" not in render([make_answer("1")])


def test_types_of_questions_have_scores_of_their_own() -> None:
    answers = [make_answer(str(n), type=NASTY if n < 3 else "colour") for n in range(9)]
    text = " ".join("".join(Page(render(answers)).texts).split())
    assert "Held-out questions by type" in text
    assert "colour" in text
    assert NASTY in text
    assert "by type" not in render([make_answer("1")])


def test_questions_that_were_asked_alone_are_told_of() -> None:
    text = " ".join(Page(render([make_answer(str(n), alone="yes") for n in range(3)])).texts)
    assert "without earlier turns" in text
    assert "3 questions have earlier turns" in text


def test_the_manifest_says_what_was_compared() -> None:
    metrics = make_metrics(
        [make_answer("1")], origins={"model": "hf://a/b@c0ffee"}, digests={"merge-1/merged": "sha256:ab"}
    )
    text = " ".join(Page(render([make_answer("1")], metrics=metrics)).texts)
    for part in ("hf://a/b@c0ffee", "merge-1/merged", "sha256:ab", "2.15.0"):
        assert part in text


def test_prompts_say_what_training_has_seen() -> None:
    text = " ".join(Page(render([make_answer("1", set="prompt", expected=None)])).texts)
    assert "Training has seen this picture." in text


def test_questions_of_groups_that_training_has_too_are_told_beside_their_score() -> None:
    answers = [make_answer("1"), make_answer("2"), make_answer("2", set="train")]
    text = render(answers, shared=Shared(groups=1, pairs=2))
    told = "2 of them are of groups that training has samples of, too (1 of 4): this score flatters."
    assert text.count(told) == 1
    assert "this score flatters" not in render(answers)


def test_a_held_out_set_that_training_asks_too_is_cautioned_against() -> None:
    note = Note(kind="overlap", title="validation questions that training asks", count=7, examples=())
    answers = [make_answer("1"), make_answer("2", set="train")]
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
    full = render([make_answer("1"), make_answer("2", set="prompt", expected=None)], [make_entry(1)])
    for title in ("Training", "Prompts", "Questions and answers", "Dataset", "Settings", "This evaluation", "Scores"):
        assert f"<h2>{title}</h2>" in full
    assert "(nothing)" in render([make_answer("1", base=" ")])


def test_what_held_out_samples_showed_meanwhile_is_drawn_where_it_is_known() -> None:
    seen = [replace(make_entry(step), validation_loss=2.0 - step / 10, validation_exact=0.0) for step in (5, 10)]
    page = render([make_answer("1")], curve=[make_entry(1), seen[0], make_entry(7), seen[1]])
    assert "Loss over step, last value 1; Held-out loss over step, last value 1" in page
    assert "Exact answers over step, last value 0" in page
    assert "Held-out loss" not in render([make_answer("1")], curve=[make_entry(1)])


# --- the course of training


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
        set="validation", place=0, sample="1", number=1, images=("a.png",), turns=(Turn(role="user", text=text),),
        image_turns=(0,), references=(expected,),
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


def test_pictures_of_the_retention_set_come_from_its_own_folder() -> None:
    asked: list[str] = []

    def load(path: str) -> Image.Image:
        asked.append(path)
        return Image.new("RGB", (20, 20))

    answers = [make_answer("1", image="a.png"), make_answer("2", set="retention", image="b.png")]
    read = Page(render(answers, load_image=load, load_retention_image=lambda path: Image.new("RGB", (30, 30))))
    assert asked == ["a.png"]
    assert len(read.all("img")) == 2
    assert "Questions of the retention set" in "".join(read.texts)
