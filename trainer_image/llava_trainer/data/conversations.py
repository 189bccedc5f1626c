"""LLaVA's conversations to samples: a JSON list, or JSON lines.

Entries are ``{id, image, conversations: [{from: human|gpt, value}]}``, where ``image`` is a path, a list of paths, or
missing; ``references`` may name further right answers to the last question, ``question_type`` its kind, and ``group``
what the entry belongs to.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llava_trainer.data.dialogue import Dialogue, EntryError, Said, build_sample, name_of, tell
from llava_trainer.data.entries import Entry, ReadingPosition, read_entries
from llava_trainer.data.findings import Finding, refused
from llava_trainer.data.json_file import JsonFileError, describe_mismatch
from llava_trainer.data.recognition import hint_at_format
from llava_trainer.data.samples import Role, Sample, Source

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
        yield from build_sample(_convert(_Entry.model_validate(entry.value)), source)
    except ValidationError as error:
        yield refused(source, describe_mismatch(error) + hint_at_format(entry.value, "llava"))
    except EntryError as error:
        yield refused(source, str(error))


def _convert(entry: _Entry) -> Dialogue:
    turns = []
    for turn in entry.conversations:
        if turn.speaker not in _ROLES:
            hint = "; a system text is read with dataset.format messages" if turn.speaker == "system" else ""
            raise EntryError(f"speaker {turn.speaker!r:.60} is neither 'human' nor 'gpt'{hint}")
        turns.append(Said(role=_ROLES[turn.speaker], text=turn.value))
    return Dialogue(
        turns=turns,
        images=_images_of(entry.image),
        speakers=("human", "gpt"),
        id=name_of(entry.id, "id"),
        references=entry.references or (),
        question_type=entry.question_type or "",
        group=name_of(entry.group, "group"),
    )


def _images_of(image: Any) -> tuple[str, ...]:
    images = image if isinstance(image, list) else [] if image is None else [image]
    for path in images:
        if not isinstance(path, str) or not path:
            raise EntryError(f"image must be a path (is {tell(path)})")
        if path[:5].lower() == "data:":
            raise EntryError("image is a data: URL, which is read with dataset.format messages: set it")
    return tuple(images)
