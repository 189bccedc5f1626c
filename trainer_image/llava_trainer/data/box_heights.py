"""How high the texts of an export are once a picture has been made small for the vision tower.

In memory is a histogram, however many words an export has. What boxes say is taken for what it is: positions that
somebody's program wrote, in pictures whose size it wrote as well; what cannot be a text in such a picture counts for
nothing.
"""

import numpy as np

from llava_api.legibility import AspectRatio, scale_of

_STEPS_A_PX = 4
"""The median is told to a quarter of a pixel."""


class BoxHeights:
    """Heights of texts at the tower's resolution."""

    def __init__(self, image_size_px: int, aspect_ratio: AspectRatio) -> None:
        self._image_size_px = image_size_px
        self._aspect_ratio = aspect_ratio
        self._counts = np.zeros(image_size_px * _STEPS_A_PX + 1, dtype=np.int64)

    def add(self, box: tuple[float, float, float, float], width_px: float, height_px: float) -> None:
        """Count a text.

        Args:
            box: x0 y0 x1 y1, in pixels of the picture; corners may be swapped.
            width_px: the picture's, more than 0.
            height_px: the same.
        """
        height = abs(box[3] - box[1])
        if not 0 < height <= height_px:
            return
        seen_px = height * scale_of(width_px, height_px, self._image_size_px, self._aspect_ratio)
        # Higher than the square is what is cut off in part, and what a picture next to nothing in width makes infinite.
        self._counts[int(min(seen_px, self._image_size_px) * _STEPS_A_PX)] += 1

    @property
    def median_px(self) -> float | None:
        """Height that half of the texts do not reach, in pixels of what the tower sees; None without texts."""
        total = int(self._counts.sum())
        if not total:
            return None
        return float(np.searchsorted(np.cumsum(self._counts), (total + 1) // 2)) / _STEPS_A_PX
