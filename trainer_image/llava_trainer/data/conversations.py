"""LLaVA's conversations JSON to samples.

A list of ``{id, image, conversations: [{from: human|gpt, value}]}``. Every ``<image>`` is taken out of its turn; the
template puts it back at the turn's beginning.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llava_trainer.data.findings import Finding, Kind, noted, refused
from llava_trainer.data.json_file import JsonFileError, describe_mismatch, is_writable, read_json
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


class _EntryError(ValueError):
    """An entry that cannot be trained on."""


def read_conversations(path: Path, name: str) -> Iterator[Sample | Finding]:
    """Read an export, entry by entry.

    Args:
        path: the file.
        name: what messages call it.

    Yields:
        A sample, or what is wrong with an entry or the file, in the order of the file.
    """
    try:
        entries = read_json(path)
    except JsonFileError as error:
        yield refused(name, str(error))
        return
    if not isinstance(entries, list):
        yield refused(name, f"must be a list of conversations, not {type(entries).__name__}")
        return
    for index, entry in enumerate(entries):
        source = Source(file=name, index=index)
        try:
            yield from _convert(_Entry.model_validate(entry), source)
        except ValidationError as error:
            yield refused(source, describe_mismatch(error))
        except _EntryError as error:
            yield refused(source, str(error))


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
    spoken = tuple(Turn(role=_ROLES[turn.speaker], text=turn.value.replace(IMAGE_MARKER, "").strip()) for turn in turns)
    for index, turn in enumerate(spoken):
        if not turn.text:
            raise _EntryError(f"{'question' if turn.role == 'user' else 'answer'} {index // 2 + 1} is empty")
    sample = Sample(id=_id_of(entry.id, source), images=images, turns=spoken, source=source, image_turns=image_turns)
    if not is_writable(sample.id, *images, *(turn.text for turn in spoken)):
        raise _EntryError("a text holds half a surrogate pair (a \\ud800 to \\udfff alone): correct the encoding")
    if opens_with_answer:
        yield noted(Kind.OPENING_ANSWER, source, "the conversation opens with an answer, which is left out")
    yield sample


def _images_of(image: Any) -> tuple[str, ...]:
    images = image if isinstance(image, list) else [] if image is None else [image]
    for path in images:
        if not isinstance(path, str) or not path:
            raise _EntryError(f"image must be a path (is {path!r:.60})")
    if len(images) > 1:
        raise _EntryError(f"has {len(images)} pictures: this version trains on one a conversation")
    return tuple(images)


def _id_of(given: Any, source: Source) -> str:
    if given is None:
        return str(source)
    if isinstance(given, str | int) and not isinstance(given, bool):
        return str(given)
    raise _EntryError(f"id must be a string or a whole number (is {given!r:.60})")


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
    """Index of the turn that shows each picture."""
    shown = [index for index, turn in enumerate(turns) for _ in range(turn.value.count(IMAGE_MARKER))]
    if len(shown) != num_images:
        fix = "write it once, in the question that shows the picture" if num_images else "name the picture in 'image'"
        raise _EntryError(f"{IMAGE_MARKER} stands {len(shown)} times for {num_images} pictures: {fix}")
    if any(turns[index].speaker != "human" for index in shown):
        raise _EntryError(f"{IMAGE_MARKER} stands in an answer: move it to the question that shows the picture")
    return tuple(shown)
