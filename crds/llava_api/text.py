"""Text of others made fit to show: file names, answers of servers, error messages of libraries.

What reaches a terminal, a status, an Event, a log or a report must not move the cursor, reorder what stands beside it,
hide anything, or be refused by whoever encodes it. This is the one place for that, for both sides. Pure; it escapes no
markup: whoever writes HTML or YAML still does so.
"""

import re
import unicodedata

ELLIPSIS = "…"
"""Stands where something was cut off."""

_ESCAPED = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Categories that show nothing of their own, or something else than themselves: controls of both sets, bidirectional
and zero-width format characters, halves of surrogate pairs, private and unassigned ones, line and paragraph breaks."""
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0")
"""Letters and marks that show nothing either: fillers and joiners (Unicode's Default_Ignorable_Code_Point)."""
_SUSPECT = re.compile("[^ -~]")
_UNIT = re.compile(r"\\x[0-9a-f]{2}|\\u[0-9a-f]{4}|\\U[0-9a-f]{8}|.", re.DOTALL)
_ADDRESS = re.compile(
    r"([a-z][a-z0-9+.-]{0,20}://)((?:[^/\s@\"'<>]*@)?)([^\s?#\"'<>]*)((?:\?[^\s#\"'<>]*)?)", re.IGNORECASE
)
_WHITE = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_BYTES = range(0xDC80, 0xDD00)
"""What Python makes of bytes in a file name that are no UTF-8 (PEP 383)."""


def escape(text: str, *, multiline: bool = False) -> str:
    r"""Replace what must not be shown by ``\xNN`` (bytes that are no UTF-8, too), ``\uNNNN`` or ``\UNNNNNNNN``.

    What comes out can be encoded in UTF-8, and comes out of a second call as it is.

    Args:
        text: any string, half surrogate pairs included.
        multiline: keep line breaks and tabs.
    """
    return _SUSPECT.sub(lambda found: _escape_one(found[0], multiline), text)


def cut(text: str, *, max_chars: int | None = None, max_bytes: int | None = None, keep_end: bool = False) -> str:
    """Shorten to a number of characters and of bytes in UTF-8; an ellipsis takes the place of what is left out.

    No character and no escape of ``escape`` is divided. What fits is returned as it is.

    Args:
        text: one that UTF-8 can encode.
        max_chars: most characters, at least 1; None is no limit.
        max_bytes: most bytes, at least 3, which the ellipsis takes; None is no limit.
        keep_end: cut off the beginning instead of the end.
    """
    if _fits(text, max_chars, max_bytes):
        return text
    room_chars = None if max_chars is None else max_chars - 1
    room_bytes = None if max_bytes is None else max_bytes - len(ELLIPSIS.encode())
    units = _UNIT.findall(text)
    chars = size = kept = 0
    for unit in reversed(units) if keep_end else units:
        chars += len(unit)
        size += len(unit.encode())
        if (room_chars is not None and chars > room_chars) or (room_bytes is not None and size > room_bytes):
            break
        kept += 1
    if keep_end:
        return ELLIPSIS + "".join(units[len(units) - kept :])
    return "".join(units[:kept]) + ELLIPSIS


def redact(text: str) -> str:
    """Take out of every address what may be a secret: its query (signatures) and what stands before its host."""
    return _ADDRESS.sub(
        lambda found: found[1] + (found[2] and f"{ELLIPSIS}@") + found[3] + (found[4] and f"?{ELLIPSIS}"), text
    )


def show(text: object, *, max_chars: int | None = None, max_bytes: int | None = None, multiline: bool = False) -> str:
    """Redact, escape and cut what ``str`` makes of it: a name, an address, an error."""
    return cut(escape(redact(str(text)), multiline=multiline), max_chars=max_chars, max_bytes=max_bytes)


def _escape_one(character: str, multiline: bool) -> str:
    if character in _WHITE:
        return character if multiline and character != "\r" else _WHITE[character]
    number = ord(character)
    if number in _BYTES:
        return f"\\x{number - 0xDC00:02x}"
    if character not in _INVISIBLE and unicodedata.category(character) not in _ESCAPED:
        return character
    if number < 0x80:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _fits(text: str, max_chars: int | None, max_bytes: int | None) -> bool:
    return (max_chars is None or len(text) <= max_chars) and (max_bytes is None or len(text.encode()) <= max_bytes)
