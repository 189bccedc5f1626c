"""Plain values and comments as YAML, readable and the same every time."""

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llava_trainer.translate.draft import Note, Place

_WIDTH = 116
_INDENT = "  "
_PLAIN = re.compile(r"\d+[KMGT]i|[A-Za-z_./][\w ./@+,=()-]*(?::(?=\S)[\w ./@+,=()-]+)*")
_NOT_TEXT = re.compile(r"(?i)(true|false|yes|no|on|off|null|y|n|[.-]?(inf|nan)|\.+|[\d_.]+e?[\d_.]*)")


def write_yaml(document: Mapping[str, Any], notes: Sequence[Note], heading: Sequence[str]) -> str:
    """Write ``document`` with its notes in front of what they are about.

    Args:
        document: mappings, sequences, strings, numbers, truth values and None.
        notes: places are those of ``document``; what it lacks is taken for the nearest place above.
        heading: paragraphs at the top.
    """
    by_place: dict[Place, list[str]] = {}
    for note in notes:
        texts = by_place.setdefault(_existing(document, note.place), [])
        if note.text not in texts:
            texts.append(note.text)
    lines = [line for paragraph in heading for line in _comment(paragraph, 0)]
    lines += [line for text in by_place.get((), ()) for line in _comment(text, 0)]
    return "\n".join([*lines, *_mapping(document, (), by_place)]) + "\n"


def _existing(document: Any, place: Place) -> Place:
    """The longest beginning of ``place`` that the document has."""
    for length, part in enumerate(place):
        if not isinstance(document, Mapping) or part not in document:
            return place[:length]
        document = document[part]
    return place


def _mapping(document: Mapping[str, Any], place: Place, notes: Mapping[Place, Sequence[str]]) -> Iterator[str]:
    margin = _INDENT * len(place)
    for key, value in document.items():
        where = (*place, key)
        for text in notes.get(where, ()):
            yield from _comment(text, len(place))
        if isinstance(value, Mapping) and value:
            yield f"{margin}{key}:"
            yield from _mapping(value, where, notes)
        elif isinstance(value, list | tuple) and value:
            yield f"{margin}{key}:"
            for item in value:
                yield f"{margin}{_INDENT}- {_flow(item)}"
        else:
            yield f"{margin}{key}: {_flow(value)}"


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, float):
        return _float(value)
    return json.dumps(value)


def _float(value: float) -> str:
    """YAML 1.1 takes 2e-05 for text: there has to be a point."""
    if value and not 1e-2 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:e}".split("e")
        digits = mantissa.rstrip("0")
        return f"{digits}{'0' if digits.endswith('.') else ''}e{int(exponent):+d}"
    return repr(value)


def _string(value: str) -> str:
    plain = _PLAIN.fullmatch(value) and not _NOT_TEXT.fullmatch(value) and value == value.strip() and "," not in value
    return value if plain else _quote(value)


def _quote(value: str) -> str:
    """Between double quotes; what is no character to look at by its number, line breaks of Unicode among it."""
    quoted = json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in quoted)


def _comment(text: str, depth: int) -> list[str]:
    margin = _INDENT * depth
    printable = "".join(char if char.isprintable() else " " for char in text)
    return textwrap.wrap(
        printable, _WIDTH, initial_indent=f"{margin}# ", subsequent_indent=f"{margin}#   ", break_on_hyphens=False,
        break_long_words=False,
    ) or [f"{margin}#"]  # fmt: skip
