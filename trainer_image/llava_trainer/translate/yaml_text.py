"""Plain values and comments as YAML, readable and the same every time. ruamel.yaml lays out and writes."""

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from ruamel.yaml import YAML, ScalarNode
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from llava_trainer.translate.draft import Note, Place

_WIDTH = 116
_INDENT = 2
# ruamel.yaml quotes what YAML 1.2 would misread; kubectl reads 1.1, to which yes is a truth value and 1_000 a number.
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
    writer = YAML()
    writer.Representer = _Representer
    writer.indent(mapping=_INDENT, sequence=2 * _INDENT, offset=_INDENT)
    writer.width = 10**6
    stream = io.StringIO()
    top = [*heading, *by_place.get((), ())]
    stream.write("".join(f"# {line}\n" for text in top for line in _wrap(text, 0)))
    writer.dump(_mapping(document, (), by_place), stream)
    # What is no character to look at by its number; comments hold none.
    return "".join(c if c.isprintable() or c == "\n" else f"\\U{ord(c):08x}" for c in stream.getvalue())


def _existing(document: Any, place: Place) -> Place:
    """The longest beginning of ``place`` that the document has."""
    for length, part in enumerate(place):
        if not isinstance(document, Mapping) or part not in document:
            return place[:length]
        document = document[part]
    return place


def _mapping(document: Mapping[str, Any], place: Place, notes: Mapping[Place, Sequence[str]]) -> CommentedMap:
    made = CommentedMap()
    for key, value in document.items():
        where = (*place, key)
        if isinstance(value, Mapping) and value:
            made[key] = _mapping(value, where, notes)
        elif isinstance(value, list | tuple) and value:
            made[key] = CommentedSeq(_flow(item) for item in value)
        else:
            made[key] = _flow(value)
        if lines := [line for text in notes.get(where, ()) for line in _wrap(text, len(place))]:
            made.yaml_set_comment_before_after_key(key, before="\n".join(lines), indent=_INDENT * len(place))
    return made


def _flow(value: Any) -> Any:
    """In one line."""
    made: Any
    if isinstance(value, Mapping):
        made = CommentedMap((key, _flow(item)) for key, item in value.items())
    elif isinstance(value, list | tuple):
        made = CommentedSeq(_flow(item) for item in value)
    else:
        return _quote(value) if isinstance(value, str) else value
    made.fa.set_flow_style()
    return made


def _quote(value: str) -> str:
    plain = _PLAIN.fullmatch(value) and not _NOT_TEXT.fullmatch(value) and value == value.strip() and "," not in value
    return value if plain else DoubleQuotedScalarString(value)


def _wrap(text: str, depth: int) -> list[str]:
    printable = "".join(char if char.isprintable() else " " for char in text)
    width = _WIDTH - _INDENT * depth - len("# ")
    return textwrap.wrap(
        printable, width, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
    ) or [""]  # fmt: skip


class _Representer(RoundTripRepresenter):
    def represent_float(self, value: float) -> ScalarNode:
        """YAML 1.1 takes 2e-05 for text: there has to be a point."""
        text = repr(value)
        if value and not 1e-2 <= abs(value) < 1e6:
            # All its digits, which a format of floats would round.
            mantissa, exponent = f"{Decimal(text).normalize():e}".split("e")
            text = f"{mantissa}{'' if '.' in mantissa else '.0'}e{int(exponent):+d}"
        node: ScalarNode = self.represent_scalar("tag:yaml.org,2002:float", text)
        return node


_Representer.add_representer(float, _Representer.represent_float)
