"""Kubernetes quantities as numbers, and numbers of bytes for a person."""

import math
import re
from fractions import Fraction

_FACTORS = {
    "": Fraction(1), "m": Fraction(1, 1000), "k": Fraction(1000), "M": Fraction(1000**2), "G": Fraction(1000**3),
    "T": Fraction(1000**4), "P": Fraction(1000**5), "Ki": Fraction(1024), "Mi": Fraction(1024**2),
    "Gi": Fraction(1024**3), "Ti": Fraction(1024**4), "Pi": Fraction(1024**5),
}  # fmt: skip
GIB = 1024**3


def parse_bytes(quantity: str) -> int:
    """Bytes of a quantity such as 80Gi; a part of a byte counts as one, as in Kubernetes.

    Raises:
        ValueError: it is no quantity.
    """
    digits = quantity.rstrip("mkKMGTPi")
    factor = _FACTORS.get(quantity[len(digits) :])
    if factor is None:
        raise ValueError(f"{quantity!r} is no quantity: its suffix must be one of {', '.join(filter(None, _FACTORS))}")
    return math.ceil(Fraction(digits.rstrip(".")) * factor)


def format_gib(size: int) -> str:
    """Bytes for a person, like 61.3Gi."""
    return f"{size / GIB:.1f}Gi"


def read_gib(text: str | None) -> int | None:
    """Bytes that ``format_gib`` has made a text of, to a tenth of a GiB; None if it is something else."""
    return round(float(text[:-2]) * GIB) if text is not None and re.fullmatch(r"\d{1,9}\.\d" "Gi", text) else None


def format_quantity(size: int) -> str:
    """Bytes as a quantity that is exact, in the largest unit that divides them."""
    for suffix in ("Ti", "Gi", "Mi", "Ki"):
        factor = int(_FACTORS[suffix])
        if size and size % factor == 0:
            return f"{size // factor}{suffix}"
    return str(size)
