"""Samples as long as those of LLaVA's phase 2 (``mixture.json`` says where its numbers come from), scaled down."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llava_trainer.data.encode import IGNORED, Encoded
from llava_trainer.data.sample_file import SampleSizes

_FILE = Path(__file__).with_name("mixture.json")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How long a sample is."""

    text_tokens: int
    answer_tokens: int
    """Of the text, at its end."""
    image_tokens: int
    """0 without an image."""

    @property
    def tokens(self) -> int:
        return self.text_tokens + self.image_tokens


def draw_shapes(count: int, *, seed: int, image_tokens: int = 576) -> list[Shape]:
    """Draw samples of the mixture.

    Args:
        count: samples.
        seed: the same seed and count give the same samples.
        image_tokens: of one image; text, answers and the length limit shrink in proportion.
    """
    mixture = json.loads(_FILE.read_text())
    scale = image_tokens / mixture["picture_tokens"]
    parts = mixture["parts"]
    rng = np.random.default_rng(seed)
    weights = np.array([part["samples"] for part in parts], dtype=float)
    chosen = rng.choice(len(parts), count, p=weights / weights.sum())
    shapes = []
    for index, spread in zip(chosen, rng.standard_normal(count), strict=True):
        part = parts[index]
        images = image_tokens if part["pictures"] else 0
        limit = max_length(image_tokens) - images
        text = min(limit, max(4, round(scale * part["text_tokens"] * np.exp(spread * part["spread"]))))
        answers = max(1, round(text * part["answers"]))
        shapes.append(Shape(text_tokens=int(text), answer_tokens=answers, image_tokens=images))
    return shapes


def max_length(image_tokens: int = 576) -> int:
    """The length limit that goes with images of so many tokens."""
    mixture = json.loads(_FILE.read_text())
    return round(mixture["max_length"] * image_tokens / mixture["picture_tokens"])


def sizes_of(shapes: Sequence[Shape]) -> SampleSizes:
    """What the plan needs to know of them."""
    return SampleSizes(
        tokens=np.array([shape.tokens for shape in shapes]),
        images=np.array([int(shape.image_tokens > 0) for shape in shapes]),
        supervised=np.array([shape.answer_tokens for shape in shapes]),
    )


def encode_shape(shape: Shape, *, image_token_id: int, first_id: int, last_id: int, seed: int) -> Encoded:
    """A sample of random tokens: images after a ninth of the questions' text, answers at the end."""
    rng = np.random.default_rng(seed)
    text = [int(token) for token in rng.integers(first_id, last_id + 1, shape.text_tokens)]
    begin = (shape.text_tokens - shape.answer_tokens) // 9
    ids = [*text[:begin], *[image_token_id] * shape.image_tokens, *text[begin:]]
    learned = max(1, len(ids) - shape.answer_tokens)
    return Encoded(
        input_ids=tuple(ids),
        labels=tuple([IGNORED] * learned + ids[learned:]),
        images=("-",) if shape.image_tokens else (),
        full_length=len(ids),
        first_answer_length=len(ids),
        num_characters=0,
    )
