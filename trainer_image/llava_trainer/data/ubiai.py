"""A UBIAI export with relations to samples: one sample for each question that is linked to an answer.

A list of ``{documentName, document, tokens: [{text, token_start, entityLabel}], relations: [{head, child,
relationLabel}]}``, where ``tokens`` are the labelled spans and ``head`` and ``child`` are spans' ``token_start``.
No export carries pictures: which one a document is about is told by ``documentName`` or by a mapping file. What the
labels do not say is never guessed: it is left out, counted and told.
"""

from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from llava_api.spec import Ubiai
from llava_trainer.data.findings import Finding, Kind, noted, refused
from llava_trainer.data.json_file import JsonFileError, describe_mismatch, is_writable, read_json
from llava_trainer.data.samples import Sample, Source, Turn
from llava_trainer.data.template import IMAGE_MARKER

_LABELS_SHOWN = 10


class _Span(BaseModel):
    model_config = ConfigDict(strict=True)

    text: str
    token_start: int
    label: str = Field(alias="entityLabel")


class _Relation(BaseModel):
    model_config = ConfigDict(strict=True)

    head: int
    child: int
    label: str = Field(alias="relationLabel")


class _Document(BaseModel):
    model_config = ConfigDict(strict=True)

    name: str | None = Field(default=None, alias="documentName")
    spans: list[_Span] = Field(alias="tokens")
    relations: list[_Relation]


@dataclass(frozen=True, kw_only=True)
class _Link:
    """A relation that joins a question and an answer; ``index`` is its place in the document's relations."""

    index: int
    question: _Span
    answer: _Span


_MAPPING = TypeAdapter(dict[str, str], config=ConfigDict(strict=True))


def read_ubiai(path: Path, name: str, settings: Ubiai, mapping_file: Path | None) -> Iterator[Sample | Finding]:
    """Read an export, document by document.

    Args:
        path: the file.
        name: what messages call it.
        settings: labels of questions, answers and their relation.
        mapping_file: JSON object from documentName, or the document's index, to its picture's path; without it,
            documentName is that path.

    Yields:
        A sample, or what was found about a document or the file, in the order of the file.
    """
    try:
        documents = read_json(path)
        mapping = None if mapping_file is None else _read_mapping(mapping_file, str(settings.documents))
    except JsonFileError as error:
        yield refused(name, str(error))
        return
    if not isinstance(documents, list):
        yield refused(name, f"must be a list of documents, not {type(documents).__name__}")
        return
    if settings.question_label == settings.answer_label:
        yield refused(name, f"dataset.ubiai.questionLabel and answerLabel are both {settings.answer_label!r}: they "
                            "must differ, or nobody can tell which end of a link is the question")  # fmt: skip
        return
    labels: Counter[str] = Counter()
    num_links = 0
    for index, entry in enumerate(documents):
        source = Source(file=name, index=index)
        try:
            document = _Document.model_validate(entry)
        except ValidationError as error:
            yield refused(source, _describe_shape(entry, error))
            continue
        labels.update(f"entity {span.label!r}" for span in document.spans)
        labels.update(f"relation {relation.label!r}" for relation in document.relations)
        links = yield from _read_links(document, source, settings)
        num_links += len(links)
        yield from _samples_of(document, links, source, mapping)
    if documents and num_links == 0:
        yield refused(name, _describe_no_links(labels, settings))


def _read_mapping(path: Path, name: str) -> Mapping[str, str]:
    try:
        return _MAPPING.validate_python(read_json(path))
    except JsonFileError as error:
        raise JsonFileError(f"dataset.ubiai.documents: {name} {error}") from error
    except ValidationError as error:
        raise JsonFileError(f"dataset.ubiai.documents: {name}: {describe_mismatch(error)}") from error


def _read_links(document: _Document, source: Source, settings: Ubiai) -> Generator[Finding, None, list[_Link]]:
    links: dict[tuple[int, int], _Link] = {}
    spans = _SpanIndex(document, settings)
    for index, relation in enumerate(document.relations):
        if relation.label != settings.relation_label:
            continue
        where = Source(file=source.file, index=source.index, part=f".relations[{index}]")
        problem = spans.problem_of(relation)
        if problem:
            yield refused(where, problem)
            continue
        head, child = spans[relation.head], spans[relation.child]
        if (head.label, child.label) == (settings.question_label, settings.answer_label):
            link = _Link(index=index, question=head, answer=child)
        elif (child.label, head.label) == (settings.question_label, settings.answer_label):
            link = _Link(index=index, question=child, answer=head)
        else:
            yield noted(Kind.NOT_A_PAIR, where, f"joins {head.label} and {child.label}")
            continue
        known = links.setdefault((link.question.token_start, link.answer.token_start), link)
        if known is not link:
            yield noted(Kind.LINKED_TWICE, where, f"repeats relations[{known.index}]")
    found = list(links.values())
    yield from _note_spans(document, found, source, settings)
    return found


class _SpanIndex:
    """Spans by ``token_start``. A question or an answer goes before a span of another label on the same token."""

    def __init__(self, document: _Document, settings: Ubiai) -> None:
        wanted = {settings.question_label, settings.answer_label}
        pairs = [span for span in document.spans if span.label in wanted]
        self._spans = {span.token_start: span for span in (*document.spans, *pairs)}
        self._counts = Counter(span.token_start for span in pairs)

    def __getitem__(self, start: int) -> _Span:
        return self._spans[start]

    def problem_of(self, relation: _Relation) -> str | None:
        """Why the relation's ends cannot be told; None if they can."""
        for end, start in (("head", relation.head), ("child", relation.child)):
            if start not in self._spans:
                return f"{end} is {start}, which is no span's token_start"
            if self._counts[start] > 1:
                return f"{end} is {start}, where {self._counts[start]} questions or answers begin"
        return None


def _note_spans(document: _Document, links: list[_Link], source: Source, settings: Ubiai) -> Iterator[Finding]:
    """What the links leave out, or use more than once."""
    questions = Counter(link.question.token_start for link in links)
    answers = Counter(link.answer.token_start for link in links)
    for span in document.spans:
        told = f"{span.text!r:.80} (token_start {span.token_start})"
        if span.label == settings.question_label:
            if questions[span.token_start] == 0:
                yield noted(Kind.UNLINKED_QUESTION, source, told)
            elif questions[span.token_start] > 1:
                yield noted(Kind.SEVERAL_ANSWERS, source, f"{told}: {questions[span.token_start]} answers")
        elif span.label == settings.answer_label:
            if answers[span.token_start] == 0:
                yield noted(Kind.UNLINKED_ANSWER, source, told)
            elif answers[span.token_start] > 1:
                yield noted(Kind.SHARED_ANSWER, source, f"{told}: {answers[span.token_start]} questions")
    if not links:
        yield noted(Kind.EMPTY_DOCUMENT, source, "has no question that is linked to an answer")


def _samples_of(
    document: _Document, links: list[_Link], source: Source, mapping: Mapping[str, str] | None
) -> Iterator[Sample | Finding]:
    if not links:
        return
    picture = _picture_of(document, source, mapping)
    if isinstance(picture, Finding):
        yield picture
        return
    for link in links:
        where = Source(file=source.file, index=source.index, part=f".relations[{link.index}]")
        question, answer = link.question.text.strip(), link.answer.text.strip()
        name = document.name or str(source.index)
        problem = _problem_of(question, answer, name, picture)
        if problem:
            yield refused(where, problem)
            continue
        yield Sample(
            id=f"{name}:{link.question.token_start}-{link.answer.token_start}",
            images=(picture,),
            image_turns=(0,),
            turns=(Turn(role="user", text=question), Turn(role="assistant", text=answer)),
            source=where,
        )


def _problem_of(question: str, answer: str, *others: str) -> str | None:
    for side, text in (("question", question), ("answer", answer)):
        if not text:
            return f"the {side} is empty"
        if IMAGE_MARKER in text:
            return f"the {side} contains {IMAGE_MARKER}, which stands for a picture: take it out"
    if not is_writable(question, answer, *others):
        return "a text holds half a surrogate pair (a \\ud800 to \\udfff alone): correct the encoding"
    return None


def _picture_of(document: _Document, source: Source, mapping: Mapping[str, str] | None) -> str | Finding:
    if mapping is None:
        if document.name:
            return document.name
        return refused(
            source, "has no documentName to find its picture by: map it to one in a file, and name that file in "
                    "dataset.ubiai.documents"
        )  # fmt: skip
    keys = [str(source.index)] if document.name is None else [document.name, str(source.index)]
    for key in keys:
        if mapping.get(key):
            return mapping[key]
    return refused(
        source, f"dataset.ubiai.documents has no picture for it, neither under {' nor '.join(map(repr, keys))}"
    )


def _describe_shape(entry: Any, error: ValidationError) -> str:
    if isinstance(entry, dict) and "annotation" in entry and "relations" not in entry:
        return (
            "is of UBIAI's form without relations (document and annotation): export with relations, which tell which "
            "answer belongs to which question"
        )
    return describe_mismatch(error)


def _describe_no_links(labels: Counter[str], settings: Ubiai) -> str:
    shown = ", ".join(label for label, _ in labels.most_common(_LABELS_SHOWN)) or "none"
    return (
        f"holds no relation {settings.relation_label!r} between {settings.question_label!r} and "
        f"{settings.answer_label!r}; labels in the export: {shown}. Set dataset.ubiai's questionLabel, answerLabel "
        "and relationLabel to the export's"
    )
