"""Whether the vision tower's resolution shows what pictures hold: a receipt at 336 px cannot be read. Pure.

LLaVA v1.5 sees every picture at one size. What is not there can be learned by heart, but not be read in the next
picture, however long training takes and whatever its settings.
"""

from typing import Literal

SMALL_SCALE = 0.25
"""The median picture is warned of below: a page's usual letters of 30 px (10 points at 200 dpi) are then under 8 px."""
READABLE_PX = 8
"""Height of a text's box at the tower's resolution below which its letters run together: capitals then have about 6 px,
and a patch of 14 px shows two lines."""

AspectRatio = Literal["pad", "square"]


def scale_of(width_px: float, height_px: float, image_size_px: int, aspect_ratio: AspectRatio) -> float:
    """By how much a picture is scaled for the tower, below 1 where it is made smaller.

    ``pad`` fits the longer side into the tower's square, ``square`` the shorter one, and cuts off what is over.
    """
    side = max(width_px, height_px) if aspect_ratio == "pad" else min(width_px, height_px)
    return image_size_px / side


def describe_small_pictures(scale: float | None, image_size_px: int) -> str | None:
    """A warning where the median picture is scaled too far down; None where it is not, or nothing is known."""
    if scale is None or scale >= SMALL_SCALE:
        return None
    return (
        f"the median picture is scaled to {scale:.0%} of its size for the vision tower, which sees {image_size_px} px: "
        f"what is less than about {READABLE_PX / scale:.0f} px high in it cannot be read, whatever is trained; cut "
        "pictures to what the questions are about, or divide them"
    )


def describe_small_text(box_px: float | None, image_size_px: int) -> str | None:
    """A warning where the median text's box is too low to be read; None where it is not, or no box is known."""
    if box_px is None or box_px >= READABLE_PX:
        return None
    return (
        f"the median word is {box_px:.1f} px high at the vision tower's resolution of {image_size_px} px, and below "
        f"{READABLE_PX} px it cannot be read, whatever is trained; cut pictures to what the questions are about, or "
        "divide them"
    )
