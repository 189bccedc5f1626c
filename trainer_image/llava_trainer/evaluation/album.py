"""The pictures of a report: each is opened once, made small, and may be refused without ending the report."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from PIL import Image

from llava_trainer.data.images import ImageError
from llava_trainer.pages.thumbnails import thumbnail

LoadImage = Callable[[str], Image.Image]
"""Opens an image by its path relative to the dataset's image folder.

Raises:
    ImageError: it cannot be opened.
"""
MAX_IMAGES = 3
"""Of one question or sample that are shown: the last, which the question is about."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An image as a page has it."""

    path: str
    source: str
    """A data: URI; empty where the image cannot be shown."""


@dataclass
class Album:
    """Thumbnails by path and size, kept, since several parts of a page may show the same image."""

    load_image: LoadImage
    _kept: dict[tuple[str, int], Shown] = field(default_factory=dict)

    def show(self, paths: Iterable[str], *, max_px: int) -> tuple[Shown, ...]:
        """The last images of ``paths``, at most ``max_px`` wide and high; none with 0."""
        return tuple(self._show(path, max_px) for path in [*dict.fromkeys(paths)][-MAX_IMAGES:]) if max_px else ()

    def _show(self, path: str, max_px: int) -> Shown:
        key = (path, max_px)
        if key not in self._kept:
            try:
                source = thumbnail(self.load_image(path), max_px=max_px)
            except ImageError as error:
                # Both models have seen it a moment ago: a report without one picture is better than none.
                logger.warning("picture %s %s", path, error)
                source = ""
            self._kept[key] = Shown(path=path, source=source)
        return self._kept[key]
