"""A document of a UBIAI export, whichever of its JSON shapes it has.

With relations: ``{documentName, document, tokens: [{text, start, end, token_start, token_end, entityLabel}],
relations: [{head, child, relationLabel}]}``, where ``tokens`` are the labelled spans and ``head`` and ``child`` are
spans' ``token_start``. A variant gives a span several ranges in ``index``; head and child then lie in one of them.
Entities only: ``{document, annotation: [{start, end, label}]}``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llava_trainer.data.json_file import describe_mismatch
from llava_trainer.data.recognition import looks_like, tell_fields


class DocumentError(ValueError):
    """A document that cannot be read; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A labelled piece of a document.

    Attributes:
        label: its label.
        text: what it says, as in the export.
        ranges: where it stands, first and last place, both inclusive; in the unit that relations count in.
    """

    label: str
    text: str
    ranges: tuple[tuple[int, int], ...] = ()

    @property
    def start(self) -> int:
        """Where it begins."""
        return self.ranges[0][0] if self.ranges else -1

    def contains(self, place: int) -> bool:
        """Whether one of its ranges holds that place."""
        return any(first <= place <= last for first, last in self.ranges)


@dataclass(frozen=True, kw_only=True, slots=True)
class Relation:
    """A relation between the spans that ``head`` and ``child`` point to."""

    label: str
    head: int
    child: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """What is labelled in one document; ``name`` is that of its image, unless a mapping says otherwise."""

    name: str | None
    spans: tuple[Span, ...]
    relations: tuple[Relation, ...] = ()


class _Range(BaseModel):
    model_config = ConfigDict(strict=True)

    start: int
    end: int


class _Token(BaseModel):
    model_config = ConfigDict(strict=True)

    text: str | None = None
    start: int | None = None
    end: int | None = None
    token_start: int | None = None
    token_end: int | None = None
    index: list[list[int] | _Range] | None = None
    label: str = Field(alias="entityLabel")


class _Relation(BaseModel):
    model_config = ConfigDict(strict=True)

    head: int
    child: int
    label: str = Field(alias="relationLabel")


class _WithRelations(BaseModel):
    model_config = ConfigDict(strict=True)

    name: str | None = Field(default=None, alias="documentName")
    document: str = ""
    tokens: list[_Token]
    relations: list[_Relation] | None = None


class _Annotation(BaseModel):
    model_config = ConfigDict(strict=True)

    start: int
    end: int
    label: str
    text: str | None = None


class _EntitiesOnly(BaseModel):
    model_config = ConfigDict(strict=True)

    name: str | None = Field(default=None, alias="documentName")
    document: str
    annotation: list[_Annotation]


def read_document(entry: Any) -> Document:
    """Read one entry of an export; its shape is told from what it holds.

    Raises:
        DocumentError: it has neither shape, or a field of it is wrong.
    """
    if isinstance(entry, dict) and not {"tokens", "annotation"} & entry.keys():
        raise DocumentError(
            "is of none of UBIAI's forms: neither tokens (with relations) nor annotation (entities only) are among its "
            f"fields, which are {tell_fields(entry)}{looks_like(entry, 'ubiai')}"
        )
    try:
        if isinstance(entry, dict) and "tokens" not in entry:
            return _read_entities(_EntitiesOnly.model_validate(entry))
        return _read_tokens(_WithRelations.model_validate(entry))
    except ValidationError as error:
        raise DocumentError(describe_mismatch(error)) from error


def _read_entities(found: _EntitiesOnly) -> Document:
    return Document(
        name=found.name,
        spans=tuple(
            Span(
                label=entity.label,
                text=_text_of(entity.text, found.document, entity.start, entity.end, f"annotation[{index}]"),
                ranges=((entity.start, entity.end - 1),),
            )
            for index, entity in enumerate(found.annotation)
        ),
    )


def _read_tokens(found: _WithRelations) -> Document:
    spans = []
    for index, token in enumerate(found.tokens):
        where = f"tokens[{index}]"
        ranges = tuple(_ranges_of(token, where))
        spans.append(
            Span(
                label=token.label,
                text=_text_of(token.text, found.document, token.start, token.end, where),
                ranges=ranges,
            )
        )
    relations = tuple(
        Relation(label=relation.label, head=relation.head, child=relation.child) for relation in found.relations or ()
    )
    return Document(name=found.name, spans=tuple(spans), relations=relations)


def _ranges_of(token: _Token, where: str) -> Iterator[tuple[int, int]]:
    if token.token_start is not None:
        yield token.token_start, token.token_start if token.token_end is None else token.token_end
    elif not token.index:
        raise DocumentError(f"{where}.token_start is missing, and so is index: export the spans' places")
    for part in token.index or ():
        pair = (part.start, part.end) if isinstance(part, _Range) else tuple(part)
        if len(pair) != 2 or pair[0] > pair[1]:
            raise DocumentError(
                f"{where}.index must hold ranges of a first and a last place (holds {list(pair)!r:.60})"
            )
        yield pair[0], pair[1]


def _text_of(text: str | None, document: str, start: int | None, end: int | None, where: str) -> str:
    if text is not None:
        return text
    if start is None or end is None:
        raise DocumentError(f"{where}.text is missing, and so are start and end, by which document would tell it")
    if not 0 <= start < end <= len(document):
        raise DocumentError(f"{where} is from {start} to {end}, but document has {len(document):,} characters")
    return document[start:end]
