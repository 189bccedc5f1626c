"""Messages of a chat to samples: a JSON list, or JSON lines, as OpenAI's fine-tuning, TRL and LLaMA-Factory have them.

Entries are ``{"messages": [{"role", "content"}], "images": [...]}`` (``chat`` reads them). ShareGPT's
``{"conversations": [{"from", "value"}], "system"}`` is the same with other words. ``id``, ``references``,
``question_type`` and ``group`` are as in LLaVA's format.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from llava_api.spec import Messages
from llava_trainer.data.chat import place_images, read_chat
from llava_trainer.data.dialogue import Dialogue, EntryError, build_sample, name_of
from llava_trainer.data.embedded import Keep
from llava_trainer.data.entries import MAX_EMBEDDING_CHARACTERS, ReadingPosition, read_entries
from llava_trainer.data.findings import Finding, Kind, noted, refused
from llava_trainer.data.json_file import JsonFileError, describe_mismatch
from llava_trainer.data.recognition import hint_at_format
from llava_trainer.data.samples import Sample, Source


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True)

    id: Any = None
    messages: list[Any] | None = None
    conversations: list[Any] | None = None
    system: str | None = None
    images: Any = None
    image: Any = None
    references: list[str] | None = None
    question_type: str | None = None
    group: Any = None


def read_messages(
    path: Path, name: str, settings: Messages, keep: Keep, position: ReadingPosition
) -> Iterator[Sample | Finding]:
    """Read an export, entry by entry.

    Args:
        path: the file.
        name: what messages call it.
        settings: whether system messages are used.
        keep: keeps the images that entries hold.
        position: kept up to date.

    Yields:
        A sample, or what is wrong with an entry or the file, in the order of the file.
    """
    try:
        for entry in read_entries(path, position, max_characters=MAX_EMBEDDING_CHARACTERS):
            source = Source(file=name, index=entry.index)
            if isinstance(entry.value, JsonFileError):
                yield refused(source, str(entry.value))
            else:
                yield from _read_entry(entry.value, source, settings, keep)
    except JsonFileError as error:
        yield refused(name, str(error))


def _read_entry(entry: Any, source: Source, settings: Messages, keep: Keep) -> Iterator[Sample | Finding]:
    try:
        dialogue, has_unused_system = _convert(_Entry.model_validate(entry), entry, settings, keep)
        if has_unused_system:
            yield noted(Kind.UNUSED_SYSTEM, source, "set dataset.messages.systemMessage to use if it is to replace it")
        yield from build_sample(dialogue, source)
    except ValidationError as error:
        yield refused(source, describe_mismatch(error) + hint_at_format(entry, "messages"))
    except EntryError as error:
        yield refused(source, str(error))


def _convert(found: _Entry, entry: Any, settings: Messages, keep: Keep) -> tuple[Dialogue, bool]:
    """The conversation, and whether it has a system message that is not used."""
    if found.messages is not None and found.conversations is not None:
        raise EntryError("has both messages and conversations: keep one of them")
    if found.images is not None and found.image is not None:
        raise EntryError("has both images and image: keep one of them")
    if found.messages is not None:
        chat, speakers = read_chat(found.messages, "messages"), ("user", "assistant")
    elif found.conversations is not None:
        chat, speakers = read_chat(found.conversations, "conversations"), ("human", "gpt")
    else:
        raise EntryError(f"messages is missing{hint_at_format(entry, 'messages')}")
    if chat.system and found.system:
        raise EntryError("has a system message and a field system: keep one of them")
    beside, name = (found.images, "images") if found.image is None else (found.image, "image")
    turns, images = place_images(chat, beside, keep, name)
    system = chat.system or found.system or ""
    is_used = settings.system_message == "use"
    dialogue = Dialogue(
        turns=turns,
        images=images,
        speakers=speakers,
        system=system if is_used else "",
        id=name_of(found.id, "id"),
        references=found.references or (),
        question_type=found.question_type or "",
        group=name_of(found.group, "group"),
    )
    return dialogue, bool(system.strip()) and not is_used
