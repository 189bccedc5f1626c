"""Images small enough to stand inside a page."""

import base64
import io

from PIL import Image


def thumbnail(image: Image.Image, max_px: int = 240, quality: int = 72) -> str:
    """A ``data:`` URI with a JPEG of ``image``, at most ``max_px`` wide and high."""
    small = image.convert("RGB")
    small.thumbnail((max_px, max_px))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
