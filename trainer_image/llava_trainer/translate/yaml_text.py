"""A manifest with its comments as YAML, readable and the same every time. ruamel.yaml writes it.

What is left to say here is what the library has no place for: where a note goes, how it is wrapped, and what has to be
spelled so that all read the same. kubectl reads YAML 1.1, in which ``yes`` is no text and ``1e-5`` is one; ruamel.yaml
writes 1.2.
"""

import io
import math
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from llava_trainer.translate.draft import Note, Place

_WIDTH = 116
_INDENT = 2
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
    written = io.StringIO()
    for text in (*heading, *by_place.get((), ())):
        written.writelines(f"# {line}\n" for line in _wrap(text, 0))
    _writer(_is_printable(document)).dump(_block(document, (), by_place), written)
    return written.getvalue()


class _Representer(RoundTripRepresenter):
    """Numbers and nothing in a spelling that YAML 1.1 and 1.2 understand alike."""


def _represent_float(representer: RoundTripRepresenter, value: float) -> ScalarNode:
    if not math.isfinite(value):
        return representer.represent_float(value)
    return representer.represent_scalar("tag:yaml.org,2002:float", _float(value))


def _represent_none(representer: RoundTripRepresenter, value: None) -> ScalarNode:
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")


_Representer.add_representer(float, _represent_float)
_Representer.add_representer(type(None), _represent_none)


def _writer(is_printable: bool) -> YAML:
    writer = YAML()
    writer.Representer = _Representer
    writer.indent(mapping=_INDENT, sequence=2 * _INDENT, offset=_INDENT)
    # One line a value: what is folded is hard to read, and to search for.
    writer.width = sys.maxsize
    # ruamel.yaml writes characters that turn or hide a text as they are; escaped, they are seen.
    writer.allow_unicode = is_printable
    return writer


def _is_printable(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_printable(part) for item in value.items() for part in item)
    if isinstance(value, list | tuple):
        return all(map(_is_printable, value))
    return not isinstance(value, str) or value.isprintable()


def _existing(document: Any, place: Place) -> Place:
    """The longest beginning of ``place`` that the document has."""
    for length, part in enumerate(place):
        if not isinstance(document, Mapping) or part not in document:
            return place[:length]
        document = document[part]
    return place


def _block(document: Mapping[str, Any], place: Place, notes: Mapping[Place, Sequence[str]]) -> CommentedMap:
    """A mapping of a line a key, with comments; what stands in lists is written between brackets."""
    block = CommentedMap()
    for name, value in document.items():
        key, where = _string(name), (*place, name)
        if isinstance(value, Mapping) and value:
            block[key] = _block(value, where, notes)
        elif isinstance(value, list | tuple):
            block[key] = CommentedSeq(map(_flow, value))
        else:
            block[key] = _flow(value)
        lines = [line for text in notes.get(where, ()) for line in _wrap(text, len(place))]
        if lines:
            block.yaml_set_comment_before_after_key(key, "\n".join(lines), indent=_INDENT * len(place))
    return block


def _flow(value: Any) -> Any:
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, Mapping):
        made: CommentedMap | CommentedSeq = CommentedMap((_string(key), _flow(item)) for key, item in value.items())
    elif isinstance(value, list | tuple):
        made = CommentedSeq(map(_flow, value))
    else:
        return value
    made.fa.set_flow_style()
    return made


def _float(value: float) -> str:
    """YAML 1.1 takes 2e-05 for text: there has to be a point."""
    if value and not 1e-2 <= abs(value) < 1e6:
        mantissa, exponent = f"{Decimal(repr(value)):e}".split("e")
        return f"{mantissa}{'' if '.' in mantissa else '.0'}e{exponent}"
    return repr(value)


def _string(value: str) -> str:
    plain = _PLAIN.fullmatch(value) and not _NOT_TEXT.fullmatch(value) and value == value.strip() and "," not in value
    return value if plain else DoubleQuotedScalarString(value)


def _wrap(text: str, depth: int) -> list[str]:
    """Lines of a comment at a depth, without their margin and ``#``: no character of the text ends one."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    width = _WIDTH - _INDENT * depth - len("# ")
    return textwrap.wrap(
        printable, width, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
    ) or [""]  # fmt: skip
