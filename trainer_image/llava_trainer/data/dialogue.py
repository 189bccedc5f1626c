"""What every format's conversation must be, once it is told who says what: questions and answers in turn.

An opening answer is left out, as LLaVA does. Every ``<image>`` is taken out of its turn; the template puts it back
where the turn begins. Knows nothing about how a format writes it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llava_trainer.data.findings import Finding, Kind, noted
from llava_trainer.data.json_file import is_writable
from llava_trainer.data.samples import Role, Sample, Source, Turn
from llava_trainer.data.template import IMAGE_MARKER


class EntryError(ValueError):
    """An entry that cannot be trained on; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What one side says, with an ``<image>`` for each image that it shows."""

    role: Role
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialogue:
    """A conversation as a format tells it.

    Attributes:
        turns: in their order.
        images: in the order of their markers.
        speakers: what the format calls user and assistant, for messages.
        system: replaces LLaVA's system text; empty where it does not.
        id, references, question_type, group: as a sample has them.
    """

    turns: Sequence[Said]
    images: tuple[str, ...]
    speakers: tuple[str, str]
    system: str = ""
    id: str = ""
    references: Sequence[str] = ()
    question_type: str = ""
    group: str = ""


def build_sample(dialogue: Dialogue, source: Source) -> Iterator[Sample | Finding]:
    """The sample that a conversation is, and what was found about it.

    Raises:
        EntryError: it cannot be trained on.
    """
    turns = list(dialogue.turns)
    opens_with_answer = bool(turns) and turns[0].role == "assistant"
    if opens_with_answer:
        if IMAGE_MARKER in turns[0].text:
            raise EntryError(f"conversations[0] is an opening answer with {IMAGE_MARKER}: move it to a question")
        turns = turns[1:]
    _check_alternation(turns, dialogue.speakers)
    sample = Sample(
        id=dialogue.id or str(source),
        images=dialogue.images,
        turns=tuple(Turn(role=turn.role, text=turn.text.replace(IMAGE_MARKER, "").strip()) for turn in turns),
        source=source,
        image_turns=_find_image_turns(turns, len(dialogue.images)),
        references=tuple(text.strip() for text in dialogue.references),
        question_type=dialogue.question_type.strip(),
        group=dialogue.group.strip(),
        system=dialogue.system.strip(),
    )
    if IMAGE_MARKER in sample.system:
        raise EntryError(f"the system message contains {IMAGE_MARKER}: move the picture to a question")
    texts = (turn.text for turn in sample.turns)
    named = (sample.id, sample.question_type, sample.group, sample.system, *sample.images)
    if not is_writable(*named, *sample.references, *texts):
        raise EntryError("a text holds half a surrogate pair (a \\ud800 to \\udfff alone): correct the encoding")
    if opens_with_answer:
        yield noted(Kind.OPENING_ANSWER, source, "the conversation opens with an answer, which is left out")
    yield from _note_blanks(sample)
    yield sample


def tell(value: Any) -> str:
    """The beginning of a value, for messages: written out, a picture would take several times its size."""
    return repr(value[:60] if isinstance(value, str | bytes | list) else value)[:60]


def name_of(given: Any, field: str) -> str:
    """A name (an id, a group) that may be written as text or as a number; empty where there is none.

    Raises:
        EntryError: it is neither.
    """
    if given is None:
        return ""
    if isinstance(given, str | int) and not isinstance(given, bool):
        return str(given)
    raise EntryError(f"{field} must be a string or a whole number (is {tell(given)})")


def _check_alternation(turns: Sequence[Said], speakers: tuple[str, str]) -> None:
    if not turns:
        raise EntryError("holds no question")
    for index, turn in enumerate(turns):
        if turn.role != ("user", "assistant")[index % 2]:
            user, assistant = speakers
            speaker = user if turn.role == "user" else assistant
            raise EntryError(f"{user!r} and {assistant!r} must take turns, but {speaker!r} speaks twice in a row")
    if len(turns) % 2:
        raise EntryError("ends with a question that has no answer")


def _find_image_turns(turns: Sequence[Said], num_images: int) -> tuple[int, ...]:
    """Index of the turn that shows each image."""
    shown = [index for index, turn in enumerate(turns) for _ in range(turn.text.count(IMAGE_MARKER))]
    if len(shown) != num_images:
        fix = "write one for each, in the question that shows it" if num_images else "name the picture in 'image'"
        raise EntryError(f"{IMAGE_MARKER} stands {len(shown)} times for {num_images} pictures: {fix}")
    if any(turns[index].role != "user" for index in shown):
        raise EntryError(f"{IMAGE_MARKER} stands in an answer: move it to the question that shows the picture")
    return tuple(shown)


def _note_blanks(sample: Sample) -> Iterator[Finding]:
    """A blank answer teaches nothing, as in LLaVA; a question may be blank where an image is shown."""
    for index, turn in enumerate(sample.turns):
        if turn.text:
            continue
        if turn.role == "assistant":
            yield noted(Kind.BLANK_ANSWER, sample.source, f"answer {index // 2 + 1} is blank")
        elif index not in sample.image_turns:
            raise EntryError(f"question {index // 2 + 1} is empty")
