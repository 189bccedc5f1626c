"""Rows of a Parquet file, in batches of one row group.

A row group may be as large as the file, and a reader may have to hold a whole column of it: what it takes is told from
the file's metadata before anything is read, and refused where it does not fit. The metadata may lie; what it costs then
is this pod.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llava_trainer.data.entries import ReadingPosition
from llava_trainer.data.rows import Row, TableError, check_columns
from llava_trainer.host_memory import find_free_bytes

_BATCH_BYTES = 8 * 2**20
_MAX_BATCH_ROWS = 1024
_BUFFER_BYTES = 2**20
_BYTES_PER_BYTE = 2.5
"""Memory that a row group takes for each of its bytes: 400 MB in one page took 891, as it is stored, unpacked, and as
values; in pages of 1,024 rows, which most writers make, 391."""
_MAX_NESTING = 4
"""A list of turns, each a struct of texts or of a list of parts."""


def read_parquet(
    path: Path, wanted: Mapping[str, str], position: ReadingPosition, free_bytes: int | None = None
) -> Iterator[Row]:
    """Read the wanted columns row by row.

    Args:
        path: the file.
        wanted: columns, and the field of the spec that names each.
        position: kept up to date; the file's size has been counted.
        free_bytes: memory that there is; None finds out.

    Raises:
        TableError: as ``read_rows``, and a row group does not fit into memory: with the size that would.
    """
    try:
        # Streamed by pages and by this thread: memory must not depend on the number of cores.
        kept = _list_repeatable(pq.read_metadata(path), wanted)
        with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False, read_dictionary=kept) as file:
            schema = file.schema_arrow
            check_columns(schema.names, wanted)
            for column, field in wanted.items():
                _check_type(schema.field(column).type, f"column {column!r:.60} ({field})")
            free_bytes = find_free_bytes() if free_bytes is None else free_bytes
            index = 0
            for group in range(file.metadata.num_row_groups):
                num_rows, num_bytes, num_stored = _measure(file.metadata.row_group(group), wanted)
                _check_size(group, num_rows, num_bytes, free_bytes)
                batch_rows = max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES * num_rows // max(1, num_bytes)))
                batches = file.iter_batches(batch_rows, row_groups=[group], columns=list(wanted), use_threads=False)
                for batch in batches:
                    for number in range(batch.num_rows):
                        yield Row(index=index, values=_read_row(batch, number))
                        index += 1
                position.read_bytes += num_stored
    # The last is of a damaged name of a column.
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise TableError(f"is a Parquet file that cannot be read: {str(error)[:200]}") from error


_MOST_IN_DICTIONARY = 64 * 2**20
"""Bytes of a column in a row group, of which twice as much is no matter."""


def _list_repeatable(metadata: Any, wanted: Mapping[str, str]) -> list[str]:
    """Leaves of the wanted columns whose values a file may hold once and name often: one picture with many questions.

    They stay in their dictionary. Unpacked, each row would have a copy, of which the file's own sizes do not tell.
    Where none is repeated that takes twice as much as unpacking (measured), so it is done where there is little.
    """
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    leaves = [(number, metadata.schema.column(number)) for number in range(metadata.num_columns)]
    return [
        leaf.path
        for number, leaf in leaves
        if leaf.physical_type == "BYTE_ARRAY" and leaf.max_repetition_level == 0 and _is_of(leaf.path, wanted)
        and all(group.column(number).total_uncompressed_size <= _MOST_IN_DICTIONARY for group in groups)
    ]  # fmt: skip


def _is_of(path: str, wanted: Mapping[str, str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in wanted)


def _read_row(batch: pa.RecordBatch, number: int) -> Mapping[str, Any] | TableError:
    values = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            values[name] = column[number].as_py()
        except UnicodeDecodeError as error:
            return TableError(
                f"column {name!r:.60} holds a text that is not UTF-8 ({error.reason}): correct the encoding"
            )
    return values


def _measure(group: Any, wanted: Mapping[str, str]) -> tuple[int, int, int]:
    """Rows, bytes of the wanted columns when they are unpacked, and bytes of all as they are stored."""
    num_bytes = num_stored = 0
    for number in range(group.num_columns):
        column = group.column(number)
        num_stored += column.total_compressed_size
        path = column.path_in_schema
        if _is_of(path, wanted):
            num_bytes += column.total_uncompressed_size
    return group.num_rows, num_bytes, num_stored


def _check_size(group: int, num_rows: int, num_bytes: int, free_bytes: int) -> None:
    needed = int(num_bytes * _BYTES_PER_BYTE)
    if needed <= free_bytes:
        return
    rows = max(1, int(num_rows * free_bytes / needed / 2))
    raise TableError(
        f"row group {group} has {num_rows:,} rows with {num_bytes / 1e6:,.0f} MB in the columns to read, which takes "
        f"{needed / 1e6:,.0f} MB of memory, more than the {free_bytes / 1e6:,.0f} MB that there are: write the file "
        f"with row_group_size={rows}, or raise prepare.resources.limits.memory"
    )


def _check_type(kind: pa.DataType, where: str, depth: int = 0) -> None:
    """Only texts, bytes, numbers, and lists and structs of them are read."""
    if depth > _MAX_NESTING:
        raise TableError(f"{where} is nested more than {_MAX_NESTING} times: flatten it")
    if any(is_kind(kind) for is_kind in _WITH_VALUES):
        _check_type(kind.value_type, where, depth + 1)
    elif pa.types.is_struct(kind):
        for number in range(kind.num_fields):
            _check_type(kind.field(number).type, where, depth + 1)
    elif not any(is_kind(kind) for is_kind in _LEAVES):
        raise TableError(
            f"{where} holds {str(kind)[:60]}: only texts, bytes and whole numbers, and lists and structs of them, are "
            "read"
        )


_WITH_VALUES = (pa.types.is_dictionary, pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_LEAVES = (
    pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary,
    pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean,
    pa.types.is_null,
)  # fmt: skip
