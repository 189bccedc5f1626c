"""Samples in the dataset report as the model will see them: images as the tower does, what is learned marked.

Beside each image as the tower gets it stands the image as it is: what cannot be read in the one, and can in the other,
no training will teach.
"""

import logging

import numpy as np

from llava_api.legibility import scale_of
from llava_trainer.data.dataset import PreparedDataset
from llava_trainer.data.images import ImageError, open_image, visible_image
from llava_trainer.data.samples import Sample
from llava_trainer.data.template import SYSTEM, render
from llava_trainer.html import Html, el, thumbnail

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


def build_grid(dataset: PreparedDataset, num_samples: int) -> Html | None:
    """Build the section with so many samples as cards; None where there is no usable sample."""
    chosen = _choose(dataset, num_samples)
    if not chosen:
        return None
    return el(
        "section",
        el("h2", "Samples as the model sees them"),
        el(
            "p",
            "On the left each picture as the vision tower gets it, beside it the picture as it is: what cannot be read "
            "on the left cannot be learned. What is marked is learned, what is struck out is cut off; everything else "
            "is only read.",
            class_="muted",
        ),
        el("div", (_card(dataset, index) for index in chosen), class_="seen"),
    )


def _card(dataset: PreparedDataset, index: int) -> Html:
    sample = dataset.samples[index]
    images = list(filter(None, (_image(dataset, relative) for relative in sample.images[:_SHOWN_IMAGES])))
    max_length = dataset.request.max_length
    about = f"{sample.source} · {sample.num_tokens:,} tokens, {int(dataset.table.supervised[index]):,} learned"
    if sample.num_tokens > max_length:
        about += f", cut off after {max_length:,}"
    if len(sample.images) > _SHOWN_IMAGES:
        about += f" · {len(sample.images) - _SHOWN_IMAGES:,} further pictures"
    shown = el("div", images, class_="pictures") if images else None
    side = el("span", "held out" if dataset.held_out[index] else "training", class_="side")
    return el(
        "article", shown, el("p", side, about, class_="muted small"), _conversation(dataset, index, sample),
        class_="card",
    )  # fmt: skip


def _image(dataset: PreparedDataset, relative: str) -> Html | None:
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
    scale = scale_of(width, height, processor.image_size_px, processor.aspect_ratio)
    return el(
        "div",
        _figure(
            thumbnail(seen, max_px=processor.image_size_px, quality=_SEEN_QUALITY),
            f"{relative} as the tower gets it",
            f"{processor.image_size_px:,} px, scaled to {scale:.0%}",
        ),
        _figure(thumbnail(image, max_px=_ORIGINAL_PX), relative, f"{width:,} x {height:,} px"),
        class_="pair",
    )


def _figure(source: str, name: str, caption: str) -> Html:
    return el("figure", el("img", src=source, alt=name), el("figcaption", caption, class_="muted small"))


def _conversation(dataset: PreparedDataset, index: int, sample: Sample) -> Html:
    """The conversation with what is learned marked and what is cut off struck out."""
    conversation = render(sample, dataset.request.template, dataset.processor.gap)
    kept = dataset.table.num_characters(index)
    parts: list[str | Html] = []
    position = 0
    for begin, end in conversation.supervised:
        if begin >= kept:
            break
        parts.append(_shorten(_abridge(conversation.text[position:begin])))
        parts.append(el("mark", _shorten(conversation.text[begin : min(end, kept)])))
        position = min(end, kept)
    parts.append(_shorten(_abridge(conversation.text[position:kept])))
    lost = el("s", _shorten(conversation.text[kept:])) if kept < len(conversation.text) else None
    return el("p", parts, lost, class_="said")


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
