"""Samples in the dataset report as the model will see them: images as the tower does, what is learned marked."""

import logging

import numpy as np

from llava_trainer.data.dataset import PreparedDataset
from llava_trainer.data.images import ImageError, open_image, visible_image
from llava_trainer.data.samples import Sample
from llava_trainer.data.template import SYSTEM, render
from llava_trainer.html import Html, el, thumbnail

GRID_SAMPLES = 24
_SHOWN_CHARACTERS = 400

logger = logging.getLogger(__name__)


def build_grid(dataset: PreparedDataset) -> Html | None:
    """Build the section with samples as cards; None where there is no usable sample."""
    chosen = _choose(dataset, GRID_SAMPLES)
    if not chosen:
        return None
    return el(
        "section",
        el("h2", "Samples as the model sees them"),
        el(
            "p",
            "What is marked is learned, what is struck out is cut off; everything else is only read.",
            class_="muted",
        ),
        el("div", (_card(dataset, index) for index in chosen), class_="seen"),
    )


def _card(dataset: PreparedDataset, index: int) -> Html:
    sample = dataset.samples[index]
    images = list(filter(None, (_image(dataset, relative) for relative in sample.images)))
    max_length = dataset.request.max_length
    about = f"{sample.source} · {sample.num_tokens:,} tokens, {int(dataset.table.supervised[index]):,} learned"
    if sample.num_tokens > max_length:
        about += f", cut off after {max_length:,}"
    shown = el("div", images, class_="pictures several" if len(images) > 1 else "pictures") if images else None
    side = el("span", "held out" if dataset.held_out[index] else "training", class_="side")
    return el(
        "article", shown, el("p", side, about, class_="muted small"), _conversation(dataset, index, sample),
        class_="card",
    )  # fmt: skip


def _image(dataset: PreparedDataset, relative: str) -> Html | None:
    processor = dataset.processor
    try:
        seen = visible_image(open_image(dataset.request.folder.resolve(relative)), processor)
    except ImageError as error:
        # It was whole a moment ago: the volume changes under our feet, and training will say so.
        logger.warning("picture %s %s", relative, error)
        return None
    return el("img", src=thumbnail(seen, max_px=processor.image_size_px), alt=relative)


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
