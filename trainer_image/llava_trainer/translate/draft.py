"""A manifest in the making: values by their place, and what has to be said about a place."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Place = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Note:
    """A comment in the manifest."""

    place: Place
    """Where it belongs, below ``spec``; a place that the manifest lacks stands for the nearest one above it."""
    text: str
    is_warning: bool
    """Whether it is said on standard error, too."""


class Draft:
    """What has been decided so far, in the order in which it was."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.notes: list[Note] = []

    def put(self, place: str, value: object) -> None:
        """Set the value at a dotted place below ``spec``."""
        *parents, last = place.split(".")
        target = self.values
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value

    def get(self, place: str) -> Any:
        """Value at a dotted place, None if there is none."""
        target: Any = self.values
        for part in place.split("."):
            target = target.get(part) if isinstance(target, Mapping) else None
        return target

    def say(self, place: str, text: str) -> None:
        """Comment on a place."""
        self.notes.append(Note(place=_parts(place), text=text, is_warning=False))

    def warn(self, place: str, text: str) -> None:
        """Comment on a place that a person should look at before applying."""
        self.notes.append(Note(place=_parts(place), text=text, is_warning=True))


def _parts(place: str) -> Place:
    return tuple(place.split(".")) if place else ()
