"""Rows of a table, one at a time: CSV, TSV, JSON lines or Parquet, told from what the file holds.

Memory is bounded by the largest row, of Parquet by the largest row group (``parquet``). Knows nothing about samples.
"""

import csv
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from llava_trainer.data.dialogue import tell
from llava_trainer.data.entries import MAX_EMBEDDING_CHARACTERS, ReadingPosition, read_entries
from llava_trainer.data.json_file import JsonFileError
from llava_trainer.data.recognition import LOOKED_AT_BYTES, PARQUET_MAGIC, looks_like, tell_fields

DELIMITERS = (",", "\t", ";")


class TableError(ValueError):
    """A table, or a row of it, that cannot be read; the message says where and why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row, counted from 0 without the header.

    Attributes:
        values: by column, of those that are wanted; a TableError where the row cannot be read.
    """

    index: int
    values: Mapping[str, Any] | TableError


def read_rows(
    path: Path, wanted: Mapping[str, str], position: ReadingPosition, *, may_lack: Collection[str] = ()
) -> Iterator[Row]:
    """Read a table row by row.

    Args:
        path: the file.
        wanted: the columns to read, and the field of the spec that names each, for messages.
        position: kept up to date.
        may_lack: columns that a row of JSON may leave out, as writers do with what is empty; some row must have them.

    Raises:
        TableError: the file cannot be read, or lacks a column; rows before the place have been yielded.
    """
    try:
        with path.open("rb") as stream:
            beginning = stream.read(LOOKED_AT_BYTES)
        num_bytes = path.stat().st_size
    except OSError as error:
        raise TableError(f"cannot be read: {error}") from error
    is_json = beginning.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"[", b"{")
    # Who reads JSON counts its bytes as well.
    position.total_bytes += 0 if is_json else num_bytes
    if beginning.startswith(PARQUET_MAGIC):
        # Here, and not above: whoever reads no Parquet does without its library.
        from llava_trainer.data.parquet import read_parquet

        yield from read_parquet(path, wanted, position)
    elif is_json:
        yield from _read_json(path, wanted, position, may_lack)
    else:
        yield from _read_delimited(path, beginning, wanted, position)


def check_columns(names: Sequence[str], wanted: Mapping[str, str]) -> None:
    """Make sure that every wanted column is there once.

    Raises:
        TableError: it is not, with the columns that there are and what to correct.
    """
    for column, field in wanted.items():
        count = names.count(column)
        if count == 0:
            hint = looks_like(dict.fromkeys(names), "table")
            raise TableError(
                f"has no column {column!r:.60}: correct {field}; its columns are {tell_fields(names)}{hint}"
            )
        if count > 1:
            raise TableError(f"has {count} columns {column!r:.60}, which {field} names: rename all but one")


def _read_json(
    path: Path, wanted: Mapping[str, str], position: ReadingPosition, may_lack: Collection[str]
) -> Iterator[Row]:
    unseen = set(may_lack)
    required = {column: field for column, field in wanted.items() if column not in may_lack}
    names: list[str] = []
    has_rows = False
    try:
        for entry in read_entries(path, position, max_characters=MAX_EMBEDDING_CHARACTERS):
            if isinstance(entry.value, dict):
                unseen -= entry.value.keys()
                names = names or list(entry.value)
            values = _pick(entry.value, wanted, required)
            has_rows |= not isinstance(values, TableError)
            yield Row(index=entry.index, values=values)
    except JsonFileError as error:
        raise TableError(str(error)) from error
    for column in sorted(unseen) if has_rows else ():
        raise TableError(
            f"has no row with a field {column!r:.60}: correct {wanted[column]}; the first row has {tell_fields(names)}"
        )


def _pick(entry: Any, wanted: Mapping[str, str], required: Mapping[str, str]) -> Mapping[str, Any] | TableError:
    if isinstance(entry, JsonFileError):
        return TableError(str(entry))
    if not isinstance(entry, dict):
        return TableError(f"must be an object with a field for each column (is {tell(entry)})")
    try:
        check_columns(list(entry), required)
    except TableError as error:
        return TableError(str(error).replace("column", "field"))
    return {column: entry.get(column) for column in wanted}


def _read_delimited(
    path: Path, beginning: bytes, wanted: Mapping[str, str], position: ReadingPosition
) -> Iterator[Row]:
    header = beginning.split(b"\n", 1)[0].decode("utf-8", errors="replace")
    delimiter = max(DELIMITERS, key=header.count)
    # csv knows only one limit for a whole process, and nobody else here uses it.
    csv.field_size_limit(MAX_EMBEDDING_CHARACTERS)
    with path.open("rb") as stream:
        lines = _Lines(stream, position)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            names = next(reader, [])
            check_columns(names, wanted)
            places = {column: names.index(column) for column in wanted}
            rows = (row for row in reader if row)
            for index, row in enumerate(rows):
                lines.begin_row()
                if len(row) != len(names):
                    message = f"line {lines.number} has {len(row)} cells, the header {len(names)}: quote what holds a "
                    yield Row(index=index, values=TableError(f"{message}{delimiter!r} or a line break"))
                    continue
                yield Row(index=index, values={column: row[place] for column, place in places.items()})
        except csv.Error as error:
            raise TableError(f"line {lines.number} cannot be read: {error}") from error


class _Lines:
    """The lines of a file in UTF-8; how much one row takes of it is bounded."""

    def __init__(self, stream: BinaryIO, position: ReadingPosition) -> None:
        self._stream = stream
        self._position = position
        self._row_bytes = 0
        self.number = 0
        """Of the line that was read last, from 1."""

    def begin_row(self) -> None:
        """What is read from now on belongs to another row."""
        self._row_bytes = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._stream.readline(MAX_EMBEDDING_CHARACTERS + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self._position.read_bytes += len(line)
        self._row_bytes += len(line)
        if self._row_bytes > MAX_EMBEDDING_CHARACTERS:
            raise TableError(
                f"line {self.number} belongs to a row of more than {MAX_EMBEDDING_CHARACTERS:,} bytes: divide it, or "
                "close the quote that was left open before"
            )
        try:
            return line.decode("utf-8-sig" if self.number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise TableError(f"line {self.number} is not UTF-8 ({error.reason}): save the table as UTF-8") from error
