"""LLaVA's conversations JSON: what becomes of it, and what is said about entries that are wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from llava_trainer.data.conversations import read_conversations
from llava_trainer.data.entries import ReadingPosition
from llava_trainer.data.findings import Finding, Kind
from llava_trainer.data.samples import Sample, Source, Turn
from tests.trainer.exports import conversation, write_json

PAIR = [("How much?", "9.00")]


def read(tmp_path: Path, content: Any) -> list[Sample | Finding]:
    return list(read_conversations(write_json(tmp_path / "e.json", content), "export.json", ReadingPosition()))


def refusal(tmp_path: Path, entry: Any) -> str:
    """What is said about the second entry of an export whose first one is right."""
    first, second = read(tmp_path, [conversation("a.png", PAIR), entry])
    assert isinstance(first, Sample)
    assert isinstance(second, Finding)
    assert second.kind is Kind.REFUSED
    assert second.where == "export.json[1]"
    return second.message


def turns(*spoken: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": speaker, "value": value} for speaker, value in spoken]


def test_an_entry_becomes_a_sample(tmp_path: Path):
    pairs = [("How much?", "9.00"), ("When?", "Today.")]
    assert read(tmp_path, [conversation("a.png", pairs, id=7)]) == [
        Sample(
            id="7",
            images=("a.png",),
            turns=(
                Turn(role="user", text="How much?"), Turn(role="assistant", text="9.00"),
                Turn(role="user", text="When?"), Turn(role="assistant", text="Today."),
            ),
            source=Source(file="export.json", index=0),
            image_turns=(0,),
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    "question", ["<image>\nHow much?", "How much?\n<image>", "How much<image>?", " <image> How much?\n"]
)
def test_the_image_s_marker_is_taken_out_wherever_it_stands(question: str, tmp_path: Path):
    (sample,) = read(tmp_path, [{"image": "a.png", "conversations": turns(("human", question), ("gpt", " 9.00\n"))}])
    assert [turn.text for turn in sample.turns] == ["How much?", "9.00"]
    assert sample.image_turns == (0,)


def test_an_image_in_a_later_turn_stays_there(tmp_path: Path):
    said = turns(("human", "Hi."), ("gpt", "Hi."), ("human", "<image>What?"), ("gpt", "A cat."))
    (sample,) = read(tmp_path, [{"image": "a.png", "conversations": said}])
    assert sample.image_turns == (2,)


@pytest.mark.parametrize("image", [{}, {"image": None}, {"image": []}])
def test_an_entry_may_have_no_image(image: dict[str, Any], tmp_path: Path):
    (sample,) = read(tmp_path, [conversation(None, PAIR) | image])
    assert sample.images == ()


def test_a_list_with_one_image_is_one_image(tmp_path: Path):
    (sample,) = read(tmp_path, [conversation("a.png", PAIR, image=["a.png"])])
    assert sample.images == ("a.png",)


def test_without_an_id_the_place_is_the_id(tmp_path: Path):
    (sample,) = read(tmp_path, [conversation("a.png", PAIR, id=None)])
    assert sample.id == "export.json[0]"


def test_an_opening_answer_is_left_out_and_told(tmp_path: Path):
    entry = {"image": "a.png", "conversations": turns(("gpt", "Hello!"), ("human", "<image>\nQ?"), ("gpt", "A."))}
    told, sample = read(tmp_path, [entry])
    assert (told.kind, told.where) == (Kind.OPENING_ANSWER, "export.json[0]")
    assert [turn.text for turn in sample.turns] == ["Q?", "A."]
    assert sample.image_turns == (0,)


BAD_ENTRIES: dict[str, tuple[Any, str]] = {
    "null": (None, "the entry: Input should be a valid dictionary"),
    "a list": ([1], "the entry: Input should be a valid dictionary"),
    "no conversations": ({"image": "a.png"}, "conversations is missing"),
    "conversations is a text": (conversation("a.png", PAIR, conversations="x"), "conversations: Input should"),
    "a turn is a text": (conversation("a.png", PAIR, conversations=["x"]), "conversations[0]: Input should be"),
    "no value": (conversation("a.png", PAIR, conversations=[{"from": "human"}]), "conversations[0].value is missing"),
    "value is a number": (
        conversation("a.png", PAIR, conversations=[{"from": "human", "value": 5}]),
        "conversations[0].value: Input should be a valid string (is 5)"),
    "no speaker": (conversation("a.png", PAIR, conversations=[{"value": "x"}]), "conversations[0].from is missing"),
    "no turns": (conversation("a.png", []), "holds no question"),
    "only an opening answer": ({"conversations": turns(("gpt", "Hi."))}, "holds no question"),
    "a third speaker": (
        {"conversations": turns(("system", "Be brief."), ("human", "Q"), ("gpt", "A"))},
        "speaker 'system' is neither 'human' nor 'gpt'"),
    "two questions in a row": (
        {"conversations": turns(("human", "Q"), ("human", "Q"), ("gpt", "A"))}, "'human' speaks twice in a row"),
    "two answers in a row": (
        {"conversations": turns(("human", "Q"), ("gpt", "A"), ("gpt", "A"))}, "'gpt' speaks twice in a row"),
    "a question at the end": (
        {"conversations": turns(("human", "Q"), ("gpt", "A"), ("human", "Q"))}, "ends with a question that has no ans"),
    "a question of nothing": (conversation("a.png", [("Q", "A"), ("\t", "A")]), "question 2 is empty"),
    "a question of nothing, without picture": (conversation(None, [("  ", "A")]), "question 1 is empty"),
    "a picture without marker": (conversation(None, PAIR, image="a.png"), "<image> stands 0 times for 1 pictures"),
    "a marker without picture": (conversation("a.png", PAIR, image=None), "<image> stands 1 times for 0 pictures"),
    "two markers": (conversation("a.png", [("<image>Q", "A")]), "<image> stands 2 times for 1 pictures"),
    "a marker in an answer": (conversation(None, [("Q", "<image>A")], image="a.png"), "<image> stands in an answer"),
    "a marker in the opening answer": (
        {"image": "a.png", "conversations": turns(("gpt", "<image>"), ("human", "Q"), ("gpt", "A"))},
        "opening answer with <image>"),
    "two pictures, one marker": (
        conversation("a.png", PAIR, image=["a.png", "b.png"]), "<image> stands 1 times for 2 pictures"),
    "references that are a text": (conversation("a.png", PAIR, references="9"), "references: Input should be"),
    "a reference that is a number": (conversation("a.png", PAIR, references=["9", 9]), "references[1]: Input should"),
    "a type that is a number": (conversation("a.png", PAIR, question_type=1), "question_type: Input should be"),
    "a UBIAI document": ({"document": "", "tokens": []}, "conversations is missing; it looks like UBIAI's: set"),
    "a number for a picture": (conversation("a.png", PAIR, image=5), "image must be a path (is 5)"),
    "an empty path": (conversation("a.png", PAIR, image=""), "image must be a path (is '')"),
    "an object for an id": (conversation("a.png", PAIR, id={}), "id must be a string or a whole number (is {})"),
    "a truth value for an id": (conversation("a.png", PAIR, id=True), "id must be a string or a whole number"),
    "an object for a group": (conversation("a.png", PAIR, group={}), "group must be a string or a whole number (is {"),
    "half a surrogate pair in a group": (conversation("a.png", PAIR, group="\ud83d"), "half a surrogate pair"),
    "half a surrogate pair": (conversation("a.png", [("Q", "\ud83d")]), "half a surrogate pair"),
    "half a surrogate pair in a reference": (conversation("a.png", PAIR, references=["\ud83d"]), "half a surrogate"),
    "half a surrogate pair in a path": (conversation("\udc00.png", PAIR), "half a surrogate pair"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ENTRIES)
def test_a_wrong_entry_is_named_with_what_is_wrong(name: str, tmp_path: Path):
    entry, message = BAD_ENTRIES[name]
    assert message in refusal(tmp_path, entry)


def test_a_file_that_cannot_be_read_is_told_after_what_stands_before(tmp_path: Path):
    (tmp_path / "e.json").write_text(f"[{json.dumps(conversation('a.png', PAIR))},\n{{")
    sample, finding = read_conversations(tmp_path / "e.json", "export.json", ReadingPosition())
    assert isinstance(sample, Sample)
    assert isinstance(finding, Finding)
    assert finding.where == "export.json"
    assert "is not JSON: Expecting property name enclosed in double quotes at line 2, column 2" in finding.message


def test_json_lines_give_the_same_samples_as_a_list(tmp_path: Path):
    entries = [conversation(f"{index}.png", [("Größe?", "漢字\n")] * (index + 1)) for index in range(3)]
    (tmp_path / "e.jsonl").write_text("\n".join(json.dumps(entry) for entry in entries))
    assert list(read_conversations(tmp_path / "e.jsonl", "export.json", ReadingPosition())) == read(tmp_path, entries)


def test_a_broken_line_is_named_and_the_others_are_read(tmp_path: Path):
    line = json.dumps(conversation("a.png", PAIR))
    (tmp_path / "e.jsonl").write_text(f"{line}\n{line[:-3]}\n{line}\n")
    first, broken, last = read_conversations(tmp_path / "e.jsonl", "e.jsonl", ReadingPosition())
    assert isinstance(broken, Finding)
    assert (broken.kind, broken.where) == (Kind.REFUSED, "e.jsonl[1]")
    assert broken.message.startswith("line 2 is not JSON: ")
    assert isinstance(first, Sample)
    assert isinstance(last, Sample)
    assert last.source.index == 2


def test_several_images_stand_each_in_the_question_that_shows_it(tmp_path: Path):
    said = turns(
        ("human", "<image> and <image>?"), ("gpt", "A."), ("human", "And so?"), ("gpt", "B."), ("human", "<image>\n"),
        ("gpt", "C."),
    )  # fmt: skip
    (sample,) = read(tmp_path, [{"image": ["a.png", "b.png", "c.png"], "conversations": said}])
    assert sample.images == ("a.png", "b.png", "c.png")
    assert sample.image_turns == (0, 0, 4)
    assert [turn.text for turn in sample.turns] == ["and ?", "A.", "And so?", "B.", "", "C."]


def test_a_blank_answer_stays_and_is_told(tmp_path: Path):
    told, sample = read(tmp_path, [conversation("a.png", [("Q", "A"), ("R", " \n")])])
    assert (told.kind, told.where, told.message) == (Kind.BLANK_ANSWER, "export.json[0]", "answer 2 is blank")
    assert [turn.text for turn in sample.turns] == ["Q", "A", "R", ""]


def test_references_and_type_are_kept(tmp_path: Path):
    (sample,) = read(tmp_path, [conversation("a.png", PAIR, references=[" 9 ", "9.0"], question_type=" amount ")])
    assert sample.references == ("9", "9.0")
    assert sample.question_type == "amount"


@pytest.mark.parametrize(("given", "group"), [(" patient 7 ", "patient 7"), (7, "7"), (None, ""), ("", "")])
def test_what_an_entry_belongs_to_is_kept(given: Any, group: str, tmp_path: Path):
    (sample,) = read(tmp_path, [conversation("a.png", PAIR, group=given)])
    assert sample.group == group


def test_a_byte_order_mark_is_passed_over(tmp_path: Path):
    (tmp_path / "e.json").write_bytes(b"\xef\xbb\xbf" + json.dumps([conversation("a.png", PAIR)]).encode())
    (sample,) = read_conversations(tmp_path / "e.json", "export.json", ReadingPosition())
    assert isinstance(sample, Sample)
