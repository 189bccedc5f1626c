"""Images: safe to open, whole, and as the vision tower sees them.

Opened as LLaVA opens them: first frame, converted to RGB, EXIF orientation not applied (an image that a camera
stored on its side is learned, and served, on its side).
"""

import hashlib
import math
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from llava_trainer.data.processor import Processor
from llava_trainer.files import resolve_inside

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""Formats that are read; Pillow's others have no place in a dataset of images and widen what a file can attack."""
MAX_SIDE_PX = 12_000
"""A padded image has side x side pixels: 12,000 px are 432 MB, and enough for an A4 page at 1,000 dpi. Whoever allows
more pixels than such a square has allows its side, too."""
MAX_SIDE_RATIO = 100
"""Long side over short side. A thinner image would be resized to a huge one before its centre is cut out."""

LARGE_PIXELS = 16_000_000
"""Images beyond this are decoded one at a time: 16 megapixels take 64 MB, in two modes 128 MB."""
_STRIP_PIXELS = 1_000_000
_DIGEST_BYTES = 16
_ALONE = nullcontext()

_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, KeyError, TypeError, OverflowError)
"""What Pillow's decoders raise on damaged files."""


Decoded = TypeVar("Decoded")


class ImageError(ValueError):
    """An image that cannot be trained on; the message says why."""


class MissingImageError(ImageError):
    """There is no such image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFacts:
    """What a check found: ``digest`` is the same for files that hold the same pixels."""

    width_px: int
    height_px: int
    digest: bytes


def open_image(path: Path) -> Image.Image:
    """Open and decode an image that prepare has checked, as RGB.

    Raises:
        ImageError: missing, damaged or of another format.
    """
    return _decode(path, None, _ALONE, _without_alpha)


def check_image(path: Path, max_pixels: int, large: AbstractContextManager[object] = _ALONE) -> ImageFacts:
    """Decode an image fully and say what it is.

    Args:
        path: the file.
        max_pixels: most pixels, width x height; told from the header, before anything is decoded.
        large: entered while a large image is decoded, to hold others off.

    Raises:
        ImageError: missing, damaged, of another format or beyond the limits.
    """
    return _decode(path, max_pixels, large, _describe)


def _decode(
    path: Path, max_pixels: int | None, large: AbstractContextManager[object], use: Callable[[Image.Image], Decoded]
) -> Decoded:
    # Pillow's own limit warns at 89 megapixels and fails at 179, whatever the person allows; ours is checked instead.
    Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(path, formats=FORMATS) as opened:
            if max_pixels is not None:
                _check_size(*opened.size, max_pixels)
            with large if opened.width * opened.height > LARGE_PIXELS else _ALONE:
                return use(opened)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError("does not exist") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"is not one of {', '.join(FORMATS)}, or its beginning is damaged") from error
    except (*_DAMAGED, Image.DecompressionBombError) as error:
        raise ImageError(f"cannot be decoded: {error}") from error


def _without_alpha(opened: Image.Image) -> Image.Image:
    image = opened.convert("RGB")
    # LLaVA drops transparency. Pillow remembers a palette's transparent colour even so, and transformers' image
    # processors would paint that colour white.
    image.info.pop("transparency", None)
    return image


def _describe(opened: Image.Image) -> ImageFacts:
    opened.load()
    image = opened if opened.mode == "RGB" else opened.convert("RGB")
    digest = hashlib.sha256(struct.pack("<II", *image.size))
    # In strips, so that the pixels of a large image are not held twice.
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image
        if rows < image.height:
            strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        digest.update(strip.tobytes())
    return ImageFacts(width_px=image.width, height_px=image.height, digest=digest.digest()[:_DIGEST_BYTES])


def pixel_values(image: Image.Image, processor: Processor) -> np.ndarray:
    """Float32 pixels for the vision tower, shape [3, image_size_px, image_size_px]."""
    features = processor.image_processor(images=[image], return_tensors="np")
    pixels: np.ndarray = features["pixel_values"][0]
    return pixels


def visible_image(image: Image.Image, processor: Processor) -> Image.Image:
    """The image as the tower sees it, before normalisation: image_size_px wide and high."""
    features = processor.image_processor(images=[image], do_rescale=False, do_normalize=False, return_tensors="np")
    channels_first = features["pixel_values"][0]
    return Image.fromarray(channels_first.transpose(1, 2, 0).astype(np.uint8), "RGB")


def resolve_image(root: Path, folder: Path, relative: str) -> Path:
    """Where ``relative`` (to ``folder``) lies, if that is a file inside the dataset ``root``.

    Raises:
        MissingPictureError: no file.
        ImageError: an absolute path, ``..`` parts, a link that leads out of ``root``.
    """
    try:
        return resolve_inside(root, folder, relative)
    except FileNotFoundError as error:
        raise MissingImageError(str(error)) from error
    except (PermissionError, ValueError) as error:
        raise ImageError(str(error)) from error


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"is {width} x {height} px: empty")
    if width * height > max_pixels:
        raise ImageError(
            f"is {width} x {height} px, more than dataset.limits.imagePixels {max_pixels:,}: make it smaller"
        )
    max_side_px = max(MAX_SIDE_PX, math.isqrt(max_pixels))
    if max(width, height) > max_side_px:
        raise ImageError(f"is {width} x {height} px, more than {max_side_px:,} px on one side: make it smaller")
    if max(width, height) > MAX_SIDE_RATIO * min(width, height):
        raise ImageError(f"is {width} x {height} px: one side is more than {MAX_SIDE_RATIO} times the other")
