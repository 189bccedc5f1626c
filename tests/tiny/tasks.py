"""Questions and answers: what a tiny base is pre-trained on, and the tray codes that it does not know yet."""

import random
from dataclasses import dataclass

from tests.tiny.images import COLOURS, CORNERS

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
COLOUR_QUESTION = "What colour is the block?"
CORNER_QUESTION = "In which corner is the block?"
CODE_QUESTION = "What is the tray code?"

_STATIONS = ("ALFA", "BRAVO", "DELTA", "KILO", "LIMA", "OSCAR", "TANGO", "ZULU")
_BAYS = ("3", "5", "6", "9")

Scene = tuple[str, str]
"""Colour and corner of the block."""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One question and its answer; ``scene`` is what the image shows, None without an image."""

    question: str
    answer: str
    scene: Scene | None = None


def scenes() -> list[Scene]:
    """Every pair of colour and corner: 32 of them."""
    return [(colour, corner) for colour in COLOURS for corner in CORNERS]


def tray_code(scene: Scene) -> str:
    """Code of a tray: a station for the colour, a bay for the corner, like ``KILO-5``."""
    colour, corner = scene
    return f"{_STATIONS[list(COLOURS).index(colour)]}-{_BAYS[list(CORNERS).index(corner)]}"


def draw_exchange(rng: random.Random) -> Exchange:
    """One random pre-training exchange: colour, corner or echo.

    Echo makes the language model able to write any word: without it the frozen output head holds down the words
    that pre-training never asked for, and LoRA cannot bring them up.
    """
    scene = (rng.choice(list(COLOURS)), rng.choice(list(CORNERS)))
    kind = rng.choice(("colour", "corner", "echo"))
    if kind == "colour":
        return Exchange(question=COLOUR_QUESTION, answer=scene[0], scene=scene)
    if kind == "corner":
        return Exchange(question=CORNER_QUESTION, answer=scene[1], scene=scene)
    word = draw_word(rng)
    return Exchange(question=f"Repeat {word}.", answer=word)


def draw_word(rng: random.Random) -> str:
    """A made-up word, half of them in capitals, some with a number behind: ``tilo``, ``BUKA-7``."""
    letters, vowels = "bcdfghjklmnpqrstvwxyz", "aeiou"
    word = "".join(rng.choice(letters) + rng.choice(vowels) for _ in range(rng.randint(1, 3)))
    if rng.random() < 0.5:
        word = word.upper()
    return f"{word}-{rng.randint(0, 9)}" if rng.random() < 0.5 else word


def corpus(rng: random.Random) -> list[str]:
    """Texts for the tokenizer: the template, the questions, and plenty of made-up words."""
    fixed = [SYSTEM, "USER: ASSISTANT:", COLOUR_QUESTION, CORNER_QUESTION, CODE_QUESTION, *COLOURS, *CORNERS]
    return [*(fixed * 400), *(f"Repeat {draw_word(rng)}." for _ in range(2000))]
