"""UBIAI exports in every form: which links and labels become samples, and what is told about the rest."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from llava_api.spec import Ubiai
from llava_trainer.data.entries import ReadingPosition
from llava_trainer.data.findings import Finding, Kind
from llava_trainer.data.samples import Sample, Source, Turn
from llava_trainer.data.ubiai import read_ubiai
from llava_trainer.files import resolve_inside
from tests.trainer.exports import document, write_json

PAIRS = [("How much?", "9.00"), ("When was it?", "Today.")]


def read(tmp_path: Path, content: Any, *, mapping: Any = None, **settings: Any) -> list[Sample | Finding]:
    write_json(tmp_path / "export.json", content)
    if mapping is not None:
        write_json(tmp_path / "map.json", mapping)
        settings["documents"] = "map.json"
    return read_file(tmp_path, "export.json", **{"samples": "pair", **settings})


def read_file(folder: Path, name: str, **settings: Any) -> list[Sample | Finding]:
    def resolve(relative: str) -> Path:
        return resolve_inside(folder, folder, relative)

    return list(read_ubiai(name, Ubiai.model_validate(settings), resolve, ReadingPosition()))


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
            id="a.png:0-2", images=("a.png",), image_turns=(0,), group="a.png",
            turns=(Turn(role="user", text="How much?"), Turn(role="assistant", text="9.00")),
            source=Source(file="export.json", index=0, part=".relations[0]"),
        ),
        Sample(
            id="a.png:3-6", images=("a.png",), image_turns=(0,), group="a.png",
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
        [],
        [(Kind.CYCLE, "export.json[0]"), (Kind.EMPTY_DOCUMENT, "export.json[0]"), (Kind.REFUSED, "export.json")],
    ),
}


@pytest.mark.parametrize("name", REPORTED)
def test_what_is_not_one_question_and_one_answer_is_told(name: str, tmp_path: Path):
    links, pairs, findings = REPORTED[name]
    found = read(tmp_path, [linked(*links)])
    assert samples_of(found) == pairs
    assert told(found) == findings


def test_a_document_without_pairs_is_told_and_needs_no_image(tmp_path: Path):
    empty = {"tokens": [], "relations": []}
    found = read(tmp_path, [empty, document("a.png", PAIRS)])
    assert told(found) == [(Kind.EMPTY_DOCUMENT, "export.json[0]")]
    assert len(samples_of(found)) == 2


@pytest.mark.parametrize(("name", "mapping", "image"), [
    ("scan 1", {"scan 1": "x/1.png"}, "x/1.png"),
    (None, {"1": "x/1.png"}, "x/1.png"),
    ("scan 1", {"1": "x/1.png"}, "x/1.png"),
    ("scan 1", {"scan 1": "x/1.png", "1": "x/2.png"}, "x/1.png"),
])  # fmt: skip
def test_a_mapping_names_the_image_by_document_or_index(
    name: str | None, mapping: dict[str, str], image: str, tmp_path: Path
):
    found = read(tmp_path, [document("0", PAIRS[:1]), document(name, PAIRS[:1])], mapping={"0": "0.png", **mapping})
    assert found[1].images == (image,)


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
    "a form of its own": (
        {"text": "x", "labels": []}, "", "is of none of UBIAI's forms: neither tokens (with relations) nor annotation "
        "(entities only) are among its fields, which are labels, text"),
    "LLaVA's form": ({"conversations": []}, "", "it looks like LLaVA's: set dataset.format to llava"),
    "a place outside the document": (
        {"document": "abc", "annotation": [{"start": 1, "end": 4, "label": "X"}]}, "",
        "annotation[0] is from 1 to 4, but document has 3 characters"),
    "an annotation without label": (
        {"document": "abc", "annotation": [{"start": 0, "end": 1}]}, "", "annotation[0].label is missing"),
    "a span without text": (
        {"tokens": [{"entityLabel": "Q", "token_start": 0}], "relations": []}, "", "tokens[0].text is missing"),
    "a range that is none": (
        {"tokens": [span("x", 0, "Q") | {"index": [[1]]}]}, "", "tokens[0].index must hold ranges"),
    "a range that is turned": (
        {"tokens": [span("x", 0, "Q") | {"index": [[5, 1]]}]}, "", "tokens[0].index must hold ranges"),
    "tokens is an object": ({"tokens": {}, "relations": []}, "", "tokens: Input should be a valid list"),
    "a span without place": (
        {"tokens": [{"text": "x", "entityLabel": "Q"}], "relations": []}, "", "tokens[0].token_start is missing"),
    "a place that is a text": (
        {"tokens": [span("x", "0", "QUESTION")], "relations": []}, "", "tokens[0].token_start: Input should"),
    "a relation without child": (
        {"tokens": [], "relations": [{"head": 1, "relationLabel": "LINK"}]}, "", "relations[0].child is missing"),
    "a name that is a number": (document("a.png", PAIRS, documentName=5), "", "documentName: Input should be"),
    "a head that is no span": (linked(link(3, 20)), ".relations[0]", "head is 3, where no labelled span begins"),
    "a child that is no span": (linked(link(0, 99)), ".relations[0]", "child is 99, where no labelled span begins"),
    "a place of two spans": (
        linked(link(0, 5), spans=[span("Q", 0, "QUESTION"), span("R", 0, "QUESTION"), span("A", 5, "ANSWER")]),
        ".relations[0]", "head is 0, where 2 questions or answers stand"),
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
    (finding,) = read_file(tmp_path, "e.json", documents="map.json")
    assert (
        "map.json is not JSON: Expecting property name enclosed in double quotes at line 2, column 1" in finding.message
    )


@pytest.mark.parametrize(("content", "message"), [
    ('"x"', "is of none of UBIAI's forms"), ("5", "is of none of UBIAI's forms"), ("", "is of none of UBIAI's forms"),
    ("just text", "is of none of UBIAI's forms"), ("[1", "is not JSON: Expecting ',' delimiter at line 1, column 3"),
])  # fmt: skip
def test_a_file_of_no_known_form_is_refused(content: str, message: str, tmp_path: Path):
    (tmp_path / "e.json").write_text(content)
    assert message in read_file(tmp_path, "e.json")[-1].message


def test_one_conversation_a_document_holds_all_of_its_questions(tmp_path: Path):
    (sample,) = read(tmp_path, [document("a.png", PAIRS)], samples="document")
    assert sample == Sample(
        id="a.png",
        images=("a.png",),
        turns=tuple(
            Turn(role=role, text=text) for pair in PAIRS for role, text in zip(("user", "assistant"), pair, strict=True)
        ),
        source=Source(file="export.json", index=0),
        image_turns=(0,),
        group="a.png",
    )


def test_an_unusable_pair_does_not_cost_the_document_s_others(tmp_path: Path):
    refused, sample = read(tmp_path, [document("a.png", [("Q", "A"), ("R", " ")])], samples="document")
    assert refused.where == "export.json[0].relations[1]"
    assert [turn.text for turn in sample.turns] == ["Q", "A"]


def test_json_lines_are_read_as_a_list_is(tmp_path: Path):
    documents = [document("a.png", PAIRS), document("b.png", PAIRS)]
    (tmp_path / "export.json").write_text("\n".join(json.dumps(entry) for entry in documents))
    assert read_file(tmp_path, "export.json") == read(tmp_path, documents, samples="document")


def ranged(text: str, label: str, *ranges: Any) -> dict[str, Any]:
    return {"text": text, "entityLabel": label, "index": list(ranges)}


@pytest.mark.parametrize(("head", "child"), [(0, 40), (2, 41), (21, 50), (22, 40)])
def test_a_span_of_several_ranges_is_found_by_any_place_in_them(head: int, child: int, tmp_path: Path):
    spans = [
        ranged("What is it?", "QUESTION", [0, 2], [20, 22]), ranged("A cat.", "ANSWER", [40, 41], [50, 50]),
        ranged("Other", "ANSWER", [60, 61]),
    ]  # fmt: skip
    content = [{"documentName": "a.png", "document": "", "tokens": spans, "relations": [link(head, child)]}]
    found = read(tmp_path, content)
    assert samples_of(found) == [("What is it?", "A cat.")]
    assert told(found) == [(Kind.UNLINKED_ANSWER, "export.json[0]")]


def test_ranges_may_be_objects(tmp_path: Path):
    spans = [
        ranged("Q", "QUESTION", {"start": 0, "end": 2}, {"start": 5, "end": 5}),
        ranged("A", "ANSWER", {"start": 3, "end": 4}),
    ]
    assert samples_of(read(tmp_path, [linked(link(5, 4), spans=spans)])) == [("Q", "A")]


def test_a_place_in_two_spans_is_not_guessed(tmp_path: Path):
    spans = [ranged("Q", "QUESTION", [0, 5]), ranged("A", "ANSWER", [3, 9])]
    found = read(tmp_path, [linked(link(0, 4), spans=spans)])
    assert "child is 4, where 2 questions or answers stand" in found[0].message


ENTITIES = "Total 9.00\nRM 9.00\nShop: Books"


def entities(*marked: tuple[str, int], name: str | None = "a.png", document: str = ENTITIES) -> dict[str, Any]:
    """A document of which the text at each place is labelled."""
    annotation = [
        {"start": start, "end": start + length, "label": label}
        for label, start, length in ((label, start, 4 if label == "TOTAL" else 5) for label, start in marked)
    ]
    entry: dict[str, Any] = {"document": document, "annotation": annotation}
    return entry | ({"documentName": name} if name else {})


QUESTIONS = {"TOTAL": "What is the total?", "SHOP": "Which shop?"}


def test_labels_are_asked_for_where_there_are_no_relations(tmp_path: Path):
    found = read(tmp_path, [entities(("SHOP", 25), ("TOTAL", 6), ("TOTAL", 14))], questions=QUESTIONS)
    assert samples_of(found) == [("What is the total?", "9.00"), ("Which shop?", "Books")]
    assert [item.id for item in found if isinstance(item, Sample)] == ["a.png:TOTAL", "a.png:SHOP"]
    assert next(str(item.source) for item in found if isinstance(item, Sample)) == "export.json[0].TOTAL"


def test_a_label_with_several_texts_is_told_and_not_guessed(tmp_path: Path):
    found = read(tmp_path, [entities(("SHOP", 25), ("TOTAL", 6), ("TOTAL", 0))], questions=QUESTIONS)
    assert samples_of(found) == [("Which shop?", "Books")]
    assert told(found) == [(Kind.SEVERAL_VALUES, "export.json[0]")]
    assert "TOTAL: '9.00', 'Tota'" in found[0].message


def test_a_question_for_a_label_that_is_nowhere_is_told(tmp_path: Path):
    found = read(tmp_path, [entities(("SHOP", 25))], questions=QUESTIONS)
    assert told(found) == [(Kind.UNUSED_QUESTION, "export.json")]
    assert found[-1].message == "TOTAL"


def test_an_export_without_relations_or_questions_is_refused_naming_its_labels(tmp_path: Path):
    found = read(tmp_path, [entities(("SHOP", 25), ("TOTAL", 6))])
    assert told(found)[-1] == (Kind.REFUSED, "export.json")
    assert "labels in the export: entity 'SHOP', entity 'TOTAL'" in found[-1].message
    assert "name a question for each label in dataset.ubiai.questions" in found[-1].message


def test_questions_of_labels_join_linked_ones_and_leave_linked_answers_alone(tmp_path: Path):
    content = document("a.png", PAIRS)
    content["tokens"].append(span("9.00", 90, "TOTAL"))
    (sample,) = read(tmp_path, [content], samples="document", questions={"TOTAL": "The total?", "ANSWER": "What else?"})
    assert [turn.text for turn in sample.turns] == ["How much?", "9.00", "When was it?", "Today.", "The total?", "9.00"]


def ocr(folder: Path, *lines: tuple[str, str, str] | None, size: str = "300 400") -> Path:
    """An archive of words, each with its tag and ``box|image``; None is a blank line."""
    folder.mkdir(exist_ok=True)
    words, boxes, images = [], [], []
    for line in lines:
        word, tag, (box, image) = ("", "", ("", "")) if line is None else (line[0], line[1], line[2].split("|"))
        words.append(f"{word}\t{tag}" if line else "")
        boxes.append(f"{word}\t{box}" if line else "")
        images.append(f"{word}\t{box}\t{size}\t{image}" if line else "")
    for name, content in (("e.txt", words), ("e_box.txt", boxes), ("e_image.txt", images)):
        (folder / name).write_text("\n".join(content) + "\n", encoding="utf-8")
    return folder


A, B = "1 2 3 4|a.png", "1 2 3 4|b.png"


def test_an_ocr_archive_is_read_document_by_document(tmp_path: Path):
    folder = ocr(
        tmp_path, ("Shop:", "O", A), ("Book", "B-SHOP", A), ("Größe", "I-SHOP", A), ("9.00", "B-TOTAL", A), None,
        ("12", "B-TOTAL", B), ("13", "O", B), ("12", "B-TOTAL", B), None, None, ("[", "O", A), ("7", "B-TOTAL", A),
    )  # fmt: skip
    found = read_file(folder, "e.txt", questions=QUESTIONS)
    assert [(item.id, item.images, tuple(turn.text for turn in item.turns)) for item in found] == [
        ("a.png", ("a.png",), ("What is the total?", "9.00", "Which shop?", "Book Größe")),
        ("b.png", ("b.png",), ("What is the total?", "12")),
        ("a.png", ("a.png",), ("What is the total?", "7")),
    ]
    assert [str(item.source) for item in found] == ["e.txt[0]", "e.txt[1]", "e.txt[2]"]


def test_blocks_about_one_image_are_one_document_and_no_entity_runs_over_a_blank_line(tmp_path: Path):
    folder = ocr(tmp_path, ("Book", "B-SHOP", A), None, ("Shop", "I-SHOP", A), ("9", "B-TOTAL", A))
    found = read_file(folder, "e.txt", questions=QUESTIONS)
    assert told(found) == [(Kind.ORPHAN_TAG, "e.txt[0]"), (Kind.SEVERAL_VALUES, "e.txt[0]")]
    assert samples_of(found) == [("What is the total?", "9")]


@pytest.mark.parametrize("box", ["30 2 3 4", "1 20 3 4", "-1 2 3 4", "1 2 -3 -4", "1.5 2 0.5 4"])
def test_swapped_corners_and_negative_boxes_are_told_and_do_no_harm(box: str, tmp_path: Path):
    folder = ocr(tmp_path, ("9", "B-TOTAL", f"{box}|a.png"), ("x", "O", A))
    found = read_file(folder, "e.txt", questions=QUESTIONS)
    assert samples_of(found) == [("What is the total?", "9")]
    assert (Kind.BOX_REPAIRED, "e.txt[0]") in told(found)


def test_line_ends_of_windows_and_a_byte_order_mark_do_not_matter(tmp_path: Path):
    folder = ocr(tmp_path, ("9", "B-TOTAL", A), None)
    for path in folder.glob("*.txt"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert samples_of(read_file(folder, "e.txt", questions=QUESTIONS)) == [("What is the total?", "9")]


def test_an_archive_without_questions_is_refused_naming_its_labels(tmp_path: Path):
    found = read_file(ocr(tmp_path, ("9", "B-TOTAL", A)), "e.txt")
    assert found[-1].kind is Kind.REFUSED
    assert "labels in the export: entity 'TOTAL'" in found[-1].message


BAD_LINES: dict[str, tuple[tuple[str, str, str], str]] = {
    "a tag of its own": (("9", "TOTAL", A), "line 2: tag 'TOTAL' is none of O, B-LABEL and I-LABEL"),
    "a tag without label": (("9", "B-", A), "line 2: tag 'B-' is none of"),
    "a box of three": (("9", "O", "1 2 3|a.png"), "line 2: '1 2 3' is no box x0 y0 x1 y1"),
    "a box of words": (("9", "O", "a b c d|a.png"), "line 2: 'a b c d' is no box"),
    "an endless box": (("9", "O", "1 2 3 inf|a.png"), "line 2: '1 2 3 inf' is no box"),
    "no picture": (("9", "O", "1 2 3 4|"), "line 2: the picture's name is missing"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_wrong_line_is_named(name: str, tmp_path: Path):
    line, message = BAD_LINES[name]
    found = read_file(ocr(tmp_path, ("9", "B-TOTAL", A), line), "e.txt", questions=QUESTIONS)
    assert found[-1].kind is Kind.REFUSED
    assert message in found[-1].message


@pytest.mark.parametrize(("file", "content", "message"), [
    ("e_box.txt", "9\t1 2 3 4\n\n9\t1 2 3 4\n", "line 2 does not stand in all of e.txt, e_box.txt and e_image.txt"),
    ("e_box.txt", "9\t1 2 3 4\n", "line 2 does not stand in all of"),
    ("e_box.txt", "9\t1 2 3 4\n8\t1 2 3 4\n", "line 2: the files are about different words: '9', '8' and '9'"),
    ("e_box.txt", "9\t1 2 3 4\n9 1 2 3 4\n", "line 2: '9 1 2 3 4' must be a word and its box, separated by tabs"),
    ("e_box.txt", b"9\t1 2 3 4\n\xff\t1 2 3 4\n", "line 2 of e_box.txt is not UTF-8"),
    ("e_image.txt", "9\t1 2 3 4\t0 4\ta.png\n", "line 1: picture size '0 4' must be positive"),
    ("e_image.txt", None, "is an OCR archive, but e_image.txt does not exist"),
])  # fmt: skip
def test_files_that_do_not_fit_together_are_refused(
    file: str, content: str | bytes | None, message: str, tmp_path: Path
):
    folder = ocr(tmp_path, ("9", "B-TOTAL", A), ("9", "O", A))
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in read_file(folder, "e.txt", questions=QUESTIONS)[-1].message


def test_the_file_with_the_words_is_asked_for(tmp_path: Path):
    (finding,) = read_file(ocr(tmp_path, ("9", "B-TOTAL", A)), "e_box.txt", questions=QUESTIONS)
    assert "is one of the files that belong to an OCR archive: name e.txt in dataset.file" in finding.message


def test_the_three_forms_of_one_dataset_give_the_same_samples(tmp_path: Path):
    """Words and answers are drawn; relations, entities and OCR tell the same, each in its way."""
    rng = random.Random(0)
    related, marked, lines = [], [], []
    for index in range(20):
        total, image = f"{rng.randrange(1, 999)}.{rng.randrange(100):02}", f"{index}.png"
        related.append(document(image, [("What is the total?", total)]))
        text = f"Sum {total} Thanks"
        marked.append({"documentName": image, "document": text,
                       "annotation": [{"start": 4, "end": 4 + len(total), "label": "TOTAL"}]})  # fmt: skip
        place = f"1 2 3 4|{image}"
        lines += [("Sum", "O", place), (total, "B-TOTAL", place), ("Thanks", "O", place), None]
    ocr(tmp_path, *lines)
    found = [
        read(tmp_path, related, samples="document"),
        read(tmp_path, marked, samples="document", questions=QUESTIONS),
        read_file(tmp_path, "e.txt", questions=QUESTIONS),
    ]
    samples = [[(s.id, s.images, s.turns) for s in form if isinstance(s, Sample)] for form in found]
    assert len(samples[0]) == 20
    assert samples[0] == samples[1] == samples[2]
