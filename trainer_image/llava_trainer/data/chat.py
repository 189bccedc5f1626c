"""A list of turns as chats are stored: who says what, and which image stands where.

A turn is ``{"role", "content"}`` or ``{"from", "value"}``, or both sides at once: ``{"user", "assistant"}``. A content
is a text or a list of parts. Knows nothing about files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from llava_trainer.data.dialogue import EntryError, Said, tell
from llava_trainer.data.embedded import Keep, take_image
from llava_trainer.data.samples import Role
from llava_trainer.data.template import IMAGE_MARKER

_ROLES: Mapping[str, Role] = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
_SYSTEM = ("system", "developer")
_PAIRS = (("user", "assistant"), ("question", "answer"))
_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_PARTS = ("image", "image_url", "input_image")
_IMAGE_KEYS = ("image_url", "image", "url", "path", "base64")


class _Next:
    """In place of an image: the next one of the list beside the turns."""


_NEXT: Final = _Next()


@dataclass(kw_only=True)
class Chat:
    """What a list of turns says.

    Attributes:
        turns: without the system message, an ``<image>`` for each image.
        shown: for each ``<image>``, where it stands and what names or holds the image.
        system: the system message; empty if there is none.
    """

    turns: list[Said] = field(default_factory=list)
    shown: list[tuple[str, Any]] = field(default_factory=list)
    system: str = ""


def read_chat(turns: Sequence[Any], name: str) -> Chat:
    """Read turns in their order.

    Args:
        turns: as they are stored.
        name: of the list, for messages.

    Raises:
        EntryError: a turn cannot be read or learned from.
    """
    chat = Chat()
    for index, turn in enumerate(turns):
        where = f"{name}[{index}]"
        if not isinstance(turn, Mapping):
            raise EntryError(f"{where} must be an object with role and content (is {tell(turn)})")
        pair = next((pair for pair in _PAIRS if turn.keys() >= set(pair)), None)
        if pair is not None:
            for key, role in zip(pair, ("user", "assistant"), strict=True):
                _say(chat, role, turn[key], f"{where}.{key}")
            continue
        speaker = turn.get("role", turn.get("from"))
        key = "content" if "content" in turn else "value"
        if turn.get("weight") == 0:
            raise EntryError(f"{where}.weight is 0, but every answer is learned: take the answer out")
        if key not in turn or not isinstance(speaker, str):
            raise EntryError(f"{where} must have role and content (its fields are {', '.join(map(str, turn))})"[:200])
        _say(chat, speaker, turn[key], f"{where}.{key}", is_first=index == 0)
    return chat


def place_images(chat: Chat, beside: Any, keep: Keep, name: str) -> tuple[list[Said], tuple[str, ...]]:
    """The turns, and what samples call the images that they show.

    Args:
        chat: what was said.
        beside: one image, or a list of them: those that a bare ``<image>`` shows, in turn. Where the turns show none,
            the first question shows them all.
        keep: keeps images that the data holds.
        name: of what lies beside, for messages.

    Raises:
        EntryError: markers and images do not fit, or an image is none.
    """
    given = beside if isinstance(beside, list) else [] if beside is None else [beside]
    turns, shown = chat.turns, list(chat.shown)
    if not shown and given:
        turns = _show_in_first_question(turns, len(given))
        shown = [(name, _NEXT)] * len(given)
    num_markers = sum(source is _NEXT for _, source in shown)
    if num_markers != len(given):
        raise EntryError(
            f"{IMAGE_MARKER}, or an image part without a picture, stands {num_markers} times for {len(given)} pictures "
            f"in {name}: write one for each, in the question that shows it, or none at all"
        )
    numbers = iter(range(len(given)))
    images = []
    for where, source in shown:
        if source is _NEXT:
            number = next(numbers)
            where, source = f"{name}[{number}]", given[number]
        images.append(take_image(source, keep, where))
    return turns, tuple(images)


def _show_in_first_question(turns: list[Said], num_images: int) -> list[Said]:
    first = next((index for index, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None:
        return turns
    shown = replace(turns[first], text=IMAGE_MARKER * num_images + turns[first].text)
    return [*turns[:first], shown, *turns[first + 1 :]]


def _say(chat: Chat, speaker: str, content: Any, where: str, *, is_first: bool = False) -> None:
    shown: list[tuple[str, Any]] = []
    text = _read_content(content, where, shown)
    if speaker in _SYSTEM:
        if not is_first:
            raise EntryError(f"{where} is a system message, which must stand before everything else")
        if shown:
            raise EntryError(f"{where} is a system message with a picture: move it to the question that shows it")
        chat.system = text
        return
    if speaker not in _ROLES:
        raise EntryError(f"{where}: role {speaker!r:.60} is none of system, user and assistant: take the entry out")
    chat.turns.append(Said(role=_ROLES[speaker], text=text))
    chat.shown += shown


def _read_content(content: Any, where: str, shown: list[tuple[str, Any]]) -> str:
    """The text of a content; what it shows is added to ``shown``.

    Parts follow each other without a space, as the exported chat template has them.
    """
    if isinstance(content, str):
        shown += [(where, _NEXT)] * content.count(IMAGE_MARKER)
        return content
    if not isinstance(content, list):
        raise EntryError(f"{where} must be a text or a list of parts (is {tell(content)})")
    texts = []
    for index, part in enumerate(content):
        place = f"{where}[{index}]"
        if not isinstance(part, Mapping):
            raise EntryError(f"{place} must be an object with type (is {tell(part)})")
        kind = part.get("type")
        if kind in _TEXT_PARTS:
            text = part.get("text")
            if not isinstance(text, str):
                raise EntryError(f"{place}.text must be a text (is {tell(text)})")
            shown += [(place, _NEXT)] * text.count(IMAGE_MARKER)
            texts.append(text)
        elif kind in _IMAGE_PARTS:
            shown.append(_image_of(part, place))
            texts.append(IMAGE_MARKER)
        else:
            raise EntryError(f"{place}.type is {kind!r:.60}: only text and image_url (or image) can be learned from")
    return "".join(texts)


def _image_of(part: Mapping[str, Any], place: str) -> tuple[str, Any]:
    # Stores that have one type for all parts write null where a part has no such field.
    for key in _IMAGE_KEYS:
        source = part.get(key)
        if source is None:
            continue
        if key == "image_url" and isinstance(source, Mapping):
            return f"{place}.image_url.url", source.get("url")
        if key == "base64" and isinstance(source, str):
            source = f"data:image/unknown;base64,{source}"
        return f"{place}.{key}", source
    return place, _NEXT
