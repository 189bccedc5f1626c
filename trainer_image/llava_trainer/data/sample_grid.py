"""Samples in the dataset report as the model will see them: images as the tower does, what is learned marked.

Beside each image as the tower gets it stands the image as it is: what cannot be read in the one, and can in the other,
no training will teach.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llava_api.legibility import scale_of
from llava_trainer.data.dataset import PreparedDataset
from llava_trainer.data.images import ImageError, open_image, visible_image
from llava_trainer.data.samples import Sample
from llava_trainer.data.template import SYSTEM, render
from llava_trainer.pages.thumbnails import thumbnail

GRID_SAMPLES = 24
"""Of the whole page: each picture may take a hundred kilobytes of it."""
_FEWEST = 4
"""Of one dataset."""
_SHOWN_IMAGES = 4
"""Of one sample: it may show a thousand."""
_ORIGINAL_PX = 640
"""Longest side at which images are shown as they are: about twice what the tower sees of them."""
_SEEN_QUALITY = 90
"""Of the JPEG: what cannot be read in it shall be the tower's doing."""
_SHOWN_CHARACTERS = 400

logger = logging.getLogger(__name__)


def grid_size(num_datasets: int) -> int:
    """How many samples of each dataset are shown on a page with so many."""
    return max(_FEWEST, GRID_SAMPLES // num_datasets)


@dataclass(frozen=True, kw_only=True)
class SeenImage:
    """An image as the tower gets it, and as it is."""

    name: str
    seen: str
    """A data: URI, as all pictures of a page are."""
    original: str
    tower_px: int
    scale: float
    width_px: int
    height_px: int


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of a conversation: read and nothing more, learned, or lost to the length limit."""

    kind: Literal["read", "learned", "lost"]
    text: str


@dataclass(frozen=True, kw_only=True)
class Card:
    """One sample."""

    is_held_out: bool
    source: str
    num_tokens: int
    num_learned: int
    """Tokens."""
    max_length: int
    images: tuple[SeenImage, ...]
    num_further_images: int
    parts: tuple[Part, ...]


def build_cards(dataset: PreparedDataset, num_samples: int) -> tuple[Card, ...]:
    """So many samples; none where none is usable."""
    return tuple(_card(dataset, index) for index in _choose(dataset, num_samples))


def _card(dataset: PreparedDataset, index: int) -> Card:
    sample = dataset.samples[index]
    return Card(
        is_held_out=bool(dataset.held_out[index]),
        source=str(sample.source),
        num_tokens=sample.num_tokens,
        num_learned=int(dataset.table.supervised[index]),
        max_length=dataset.request.max_length,
        images=tuple(filter(None, (_image(dataset, relative) for relative in sample.images[:_SHOWN_IMAGES]))),
        num_further_images=max(0, len(sample.images) - _SHOWN_IMAGES),
        parts=tuple(_conversation(dataset, index, sample)),
    )


def _image(dataset: PreparedDataset, relative: str) -> SeenImage | None:
    processor = dataset.processor
    try:
        image = open_image(dataset.request.folder.resolve(relative))
    except ImageError as error:
        # It was whole a moment ago: the volume changes under our feet, and training will say so.
        logger.warning("picture %s %s", relative, error)
        return None
    width, height = image.size
    seen = visible_image(image, processor)
    # In place: a copy of a large image would take its memory once more.
    image.thumbnail((_ORIGINAL_PX, _ORIGINAL_PX))
    return SeenImage(
        name=relative,
        seen=thumbnail(seen, max_px=processor.image_size_px, quality=_SEEN_QUALITY),
        original=thumbnail(image, max_px=_ORIGINAL_PX),
        tower_px=processor.image_size_px,
        scale=scale_of(width, height, processor.image_size_px, processor.aspect_ratio),
        width_px=width,
        height_px=height,
    )


def _conversation(dataset: PreparedDataset, index: int, sample: Sample) -> Iterator[Part]:
    """The conversation, cut where learning begins and ends."""
    conversation = render(sample, dataset.request.template, dataset.processor.gap)
    kept = dataset.table.num_characters(index)
    position = 0
    for begin, end in conversation.supervised:
        if begin >= kept:
            break
        yield Part(kind="read", text=_shorten(_abridge(conversation.text[position:begin])))
        yield Part(kind="learned", text=_shorten(conversation.text[begin : min(end, kept)]))
        position = min(end, kept)
    yield Part(kind="read", text=_shorten(_abridge(conversation.text[position:kept])))
    if kept < len(conversation.text):
        yield Part(kind="lost", text=_shorten(conversation.text[kept:]))


def _abridge(text: str) -> str:
    """Text of which everybody knows the middle: the system text, the same in every sample."""
    return text.replace(SYSTEM, f"{SYSTEM[:14]} […] {SYSTEM[-17:]}")


def _shorten(text: str) -> str:
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    half = _SHOWN_CHARACTERS // 2
    return f"{text[:half]} […] {text[-half:]}"


def _choose(dataset: PreparedDataset, count: int) -> list[int]:
    """At most ``count`` samples: the longest, one with several images, and the others evenly spread.

    Of samples that share images one is enough; those of training come before those held out.
    """
    if not len(dataset.table):
        return []
    _, first_of_each = np.unique(dataset.group_of, return_index=True)
    several = np.flatnonzero(dataset.table.num_images > 1)[:1]
    special = dict.fromkeys([int(dataset.table.tokens.argmax()), *several.tolist()])
    others = [index for index in first_of_each.tolist() if index not in special]
    others.sort(key=lambda index: (bool(dataset.held_out[index]), index))
    room = count - len(special)
    if len(others) > room:
        step = (len(others) - 1) / (room - 1)
        others = [others[round(position * step)] for position in range(room)]
    return [*special, *others]
