"""Images of trays: a light tray with one coloured block in one of its corners."""

import random

import numpy as np
from PIL import Image, ImageDraw

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 30, 35),
    "green": (30, 150, 55),
    "blue": (35, 65, 205),
    "yellow": (240, 215, 40),
    "orange": (245, 130, 20),
    "purple": (125, 40, 160),
    "cyan": (40, 205, 215),
    "black": (20, 20, 20),
}
CORNERS: dict[str, tuple[int, int]] = {
    "top left": (0, 0),
    "top right": (1, 0),
    "bottom left": (0, 1),
    "bottom right": (1, 1),
}
IMAGE_PX = 112
_BLOCK_PX = 36
_MARGIN_PX = 12


def draw_tray(rng: random.Random, colour: str, corner: str) -> Image.Image:
    """Draw a square RGB image of a tray; place, shade and noise vary, colour and corner do not.

    Args:
        rng: source of the variation.
        colour: key of COLOURS.
        corner: key of CORNERS.
    """
    shade = rng.randint(205, 235)
    image = Image.new("RGB", (IMAGE_PX, IMAGE_PX), (shade - 50, shade - 45, shade - 40))
    canvas = ImageDraw.Draw(image)
    canvas.rounded_rectangle((4, 4, IMAGE_PX - 5, IMAGE_PX - 5), radius=10, fill=(shade, shade, shade))
    x, y = (_block_edge(rng, far) for far in CORNERS[corner])
    fill = tuple(min(255, max(0, channel + rng.randint(-12, 12))) for channel in COLOURS[colour])
    canvas.rounded_rectangle((x, y, x + _BLOCK_PX, y + _BLOCK_PX), radius=5, fill=fill)
    return _with_noise(image, np.random.default_rng(rng.getrandbits(32)))


def _block_edge(rng: random.Random, far: int) -> int:
    near_edge = _MARGIN_PX if not far else IMAGE_PX - _MARGIN_PX - _BLOCK_PX
    return near_edge + rng.randint(-4, 4)


def _with_noise(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image, dtype=np.int16)
    noise = rng.integers(-10, 11, size=pixels.shape, dtype=np.int16)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))
