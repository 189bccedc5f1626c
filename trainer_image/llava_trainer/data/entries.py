"""The entries of a JSON export, one at a time: a list, or JSON lines.

An export of a gigabyte takes no more memory than its largest entry, which is bounded, too. Each entry is parsed by the
standard library, so that what is JSON, and where it is not, is told as everywhere else. Knows nothing about samples.
"""

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from llava_trainer.data.json_file import JsonFileError

MAX_ENTRY_CHARACTERS = 4 * 2**20
"""Largest entry, in characters. A conversation has some thousands, a document of 100 pages 300,000."""
MAX_EMBEDDING_CHARACTERS = 32 * 2**20
"""The same where entries may hold images: 24 MB of them in base64."""
_CHUNK_BYTES = 256 * 2**10
_MAY_BE_CUT = 16
"""An error this near to the end of what was read may come from having read only so far: in ``true`` or ``\\ud83d``."""


@dataclass(kw_only=True)
class ReadingPosition:
    """How far a reader has come, for whoever shows progress."""

    read_bytes: int = 0
    total_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One entry of an export, counted from 0; ``value`` is a JsonFileError where a line is not JSON."""

    index: int
    value: Any


def read_entries(
    path: Path, position: ReadingPosition, *, max_characters: int = MAX_ENTRY_CHARACTERS
) -> Iterator[Entry]:
    """Read an export entry by entry, in UTF-8 with or without a byte order mark.

    Args:
        path: a JSON list, or one JSON value a line.
        position: kept up to date.
        max_characters: of the largest entry.

    Raises:
        JsonFileError: not readable, not UTF-8, not JSON or no list, with line and column where there is one; entries
            before the place have been yielded.
    """
    try:
        position.total_bytes += path.stat().st_size
        with path.open("rb") as stream:
            text = _Text(stream, position, max_characters)
            first = text.peek()
            if first == "[":
                yield from _read_list(text)
            elif first == "{":
                yield from _read_lines(text)
            else:
                found = text.decode()
                raise JsonFileError(f"must be a JSON list or JSON lines, not {type(found).__name__}")
    except OSError as error:
        raise JsonFileError(f"cannot be read: {error}") from error


def _read_list(text: "_Text") -> Iterator[Entry]:
    text.skip()
    index = 0
    while text.peek() != "]" or index:
        yield Entry(index=index, value=text.decode())
        index += 1
        following = text.peek()
        if following == "]":
            break
        if following != ",":
            raise text.error("Expecting ',' delimiter")
        text.skip()
    text.skip()
    if text.peek():
        raise text.error("Extra data")


def _read_lines(text: "_Text") -> Iterator[Entry]:
    index = number = 0
    while (line := text.read_line()) is not None:
        number += 1
        if not line.strip():
            continue
        value: Any
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            told = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            place = f"column {error.colno}" if isinstance(error, json.JSONDecodeError) else "it"
            if index == 0:
                raise JsonFileError(
                    "is neither a JSON list nor JSON lines: it begins with an object that does not end in its line "
                    f"({told} at line {number}, {place})"
                ) from error
            value = JsonFileError(f"line {number} is not JSON: {told} at {place}")
        yield Entry(index=index, value=value)
        index += 1


class _Text:
    """The characters of a file, of which only some are held, and the place in them."""

    def __init__(self, stream: BinaryIO, position: ReadingPosition, max_characters: int) -> None:
        self._stream = stream
        self._max_characters = max_characters
        self._position = position
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()
        self._held = ""
        self._at = 0
        self._read_bytes = 0
        self._at_end = False
        self._num_lines = 0
        """Line breaks before what is held."""
        self._column = 0
        """Characters of the first held line that are no longer held."""

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            while self._at < len(self._held):
                if self._held[self._at] not in " \t\n\r":
                    return self._held[self._at]
                self._at += 1
            if self._at_end:
                return ""
            self._fill(_CHUNK_BYTES)

    def skip(self) -> None:
        """Go on after the next character."""
        self._at += 1

    def decode(self) -> Any:
        """The JSON value that begins here; the place is after it then.

        Raises:
            JsonFileError: it is none, or too large.
        """
        self.peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._held, self._at)
            except json.JSONDecodeError as error:
                cut_off = error.pos > len(self._held) - _MAY_BE_CUT or error.msg.startswith("Unterminated string")
                if self._at_end or not cut_off:
                    raise self.error(error.msg, error.pos) from error
            except RecursionError as error:
                raise JsonFileError("is nested too deeply to be read") from error
            except ValueError as error:
                raise JsonFileError(f"cannot be read: {error}") from error
            else:
                # A number near the end of what is held may go on: 3, 3.5, 3.5e-7.
                if self._at_end or not isinstance(value, int | float) or end < len(self._held) - _MAY_BE_CUT:
                    self._at = end
                    return value
            self._grow()

    def read_line(self) -> str | None:
        """The rest of the line, and the place after it; None at the end."""
        while (end := self._held.find("\n", self._at)) < 0 and not self._at_end:
            self._grow()
        if end < 0:
            end = len(self._held)
            if self._at >= end:
                return None
        line = self._held[self._at : end]
        self._at = end + 1
        return line

    def error(self, message: str, at: int | None = None) -> JsonFileError:
        """What is wrong at a place (of what is held), with line and column."""
        at = self._at if at is None else at
        line = self._held.count("\n", 0, at)
        column = at - self._held.rfind("\n", 0, at) if line else self._column + at + 1
        return JsonFileError(f"is not JSON: {message} at line {self._num_lines + line + 1}, column {column}")

    def _grow(self) -> None:
        """Read on within one entry: as much as is held, so that trying again costs no more than reading."""
        held = len(self._held) - self._at
        if held > self._max_characters:
            raise JsonFileError(f"holds an entry of more than {self._max_characters:,} characters: divide it")
        self._fill(max(_CHUNK_BYTES, held))

    def _fill(self, num_bytes: int) -> None:
        self._num_lines += (passed := self._held.count("\n", 0, self._at))
        begin_of_line = self._held.rfind("\n", 0, self._at) + 1
        self._column = self._at - begin_of_line if passed else self._column + self._at
        chunk = self._stream.read(num_bytes)
        pending = len(self._decoder.getstate()[0])
        try:
            new = self._decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            at_byte = self._read_bytes - pending + error.start
            raise JsonFileError(f"is not UTF-8: byte {at_byte} cannot be read ({error.reason})") from error
        self._read_bytes += len(chunk)
        self._position.read_bytes += len(chunk)
        self._held = self._held[self._at :] + new
        self._at = 0
        self._at_end = not chunk
