"""A small JSON file of a person's, read with a message that says where it is wrong.

Exports are read entry by entry (``entries``); what is read as a whole here, like a mapping from documents to images,
is held to a size.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

MAX_WHOLE_FILE_BYTES = 64 * 2**20
"""Largest file that is parsed as a whole: a mapping of 600,000 documents."""


class JsonFileError(ValueError):
    """The file cannot be read; the message says where and why."""


def read_json(path: Path) -> Any:
    """Parse a JSON file in UTF-8, with or without a byte order mark.

    Raises:
        JsonFileError: too large, not readable, not UTF-8, or not JSON: with line and column.
    """
    try:
        if path.stat().st_size > MAX_WHOLE_FILE_BYTES:
            raise JsonFileError(f"is larger than {MAX_WHOLE_FILE_BYTES:,} bytes: divide it")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise JsonFileError(f"is not UTF-8: byte {error.start} cannot be read ({error.reason})") from error
    except json.JSONDecodeError as error:
        raise JsonFileError(f"is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    except JsonFileError:
        raise
    except RecursionError as error:
        raise JsonFileError("is nested too deeply to be read") from error
    except (OSError, ValueError) as error:
        raise JsonFileError(f"cannot be read: {error}") from error


def describe_mismatch(error: ValidationError) -> str:
    """The first thing that is wrong with an entry, as field, expectation and value."""
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"{_path_of(first['loc'])} is missing"
    found = repr(first["input"])
    return f"{_path_of(first['loc'])}: {message} (is {found if len(found) <= 60 else found[:57] + '...'})"


def is_writable(*texts: str) -> bool:
    """Whether a UTF-8 file can hold the texts: JSON's escapes may leave half a surrogate pair, which none can."""
    try:
        "".join(texts).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _path_of(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.removeprefix(".") or "the entry"
