"""How a question is put to base and tuned model, which questions are asked, and which pod asks which."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from llava_api.spec import Generation
from llava_trainer.data.questions import Question, ask_samples
from llava_trainer.data.samples import Sample, Source, Turn, write_samples
from llava_trainer.evaluation.answering_shard import Prompt, ShardPlan
from llava_trainer.evaluation.asking import SHORT_ANSWER, is_answer_to, list_askings, make_row
from llava_trainer.evaluation.dealing import deal, draw_training
from llava_trainer.evaluation.rows import Row
from llava_trainer.model.answering import EncodedPrompt

INSTRUCTED = f"What colour is it?\n{SHORT_ANSWER}"


def user(text: str) -> Turn:
    return Turn(role="user", text=text)


def assistant(text: str) -> Turn:
    return Turn(role="assistant", text=text)


def make_question(*turns: str, references: tuple[str, ...] = ("red",), **changes) -> Question:
    said = tuple(user(text) if index % 2 == 0 else assistant(text) for index, text in enumerate(turns))
    fields = {
        "set": "validation", "place": 3, "sample": "a", "number": 1, "images": ("a.png",), "turns": said,
        "image_turns": (0,), "references": references,
    }  # fmt: skip
    return Question(**(fields | changes))


def make_sample(number: int, *, group_key: str = "", image: str | None = None, num_pairs: int = 1, **changes) -> Sample:
    turns = (user("What is it?"), assistant(f"answer {number}")) * num_pairs
    images = () if image is None else (image,)
    return Sample(
        id=str(number), images=images, image_turns=(0,) * len(images), turns=turns, group_key=group_key,
        source=Source(file="x.json", index=number), **changes,
    )  # fmt: skip


# --- how a question is put


@pytest.mark.parametrize(
    ("question", "variants"),
    [
        (make_question("What colour is it?"), ["asked", "instructed"]),
        (make_question("What colour is it?", references=("a b c d e", "red")), ["asked", "instructed"]),
        (make_question("What colour is it?", references=("red", "a b c d e f")), ["asked"]),
        (make_question("What colour is it?", references=()), ["asked"]),
        (make_question("What colour is it?", references=("",)), ["asked"]),
        (make_question(INSTRUCTED), ["asked"]),
        (make_question("What colour? answer the  question using a single word\nor phrase"), ["asked"]),
        (make_question("Which?\nA. x\nAnswer with the option’s letter from the given choices directly."), ["asked"]),
        (make_question("What colour is it?", system=f"Be brief. {SHORT_ANSWER}"), ["asked"]),
        (make_question(INSTRUCTED, "red", "And where?"), ["asked", "alone"]),
        (make_question("What?", SHORT_ANSWER, "And where?"), ["asked", "instructed", "alone"]),
    ],
)  # fmt: skip
def test_in_which_ways_a_question_is_put(question: Question, variants: list[str]) -> None:
    assert [asking.variant for asking in list_askings(question)] == variants


def test_the_instruction_follows_on_a_line_of_its_own_as_in_llavas_data() -> None:
    asked, instructed = list_askings(make_question("What colour is it?"))
    assert asked.put.text == "What colour is it?"
    assert instructed.put.text == "What colour is it?\nAnswer the question using a single word or phrase."
    assert replace(instructed.put, turns=asked.put.turns) == asked.put == asked.question


def test_alone_a_question_shows_all_images_and_no_earlier_turn() -> None:
    question = make_question(
        "First?", "yes", "Second?", images=("a.png", "b.png"), image_turns=(0, 2), references=("a b c d e f",)
    )
    _, alone = list_askings(question)
    assert alone.put.turns == (user("Second?"),)
    assert (alone.put.images, alone.put.image_turns) == (("a.png", "b.png"), (0, 0))


def test_who_is_asked_in_which_way() -> None:
    asked, instructed, alone = list_askings(make_question("First?", "yes", "Second?"))
    every = ("bare", "base", "tuned")
    assert asked.models(every) == every
    assert instructed.models(every) == ("base",), "the tuned model is asked as it was trained"
    assert alone.models(every) == ("base", "tuned")
    assert asked.models(("base", "tuned")) == ("base", "tuned")


def test_of_the_retention_set_both_models_are_asked_in_both_ways() -> None:
    """The tuned model has not been trained on it: asked otherwise than the base it would seem to have forgotten."""
    _, instructed = list_askings(make_question("What colour is it?", set="retention"))
    assert instructed.models(("bare", "base", "tuned")) == ("base", "tuned")


def test_a_batch_goes_to_the_same_models_as_a_whole() -> None:
    questions = [make_question("What?", place=i, set=of) for i, of in enumerate(["validation", "retention"] * 3)]
    plan = ShardPlan(
        prompts=[
            Prompt(asking=asking, encoded=EncodedPrompt(ids=[1], load_pixels=None))
            for question in questions
            for asking in list_askings(question)
        ],
        models=("base", "tuned"), generation=Generation(), is_repeated=False,
    )  # fmt: skip
    counted = {
        model: Counter((one.asking.question.set, one.asking.variant) for batch in plan.batches(model) for one in batch)
        for model in plan.models
    }
    asked = {("validation", "asked"): 3, ("retention", "asked"): 3, ("retention", "instructed"): 3}
    assert counted == {"base": {**asked, ("validation", "instructed"): 3}, "tuned": asked}
    assert plan.num_answers == 21


def test_a_row_says_all_that_is_known_of_its_question() -> None:
    question = make_question("First?", "yes", "Second?", number=2, group="shop", question_type="total")
    asking = list_askings(question)[2]
    row = make_row(asking, "tuned", answer="blue", is_cut=True, is_close=False)
    assert row == Row(
        question_id="validation/3/2", set="validation", sample="a", number=2, group="shop", question_type="total",
        images=("a.png",), question="Second?", references=("red",), model="tuned", variant="alone", answer="blue",
        is_cut=True, is_close=False,
    )  # fmt: skip
    assert is_answer_to(row, asking)
    assert not is_answer_to(row.model_copy(update={"references": ("blue",)}), asking)
    assert make_row(list_askings(replace(question, group=""))[0], "base", answer="", is_cut=False,
                    is_close=False).group == "validation/3", "samples without groups are independent"  # fmt: skip


# --- references


@pytest.mark.parametrize(
    ("further", "expected"),
    [
        ((), ("answer 0",)),
        (("one", "two"), ("answer 0", "one", "two")),
        (("one", "answer 0", "one", "answer 0"), ("answer 0", "one", "one", "answer 0")),
    ],
)
def test_the_datasets_own_answer_comes_first_and_counts_once(further: tuple[str, ...], expected: tuple[str, ...]):
    (question,) = ask_samples([make_sample(0, references=further)], "validation")
    assert question.references == expected


def test_further_references_are_of_the_last_question_alone() -> None:
    first, second = ask_samples([make_sample(0, num_pairs=2, references=("one",), question_type="t")], "train")
    assert (first.references, second.references) == (("answer 0",), ("answer 0", "one"))
    assert [question.id for question in (first, second)] == ["train/0/1", "train/0/2"]
    assert (second.group, second.question_type) == ("", "t")


# --- which training samples


def draw(tmp_path: Path, samples: list[Sample], number: int, seed: int = 0) -> list[int]:
    write_samples(tmp_path / "train.jsonl", samples)
    return [question.place for question in draw_training(tmp_path / "train.jsonl", number, seed=seed)]


def test_training_samples_are_drawn_by_whole_groups_and_seed(tmp_path: Path) -> None:
    samples = [make_sample(number, group_key=f"{number // 5}") for number in range(50)]
    drawn = draw(tmp_path, samples, 12)
    assert drawn == sorted(drawn)
    assert sorted(Counter(place // 5 for place in drawn).values()) == [2, 5, 5]
    assert drawn == draw(tmp_path, samples, 12)
    assert set(draw(tmp_path, samples, 10)) < set(drawn), "more samples are the same and others"
    assert any(draw(tmp_path, samples, 12, seed=seed) != drawn for seed in (1, 2, 3))
    assert drawn != list(range(12)), "not the file's first"


def test_the_files_order_decides_nothing_about_groups(tmp_path: Path) -> None:
    samples = [make_sample(number, group_key=f"{number % 10}") for number in range(50)]
    keys = {samples[place].group_key for place in draw(tmp_path, samples, 15)}
    assert len(keys) == 3
    turned = samples[::-1]
    assert {turned[place].group_key for place in draw(tmp_path, turned, 15)} == keys


def test_samples_without_groups_are_drawn_one_by_one_and_all_where_there_are_fewer(tmp_path: Path) -> None:
    samples = [make_sample(number) for number in range(6)]
    assert len(draw(tmp_path, samples, 4)) == 4
    assert draw(tmp_path, samples, 100) == list(range(6))
    assert draw(tmp_path, samples, 0) == []


# --- which pod


def questions_about(images: list[str | None]) -> list[Question]:
    samples = [make_sample(number, image=image) for number, image in enumerate(images)]
    return list(ask_samples(samples, "validation"))


@pytest.mark.parametrize("num_shards", [1, 2, 3, 7, 32])
def test_each_question_is_dealt_to_one_shard_and_none_gets_many_more(num_shards: int) -> None:
    questions = questions_about([f"{number // 3}.png" if number % 4 else None for number in range(40)])
    shards = deal(questions, num_shards)
    assert len(shards) == num_shards
    assert sorted(question.id for shard in shards for question in shard) == sorted(one.id for one in questions)
    assert max(map(len, shards)) - min(map(len, shards)) <= 3
    assert shards == deal(questions, num_shards)
    place = {question.id: number for number, question in enumerate(questions)}
    for shard in shards:
        assert [place[one.id] for one in shard] == sorted(place[one.id] for one in shard)


def test_questions_about_one_image_stay_together() -> None:
    shards = deal(questions_about(["a", "b", "a", "c", "b", "a", None, None]), 3)
    assert [{one.images for one in shard if one.images} for shard in shards] == [{("a",)}, {("b",)}, {("c",)}]
    assert sorted(len(shard) for shard in shards) == [2, 3, 3]
