"""UBIAI exports with relations: which links become samples, and what is told about the rest."""

from pathlib import Path
from typing import Any

import pytest

from llava_api.spec import Ubiai
from llava_trainer.data.findings import Finding, Kind
from llava_trainer.data.samples import Sample, Source, Turn
from llava_trainer.data.ubiai import read_ubiai
from tests.trainer.exports import document, write_json

PAIRS = [("How much?", "9.00"), ("When was it?", "Today.")]


def read(tmp_path: Path, content: Any, *, mapping: Any = None, **settings: str) -> list[Sample | Finding]:
    path = write_json(tmp_path / "e.json", content)
    mapping_file = None
    if mapping is not None:
        mapping_file = write_json(tmp_path / "map.json", mapping)
        settings["documents"] = "map.json"
    return list(read_ubiai(path, "export.json", Ubiai.model_validate(settings), mapping_file))


def samples_of(found: list[Sample | Finding]) -> list[tuple[str, str]]:
    return [(item.turns[0].text, item.turns[1].text) for item in found if isinstance(item, Sample)]


def told(found: list[Sample | Finding]) -> list[tuple[Kind, str]]:
    return [(item.kind, item.where) for item in found if isinstance(item, Finding)]


def link(head: int, child: int, label: str = "LINK") -> dict[str, Any]:
    return {"head": head, "child": child, "relationLabel": label}


def span(text: str, start: int, label: str) -> dict[str, Any]:
    return {"text": text, "token_start": start, "entityLabel": label}


def linked(*links: dict[str, Any], spans: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Questions at 0 and 10, answers at 20 and 30, a header at 40."""
    spans = spans or [
        span("Q0", 0, "QUESTION"), span("Q10", 10, "QUESTION"), span("A20", 20, "ANSWER"), span("A30", 30, "ANSWER"),
        span("H40", 40, "HEADER"),
    ]  # fmt: skip
    return {"documentName": "a.png", "tokens": spans, "relations": list(links)}


def test_each_linked_pair_becomes_a_sample(tmp_path: Path):
    found = read(tmp_path, [document("a.png", PAIRS)])
    assert found == [
        Sample(
            id="a.png:0-2", images=("a.png",), image_turns=(0,),
            turns=(Turn(role="user", text="How much?"), Turn(role="assistant", text="9.00")),
            source=Source(file="export.json", index=0, part=".relations[0]"),
        ),
        Sample(
            id="a.png:3-6", images=("a.png",), image_turns=(0,),
            turns=(Turn(role="user", text="When was it?"), Turn(role="assistant", text="Today.")),
            source=Source(file="export.json", index=0, part=".relations[1]"),
        ),
    ]  # fmt: skip


def test_a_link_counts_in_either_direction(tmp_path: Path):
    assert samples_of(read(tmp_path, [linked(link(20, 0), link(10, 30))])) == [("Q0", "A20"), ("Q10", "A30")]


def test_labels_are_the_person_s(tmp_path: Path):
    spans = [span("Total", 0, "key"), span("9.00", 1, "value")]
    content = [linked(link(0, 1, "has"), spans=spans)]
    found = read(tmp_path, content, question_label="key", answer_label="value", relation_label="has")
    assert samples_of(found) == [("Total", "9.00")]


def test_other_labels_on_the_same_token_do_not_matter(tmp_path: Path):
    spans = [span("X", 0, "HEADER"), span("Q", 0, "QUESTION"), span("A", 5, "ANSWER"), span("Y", 5, "HEADER")]
    assert samples_of(read(tmp_path, [linked(link(0, 5), link(0, 5, "NEXT"), spans=spans)])) == [("Q", "A")]


REPORTED: dict[str, tuple[list[dict[str, Any]], list[tuple[str, str]], list[tuple[Kind, str]]]] = {
    "a question without a link": (
        [link(0, 20), link(0, 30)],
        [("Q0", "A20"), ("Q0", "A30")],
        [(Kind.SEVERAL_ANSWERS, "export.json[0]"), (Kind.UNLINKED_QUESTION, "export.json[0]")],
    ),
    "an answer of several questions": (
        [link(0, 20), link(10, 20)],
        [("Q0", "A20"), ("Q10", "A20")],
        [(Kind.SHARED_ANSWER, "export.json[0]"), (Kind.UNLINKED_ANSWER, "export.json[0]")],
    ),
    "a link there and back": (
        [link(0, 20), link(20, 0), link(10, 30)],
        [("Q0", "A20"), ("Q10", "A30")],
        [(Kind.LINKED_TWICE, "export.json[0].relations[1]")],
    ),
    "a link from one question to another": (
        [link(0, 10), link(0, 20), link(10, 30)],
        [("Q0", "A20"), ("Q10", "A30")],
        [(Kind.NOT_A_PAIR, "export.json[0].relations[0]")],
    ),
    "a link to itself": (
        [link(0, 0), link(0, 20), link(10, 30)],
        [("Q0", "A20"), ("Q10", "A30")],
        [(Kind.NOT_A_PAIR, "export.json[0].relations[0]")],
    ),
    "a link to another label": (
        [link(0, 40), link(0, 20), link(10, 30)],
        [("Q0", "A20"), ("Q10", "A30")],
        [(Kind.NOT_A_PAIR, "export.json[0].relations[0]")],
    ),
    "a cycle": (
        [link(0, 20), link(20, 10), link(10, 30), link(30, 0)],
        [("Q0", "A20"), ("Q10", "A20"), ("Q10", "A30"), ("Q0", "A30")],
        [(Kind.SEVERAL_ANSWERS, "export.json[0]")] * 2 + [(Kind.SHARED_ANSWER, "export.json[0]")] * 2,
    ),
}


@pytest.mark.parametrize("name", REPORTED)
def test_what_is_not_one_question_and_one_answer_is_told(name: str, tmp_path: Path):
    links, pairs, findings = REPORTED[name]
    found = read(tmp_path, [linked(*links)])
    assert samples_of(found) == pairs
    assert told(found) == findings


def test_a_document_without_pairs_is_told_and_needs_no_picture(tmp_path: Path):
    empty = {"tokens": [], "relations": []}
    found = read(tmp_path, [empty, document("a.png", PAIRS)])
    assert told(found) == [(Kind.EMPTY_DOCUMENT, "export.json[0]")]
    assert len(samples_of(found)) == 2


@pytest.mark.parametrize(("name", "mapping", "picture"), [
    ("scan 1", {"scan 1": "x/1.png"}, "x/1.png"),
    (None, {"1": "x/1.png"}, "x/1.png"),
    ("scan 1", {"1": "x/1.png"}, "x/1.png"),
    ("scan 1", {"scan 1": "x/1.png", "1": "x/2.png"}, "x/1.png"),
])  # fmt: skip
def test_a_mapping_names_the_picture_by_document_or_index(
    name: str | None, mapping: dict[str, str], picture: str, tmp_path: Path
):
    found = read(tmp_path, [document("0", PAIRS[:1]), document(name, PAIRS[:1])], mapping={"0": "0.png", **mapping})
    assert found[1].images == (picture,)


def test_a_document_that_no_mapping_names_is_refused(tmp_path: Path):
    (finding,) = read(tmp_path, [document("scan 1", PAIRS)], mapping={"scan 2": "2.png"})
    assert finding.kind is Kind.REFUSED
    assert finding.message == "dataset.ubiai.documents has no picture for it, neither under 'scan 1' nor '0'"


def test_a_document_without_a_name_needs_a_mapping(tmp_path: Path):
    (finding,) = read(tmp_path, [document(None, PAIRS)])
    assert finding.kind is Kind.REFUSED
    assert "name that file in dataset.ubiai.documents" in finding.message


BAD_DOCUMENTS: dict[str, tuple[Any, str, str]] = {
    "null": (None, "", "the entry: Input should be a valid dictionary"),
    "no relations": ({"tokens": []}, "", "relations is missing"),
    "entities only": ({"document": "x", "annotation": []}, "", "is of UBIAI's form without relations"),
    "tokens is an object": ({"tokens": {}, "relations": []}, "", "tokens: Input should be a valid list"),
    "a span without place": (
        {"tokens": [{"text": "x", "entityLabel": "Q"}], "relations": []}, "", "tokens[0].token_start is missing"),
    "a place that is a text": (
        {"tokens": [span("x", "0", "QUESTION")], "relations": []}, "", "tokens[0].token_start: Input should"),
    "a relation without child": (
        {"tokens": [], "relations": [{"head": 1, "relationLabel": "LINK"}]}, "", "relations[0].child is missing"),
    "a name that is a number": (document("a.png", PAIRS, documentName=5), "", "documentName: Input should be"),
    "a head that is no span": (linked(link(3, 20)), ".relations[0]", "head is 3, which is no span's token_start"),
    "a child that is no span": (linked(link(0, 99)), ".relations[0]", "child is 99, which is no span's token_start"),
    "a place of two spans": (
        linked(link(0, 5), spans=[span("Q", 0, "QUESTION"), span("R", 0, "QUESTION"), span("A", 5, "ANSWER")]),
        ".relations[0]", "head is 0, where 2 questions or answers begin"),
    "an empty question": (document("a.png", [(" ", "A")]), ".relations[0]", "the question is empty"),
    "an empty answer": (document("a.png", [("Q", "\n")]), ".relations[0]", "the answer is empty"),
    "a picture's marker": (document("a.png", [("Q", "<image>")]), ".relations[0]", "the answer contains <image>"),
    "half a surrogate pair": (document("a.png", [("Q", "\ud800")]), ".relations[0]", "half a surrogate pair"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_DOCUMENTS)
def test_a_wrong_document_is_named_with_what_is_wrong(name: str, tmp_path: Path):
    entry, part, message = BAD_DOCUMENTS[name]
    found = read(tmp_path, [document("a.png", PAIRS), entry])
    refused = [item for item in found if isinstance(item, Finding) and item.kind is Kind.REFUSED]
    assert [item.where for item in refused] == [f"export.json[1]{part}"]
    assert message in refused[0].message


def test_an_export_without_a_single_pair_says_which_labels_it_has(tmp_path: Path):
    found = read(tmp_path, [linked(link(0, 20, "ANSWERED_BY"))])
    assert told(found)[-1] == (Kind.REFUSED, "export.json")
    message = found[-1].message
    assert "no relation 'LINK' between 'QUESTION' and 'ANSWER'" in message
    assert "relation 'ANSWERED_BY'" in message
    assert "entity 'HEADER'" in message


def test_question_and_answer_label_must_differ(tmp_path: Path):
    (finding,) = read(tmp_path, [document("a.png", PAIRS)], answer_label="QUESTION")
    assert "questionLabel and answerLabel are both 'QUESTION'" in finding.message


@pytest.mark.parametrize(("mapping", "message"), [
    ([], "Input should be a valid dictionary"), ({"a.png": 5}, "a.png: Input should be a valid string (is 5)"),
])  # fmt: skip
def test_a_wrong_mapping_is_named(mapping: Any, message: str, tmp_path: Path):
    (finding,) = read(tmp_path, [document("a.png", PAIRS)], mapping=mapping)
    assert "dataset.ubiai.documents: map.json" in finding.message
    assert message in finding.message


def test_a_mapping_that_is_no_json_says_where(tmp_path: Path):
    write_json(tmp_path / "e.json", [])
    (tmp_path / "map.json").write_text("{\n'a'")
    (finding,) = read_ubiai(tmp_path / "e.json", "e.json", Ubiai(documents="map.json"), tmp_path / "map.json")
    assert (
        "map.json is not JSON: Expecting property name enclosed in double quotes at line 2, column 1" in finding.message
    )


@pytest.mark.parametrize("content", [{}, "x", 5])
def test_the_file_must_hold_a_list(content: Any, tmp_path: Path):
    (finding,) = read(tmp_path, content)
    assert "must be a list of documents" in finding.message
