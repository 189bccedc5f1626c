"""LLaVA's conversations to samples: a JSON list, or JSON lines.

Entries are ``{id, image, conversations: [{from: human|gpt, value}]}``, where ``image`` is a path, a list of paths, or
missing; ``references`` may name further right answers to the last question, ``question_type`` its kind, and ``group``
what the entry belongs to. Every ``<image>`` is taken out of its turn; the template puts it back where the turn begins.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llava_trainer.data.entries import Entry, ReadingPosition, read_entries
from llava_trainer.data.findings import Finding, Kind, noted, refused
from llava_trainer.data.json_file import JsonFileError, describe_mismatch, is_writable
from llava_trainer.data.samples import Role, Sample, Source, Turn
from llava_trainer.data.template import IMAGE_MARKER

_ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant"}


class _Turn(BaseModel):
    model_config = ConfigDict(strict=True)

    speaker: str = Field(alias="from")
    value: str


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True)

    id: Any = None
    image: Any = None
    conversations: list[_Turn]
    references: list[str] | None = None
    question_type: str | None = None
    group: Any = None


class _EntryError(ValueError):
    """An entry that cannot be trained on."""


def read_conversations(path: Path, name: str, position: ReadingPosition) -> Iterator[Sample | Finding]:
    """Read an export, entry by entry.

    Args:
        path: the file.
        name: what messages call it.
        position: kept up to date.

    Yields:
        A sample, or what is wrong with an entry or the file, in the order of the file.
    """
    try:
        for entry in read_entries(path, position):
            yield from _read_entry(entry, Source(file=name, index=entry.index))
    except JsonFileError as error:
        yield refused(name, str(error))


def _read_entry(entry: Entry, source: Source) -> Iterator[Sample | Finding]:
    if isinstance(entry.value, JsonFileError):
        yield refused(source, str(entry.value))
        return
    try:
        yield from _convert(_Entry.model_validate(entry.value), source)
    except ValidationError as error:
        yield refused(source, describe_mismatch(error) + _hint_at_format(entry.value))
    except _EntryError as error:
        yield refused(source, str(error))


def _hint_at_format(entry: Any) -> str:
    if isinstance(entry, dict) and "conversations" not in entry and {"tokens", "annotation"} & entry.keys():
        return "; it looks like UBIAI's: set dataset.format to ubiai"
    return ""


def _convert(entry: _Entry, source: Source) -> Iterator[Sample | Finding]:
    turns = entry.conversations
    images = _images_of(entry.image)
    opens_with_answer = bool(turns) and turns[0].speaker == "gpt"
    if opens_with_answer:
        if IMAGE_MARKER in turns[0].value:
            raise _EntryError(f"conversations[0] is an opening answer with {IMAGE_MARKER}: move it to a question")
        turns = turns[1:]
    _check_alternation(turns)
    image_turns = _find_image_turns(turns, num_images=len(images))
    sample = Sample(
        id=_name_of(entry.id, "id") or str(source),
        images=images,
        turns=tuple(
            Turn(role=_ROLES[turn.speaker], text=turn.value.replace(IMAGE_MARKER, "").strip()) for turn in turns
        ),
        source=source,
        image_turns=image_turns,
        references=tuple(text.strip() for text in entry.references or ()),
        question_type=(entry.question_type or "").strip(),
        group=_name_of(entry.group, "group").strip(),
    )
    texts = (turn.text for turn in sample.turns)
    if not is_writable(sample.id, sample.question_type, sample.group, *images, *sample.references, *texts):
        raise _EntryError("a text holds half a surrogate pair (a \\ud800 to \\udfff alone): correct the encoding")
    if opens_with_answer:
        yield noted(Kind.OPENING_ANSWER, source, "the conversation opens with an answer, which is left out")
    yield from _note_blanks(sample)
    yield sample


def _note_blanks(sample: Sample) -> Iterator[Finding]:
    """A blank answer teaches nothing, as in LLaVA; a question may be blank where an image is shown."""
    for index, turn in enumerate(sample.turns):
        if turn.text:
            continue
        if turn.role == "assistant":
            yield noted(Kind.BLANK_ANSWER, sample.source, f"answer {index // 2 + 1} is blank")
        elif index not in sample.image_turns:
            raise _EntryError(f"question {index // 2 + 1} is empty")


def _images_of(image: Any) -> tuple[str, ...]:
    images = image if isinstance(image, list) else [] if image is None else [image]
    for path in images:
        if not isinstance(path, str) or not path:
            raise _EntryError(f"image must be a path (is {path!r:.60})")
    return tuple(images)


def _name_of(given: Any, field: str) -> str:
    if given is None:
        return ""
    if isinstance(given, str | int) and not isinstance(given, bool):
        return str(given)
    raise _EntryError(f"{field} must be a string or a whole number (is {given!r:.60})")


def _check_alternation(turns: list[_Turn]) -> None:
    if not turns:
        raise _EntryError("holds no question")
    for index, turn in enumerate(turns):
        if turn.speaker not in _ROLES:
            raise _EntryError(f"speaker {turn.speaker!r:.60} is neither 'human' nor 'gpt'")
        expected = ("human", "gpt")[index % 2]
        if turn.speaker != expected:
            raise _EntryError(f"'human' and 'gpt' must take turns, but {turn.speaker!r} speaks twice in a row")
    if len(turns) % 2:
        raise _EntryError("ends with a question that has no answer")


def _find_image_turns(turns: list[_Turn], *, num_images: int) -> tuple[int, ...]:
    """Index of the turn that shows each image."""
    shown = [index for index, turn in enumerate(turns) for _ in range(turn.value.count(IMAGE_MARKER))]
    if len(shown) != num_images:
        fix = "write one for each, in the question that shows it" if num_images else "name the picture in 'image'"
        raise _EntryError(f"{IMAGE_MARKER} stands {len(shown)} times for {num_images} pictures: {fix}")
    if any(turns[index].speaker != "human" for index in shown):
        raise _EntryError(f"{IMAGE_MARKER} stands in an answer: move it to the question that shows the picture")
    return tuple(shown)
