"""What a file or an entry looks like that the format asked for cannot read: the cure is one word in the spec."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

LOOKED_AT_BYTES = 64 * 2**10
PARQUET_MAGIC = b"PAR1"
TAGGED_WORD = re.compile(rb"[^\t]*\t(O|[BI]-.+)")
"""The first line of an OCR archive's words."""

_LOOKS: Mapping[str, str] = {
    "llava": "LLaVA's", "ubiai": "UBIAI's", "messages": "messages of a chat", "table": "a row of a table",
}  # fmt: skip
_OTHERS: Mapping[bytes, str] = {
    b"PK\x03\x04": "a zip archive", b"\x1f\x8b": "packed with gzip", b"\x28\xb5\x2f\xfd": "packed with zstd",
    b"BZh": "packed with bzip2", b"\xfd7zXZ": "packed with xz", b"SQLite format 3": "an SQLite database",
    b"%PDF": "a PDF", b"\x89PNG": "a picture", b"\xff\xd8\xff": "a picture", b"ARROW1": "an Arrow file",
}  # fmt: skip
_KEYS_SHOWN = 8
_TABLE_KEYS = frozenset(("question", "answer", "answers", "texts", "prompt", "query", "response", "caption"))


def hint_at_format(entry: Any, wanted: str) -> str:
    """What an entry looks like that has not the fields of the format asked for, or its fields; may be empty."""
    if not isinstance(entry, dict) or _tell_format(entry) == wanted:
        return ""
    return looks_like(entry, wanted) or f"; its fields are {tell_fields(entry)}"


def looks_like(entry: Mapping[Any, Any], wanted: str) -> str:
    """Which other format has an entry's fields, and what to set; empty if none."""
    found = _tell_format(entry)
    return "" if found in (None, wanted) else f"; it looks like {_LOOKS[found]}: set dataset.format to {found}"


def tell_fields(names: Iterable[Any]) -> str:
    """The first names of fields or columns, for messages."""
    told = sorted(map(str, names))
    return ", ".join([f"{name:.40}" for name in told[:_KEYS_SHOWN]] + ["…"] * (len(told) > _KEYS_SHOWN)) or "none"


def _tell_format(entry: Mapping[Any, Any]) -> str | None:
    if "messages" in entry:
        return "messages"
    if "conversations" in entry:
        # ShareGPT's form of chats has LLaVA's fields and more.
        return "messages" if {"system", "images"} & entry.keys() else "llava"
    if {"tokens", "annotation"} & entry.keys():
        return "ubiai"
    return "table" if _TABLE_KEYS & entry.keys() else None


def find_wrong_kind(path: Path, wanted: str) -> str | None:
    """What is wrong with a file of which the beginning tells that no reader of the format asked for can read it.

    Returns:
        A message that says what the file is and what to set; None where the reader may try.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        beginning = stream.read(LOOKED_AT_BYTES)
    if beginning.startswith(PARQUET_MAGIC):
        return None if wanted == "table" else "is a Parquet file: set dataset.format to table and name its columns"
    for magic, what in _OTHERS.items():
        if beginning.startswith(magic):
            return f"is {what}: unpack or convert it to a format that dataset.format has, and correct dataset.file"
    text = beginning.removeprefix(b"\xef\xbb\xbf").lstrip()
    first_line = text.split(b"\n", 1)[0].rstrip()
    if text[:1] in (b"[", b"{", b"") or wanted == "ubiai":
        return None
    if TAGGED_WORD.fullmatch(first_line):
        return "looks like the words of UBIAI's OCR archive: set dataset.format to ubiai"
    if wanted != "table" and re.search(rb"[^,\t][,\t][^,\t]", first_line) and not text.startswith(b'"'):
        return "looks like a table (CSV or TSV) and not like JSON: set dataset.format to table and name its columns"
    return None
