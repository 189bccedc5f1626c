"""Messages of a chat: the forms that others write them in, and what is said about entries that are wrong."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from llava_api.spec import Messages
from llava_trainer.data.dialogue import EntryError
from llava_trainer.data.embedded import MAX_IMAGE_BYTES, take_image
from llava_trainer.data.entries import MAX_EMBEDDING_CHARACTERS, ReadingPosition
from llava_trainer.data.findings import Finding, Kind
from llava_trainer.data.messages import read_messages
from llava_trainer.data.samples import Sample, Source, Turn
from tests.trainer.exports import write_json

CONTENT = b"\x89PNG of 8 bytes"
URL = f"data:image/png;base64,{base64.b64encode(CONTENT).decode()}"


def keep(content: bytes) -> str:
    return f"kept:{content!r}"


def read(tmp_path: Path, *entries: Any, system: str = "ignore") -> list[Sample | Finding]:
    path = write_json(tmp_path / "chat.json", list(entries))
    return list(read_messages(path, "chat.json", Messages(system_message=system), keep, ReadingPosition()))


def said(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


def chat(question: Any = "How much?", answer: Any = "9.00", **changes: Any) -> dict[str, Any]:
    return {"messages": said(("user", question), ("assistant", answer)), **changes}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def test_an_entry_becomes_a_sample(tmp_path: Path):
    entry = chat(
        [{"type": "image_url", "image_url": {"url": "a.png"}}, text("How "), text("much?\n")],
        " 9.00", id=7, group="invoice 3", references=["9"], question_type="amount",
    )  # fmt: skip
    assert read(tmp_path, entry) == [
        Sample(
            id="7", images=("a.png",), turns=(Turn(role="user", text="How much?"), Turn(role="assistant", text="9.00")),
            source=Source(file="chat.json", index=0), image_turns=(0,), references=("9",), question_type="amount",
            group="invoice 3",
        )
    ]  # fmt: skip


FORMS: dict[str, Any] = {
    "OpenAI": chat([text("How much?"), {"type": "image_url", "image_url": {"url": "a.png", "detail": "high"}}]),
    "OpenAI's address alone": chat([{"type": "image_url", "image_url": "a.png"}, text("How much?")]),
    "OpenAI's newer parts": chat(
        [{"type": "input_text", "text": "How much?"}, {"type": "input_image", "image_url": "a.png"}]),
    "TRL, images beside": chat(images=["a.png"]),
    "TRL, parts without source": chat(
        [{"type": "image", "text": None, "index": 0}, {"type": "text", "text": "How much?", "index": None}],
        [text("9.00")], images=["a.png"]),
    "TRL, one image": chat(image="a.png"),
    "a struct of path and bytes": chat(images=[{"bytes": None, "path": "a.png"}]),
    "LLaMA-Factory": chat("<image>How much?", images=["a.png"]),
    "Qwen": chat([{"type": "image", "image": "a.png"}, text("How much?")]),
    "transformers": chat([{"type": "image", "path": "a.png"}, text("How much?")]),
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "<image>How much?"}, {"from": "gpt", "value": "9.00"}],
        "images": ["a.png"]},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_sample(form: str, tmp_path: Path):
    (sample,) = read(tmp_path, FORMS[form])
    assert isinstance(sample, Sample)
    assert (sample.images, sample.image_turns) == (("a.png",), (0,))
    assert [turn.text for turn in sample.turns] == ["How much?", "9.00"]


def test_images_stay_in_order_and_in_the_turn_that_shows_them(tmp_path: Path):
    turns = said(
        ("user", [text("<image> or "), {"type": "image_url", "image_url": {"url": URL}}, text("?")]),
        ("assistant", "A."), ("user", "<image>And now?"), ("assistant", "B."),
    )  # fmt: skip
    (sample,) = read(tmp_path, {"messages": turns, "images": ["a.png", "b.png"]})
    assert isinstance(sample, Sample)
    assert sample.images == ("a.png", keep(CONTENT), "b.png")
    assert sample.image_turns == (0, 0, 2)
    assert [turn.text for turn in sample.turns] == ["or ?", "A.", "And now?", "B."]


SYSTEMS: dict[str, Any] = {
    "a message": {"messages": said(("system", " Be brief. "), ("user", "Q"), ("assistant", "A"))},
    "a developer's message": {"messages": said(("developer", [text("Be brief.")]), ("user", "Q"), ("assistant", "A"))},
    "ShareGPT's field": {
        "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "system": "Be brief."},
    "ShareGPT's turn": {
        "conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Q"},
                          {"from": "gpt", "value": "A"}]},
}  # fmt: skip


@pytest.mark.parametrize("form", SYSTEMS)
def test_a_system_message_is_used_only_where_that_is_asked_for(form: str, tmp_path: Path):
    told, sample = read(tmp_path, SYSTEMS[form])
    assert isinstance(told, Finding)
    assert isinstance(sample, Sample)
    assert (told.kind, told.where, sample.system) == (Kind.UNUSED_SYSTEM, "chat.json[0]", "")
    (sample,) = read(tmp_path, SYSTEMS[form], system="use")
    assert isinstance(sample, Sample)
    assert sample.system == "Be brief."
    assert [turn.text for turn in sample.turns] == ["Q", "A"]


BAD_ENTRIES: dict[str, tuple[Any, str]] = {
    "null": (None, "the entry: Input should be a valid dictionary"),
    "nothing": ({}, "messages is missing; its fields are none"),
    "a UBIAI document": ({"document": "", "tokens": []}, "it looks like UBIAI's: set dataset.format to ubiai"),
    "a row": ({"question": "Q", "answer": "A"}, "it looks like a row of a table: set dataset.format to table"),
    "both lists": ({"messages": [], "conversations": []}, "has both messages and conversations"),
    "both images": (chat(image="a.png", images=["a.png"]), "has both images and image"),
    "a text for messages": ({"messages": "x"}, "messages: Input should be a valid list"),
    "no turn": ({"messages": []}, "holds no question"),
    "a turn that is a text": ({"messages": ["x"]}, "messages[0] must be an object with role and content (is 'x')"),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0] must have role and content (its fields are role)"),
    "no role": ({"messages": [{"content": "Q"}]}, "messages[0] must have role and content (its fields are content)"),
    "content is null": (chat(answer=None), "messages[1].content must be a text or a list of parts (is None)"),
    "a tool": ({"messages": said(("user", "Q"), ("tool", "{}"))}, "role 'tool' is none of system, user and assistant"),
    "an answer that is not to be learned": (
        {"messages": [*said(("user", "Q")), {"role": "assistant", "content": "A", "weight": 0}]},
        "messages[1].weight is 0, but every answer is learned: take the answer out"),
    "audio": (chat([{"type": "input_audio"}]), "messages[0].content[0].type is 'input_audio': only text and image_url"),
    "a part that is a text": (chat(["x"]), "messages[0].content[0] must be an object with type"),
    "a text that is a number": (chat([{"type": "text", "text": 5}]), "content[0].text must be a text (is 5)"),
    "a picture in an answer": (
        chat("Q", [{"type": "image_url", "image_url": {"url": "a.png"}}]), "<image> stands in an answer"),
    "a picture in a system message": (
        {"messages": said(("system", [{"type": "image"}]), ("user", "Q"), ("assistant", "A"))},
        "messages[0].content is a system message with a picture"),
    "a late system message": (
        {"messages": said(("user", "Q"), ("system", "S"), ("assistant", "A"))},
        "messages[1].content is a system message, which must stand before everything else"),
    "two system messages": (
        {"messages": said(("system", "S"), ("user", "Q"), ("assistant", "A")), "system": "T"},
        "has a system message and a field system: keep one of them"),
    "two questions": ({"messages": said(("user", "Q"), ("user", "Q"))}, "'user' speaks twice in a row"),
    "too few pictures": (chat("<image><image>Q", images=["a.png"]), "stands 2 times for 1 pictures in images: write"),
    "too many pictures": (chat("<image>Q", images=["a.png", "b.png"]), "stands 1 times for 2 pictures in images"),
    "a marker for nothing": (chat("What does <image> mean?"), "stands 1 times for 0 pictures in images"),
    "a picture that is a number": (chat(images=[5]), "images[0] must be a path, a data: URL or bytes (is 5)"),
    "a struct of nothing": (chat(images=[{"bytes": None, "path": None}]), "images[0] has neither bytes nor path"),
    "an address": (
        chat([{"type": "image_url", "image_url": {"url": "ftp://example.com/a.png"}}, text("Q")]),
        "messages[0].content[0].image_url.url is 'ftp://example.com/a.png': pictures are not fetched by such an "
        "address; put them into the dataset and name their paths, or write them as data: URLs"),
    "another scheme": (chat(images=["file:///etc/passwd"]), "images[0] is 'file:///etc/passwd': pictures are not f"),
    "no base64": (chat(images=["data:image/png;base64,@@"]), "images[0] is a data: URL whose content is not base64"),
    "a data: URL of semicolons": (chat(images=["data:" + ";" * 5_000_000]), "must begin with data:image/TYPE;base64,"),
    "a data: URL as text": (chat(images=["data:image/png,x"]), "must begin with data:image/TYPE;base64,"),
    "a data: URL of a page": (chat(images=["data:text/html;base64,eA=="]), "must begin with data:image/TYPE;base64,"),
    "an empty picture": (chat(images=["data:image/png;base64,"]), "images[0] holds a picture of 0 bytes"),
    "half a surrogate pair": (chat(answer="\ud83d"), "half a surrogate pair"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ENTRIES)
def test_a_wrong_entry_is_named_with_what_is_wrong(name: str, tmp_path: Path):
    entry, message = BAD_ENTRIES[name]
    first, found, last = read(tmp_path, chat(), entry, chat())
    assert isinstance(found, Finding)
    assert (found.kind, found.where) == (Kind.REFUSED, "chat.json[1]")
    assert message in found.message
    assert isinstance(first, Sample)
    assert isinstance(last, Sample)


def test_half_a_surrogate_pair_in_a_system_message_is_refused(tmp_path: Path):
    (found,) = read(tmp_path, chat(system="\ud83d"), system="use")
    assert isinstance(found, Finding)
    assert "half a surrogate pair" in found.message


def test_an_image_in_an_entry_is_bounded():
    for value in (b"x" * (MAX_IMAGE_BYTES + 1), "data:image/png;base64," + "AAAA" * (MAX_IMAGE_BYTES // 3 + 2)):
        with pytest.raises(EntryError, match="more than 67,108,864"):
            take_image(value, keep, "image")


def test_an_entry_that_holds_images_may_be_larger_than_a_text(tmp_path: Path):
    large = f"data:image/png;base64,{'AAAA' * 2_000_000}"
    (sample,) = read(tmp_path, chat(images=[large]))
    assert isinstance(sample, Sample)
    (tmp_path / "chat.jsonl").write_text(json.dumps(chat("Q" * MAX_EMBEDDING_CHARACTERS)))
    (found,) = read_messages(tmp_path / "chat.jsonl", "chat.jsonl", Messages(), keep, ReadingPosition())
    assert isinstance(found, Finding)
    assert found.message == "holds an entry of more than 33,554,432 characters: divide it"
