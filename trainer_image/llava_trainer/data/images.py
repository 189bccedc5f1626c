"""Pictures: safe to open, whole, and as the vision tower sees them.

Opened as LLaVA opens them: first frame, converted to RGB, EXIF orientation not applied (a picture that a camera
stored on its side is learned, and served, on its side).
"""

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from llava_trainer.data.processing import Processing

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""Formats that are read; Pillow's others have no place in a dataset of pictures and widen what a file can attack."""
MAX_PIXELS = 89_000_000
"""Width x height. Pillow itself warns of a decompression bomb a little above."""
MAX_SIDE_PX = 12_000
"""A padded picture has side x side pixels: 12,000 px are 432 MB, and enough for an A4 page at 1,000 dpi."""
MAX_SIDE_RATIO = 100
"""Long side over short side. A thinner picture would be resized to a huge one before its centre is cut out."""

_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, KeyError, TypeError, OverflowError)
"""What Pillow's decoders raise on damaged files."""


class PictureError(ValueError):
    """A picture that cannot be trained on; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureFacts:
    """What a check found: ``digest`` is the same for files that hold the same pixels."""

    width_px: int
    height_px: int
    digest: str


def open_image(path: Path) -> Image.Image:
    """Open and decode a picture, as RGB.

    Raises:
        PictureError: missing, damaged, of another format or beyond the limits.
    """
    try:
        with Image.open(path, formats=FORMATS) as opened:
            _check_size(*opened.size)
            return opened.convert("RGB")
    except PictureError:
        raise
    except FileNotFoundError as error:
        raise PictureError("does not exist") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(f"has more than {MAX_PIXELS:,} pixels: make it smaller") from error
    except UnidentifiedImageError as error:
        raise PictureError(f"is not one of {', '.join(FORMATS)}, or its beginning is damaged") from error
    except _DAMAGED as error:
        raise PictureError(f"cannot be decoded: {error}") from error


def check_image(path: Path) -> PictureFacts:
    """Decode a picture fully and say what it is.

    Raises:
        PictureError: as ``open_image``.
    """
    picture = open_image(path)
    digest = hashlib.sha256(struct.pack("<II", *picture.size))
    digest.update(picture.tobytes())
    return PictureFacts(width_px=picture.width, height_px=picture.height, digest=digest.hexdigest())


def pixel_values(image: Image.Image, processing: Processing) -> np.ndarray:
    """Float32 pixels for the vision tower, shape [3, image_size_px, image_size_px]."""
    features = processing.image_processor(images=[image], return_tensors="np")
    pixels: np.ndarray = features["pixel_values"][0]
    return pixels


def visible_image(image: Image.Image, processing: Processing) -> Image.Image:
    """The picture as the tower sees it, before normalisation: image_size_px wide and high."""
    features = processing.image_processor(images=[image], do_rescale=False, do_normalize=False, return_tensors="np")
    channels_first = features["pixel_values"][0]
    return Image.fromarray(channels_first.transpose(1, 2, 0).astype(np.uint8), "RGB")


def resolve_picture(root: Path, folder: Path, relative: str) -> Path:
    """Where ``relative`` (to ``folder``) lies, if that is a file inside the dataset ``root``.

    Raises:
        PictureError: an absolute path, ``..`` parts, a link that leads out of ``root``, or no file.
    """
    try:
        return resolve_inside(root, folder, relative)
    except (FileNotFoundError, PermissionError, ValueError) as error:
        raise PictureError(str(error)) from error


def resolve_inside(root: Path, folder: Path, relative: str) -> Path:
    """Where ``relative`` (to ``folder``) lies, if that is a file inside ``root``.

    Raises:
        PermissionError: it would lead outside.
        FileNotFoundError: there is no such file.
        ValueError: it is no usable path.
    """
    parts = Path(relative).parts
    if not parts or relative.startswith("/") or ".." in parts:
        raise PermissionError("must be a path inside the dataset, without a leading / and without .. parts")
    try:
        path = (folder / relative).resolve()
        is_file = path.is_file()
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"is no usable path: {error}") from error
    if not path.is_relative_to(root.resolve()):
        raise PermissionError("leads outside the dataset through a symbolic link: put the file itself there")
    if not is_file:
        raise FileNotFoundError("does not exist" if not path.exists() else "is not a file")
    return path


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise PictureError(f"is {width} x {height} px: empty")
    if width * height > MAX_PIXELS:
        raise PictureError(f"is {width} x {height} px, more than {MAX_PIXELS:,} pixels: make it smaller")
    if max(width, height) > MAX_SIDE_PX:
        raise PictureError(f"is {width} x {height} px, more than {MAX_SIDE_PX:,} px on one side: make it smaller")
    if max(width, height) > MAX_SIDE_RATIO * min(width, height):
        raise PictureError(f"is {width} x {height} px: one side is more than {MAX_SIDE_RATIO} times the other")
