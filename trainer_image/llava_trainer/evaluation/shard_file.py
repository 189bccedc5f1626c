"""The file in which a pod keeps its rows: appended to batch by batch, so that little is lost with the pod.

The first line says what the rows are answers to, one digest; then comes one row a line; the last line of a whole file
counts them. Whoever reads one believes nothing that does not fit: a pod may have been killed at any byte, and volumes
get damaged.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self

from pydantic import TypeAdapter, ValidationError

from llava_api.base import Strict
from llava_trainer.attempts.foreign import ForeignFolder
from llava_trainer.evaluation.rows import Model, Row
from llava_trainer.files import sync

ROWS_FILE = "rows.jsonl"
_MOST_LINE_BYTES = 8 << 20
"""Of a line: a question or an answer has some thousand tokens, a whole line far less."""


class ShardFileError(ValueError):
    """A file of rows that is not whole; the message names it and what is wrong."""


class Repeats(Strict):
    """How many answers of a model came out otherwise when their questions were asked one by one."""

    model: Model
    asked: int
    changed: int


class Header(Strict):
    """The first line."""

    version: Literal[1] = 1
    inputs: str
    """sha256 of all that decides the answers (``inputs_digest``)."""


class Trailer(Strict):
    """The last line of a whole file."""

    rows: int
    sha256: str
    """Of all lines before this one."""
    seconds: dict[Model, float]
    """How long each model has answered in the pod that made the file whole."""
    repeats: tuple[Repeats, ...] = ()


_LINE: TypeAdapter[Row | Trailer] = TypeAdapter(Row | Trailer)


@dataclass(frozen=True, kw_only=True)
class WholeShard:
    """What a whole file holds."""

    inputs: str
    rows: tuple[Row, ...]
    trailer: Trailer


class ShardWriter:
    """Appends rows to a new file; what has been appended is on the disk."""

    def __init__(self, path: Path, inputs: str) -> None:
        """Begin the file.

        Raises:
            OSError: the volume cannot be written.
        """
        self._digest = hashlib.sha256()
        self._rows = 0
        self._stream = path.open("wb")
        self._write([Header(inputs=inputs)])
        sync(path.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def append(self, rows: Iterable[Row]) -> None:
        """Append rows, and wait until they are on the disk."""
        listed = list(rows)
        self._write(listed)
        self._rows += len(listed)

    def finish(self, seconds: dict[Model, float], repeats: Iterable[Repeats]) -> None:
        """Write the last line."""
        found = self._digest.hexdigest()
        self._write([Trailer(rows=self._rows, sha256=found, seconds=seconds, repeats=tuple(repeats))])

    def _write(self, lines: Iterable[Strict]) -> None:
        content = "".join(f"{line.model_dump_json()}\n" for line in lines).encode()
        self._digest.update(content)
        self._stream.write(content)
        self._stream.flush()
        os.fsync(self._stream.fileno())


def read_left_rows(volume_root: Path, path: Path, inputs: str, most_rows: int) -> list[Row]:
    """Rows that a pod before has left, up to the first line that is none.

    Args:
        volume_root: of the run; below it no link is followed.
        path: of the file.
        inputs: what its rows have to be answers to.
        most_rows: that are read.

    Returns:
        The rows; none where they are answers to something else, or the file is not to be read.
    """
    rows: list[Row] = []
    try:
        with _open(volume_root, path) as stream:
            lines = _read_lines(stream)
            if Header.model_validate_json(next(lines, b"")).inputs != inputs:
                return []
            for line in lines:
                if len(rows) == most_rows:
                    break
                rows.append(Row.model_validate_json(line))
    except (OSError, ValidationError):
        # The rows before a torn line are whole. A file that is away, or something else, has none.
        pass
    return rows


def read_whole_shard(volume_root: Path, path: Path) -> WholeShard:
    """All rows of a file that a pod has made whole.

    Raises:
        ShardFileError: it is not whole: naming the line.
        OSError: it cannot be read.
    """
    digest, rows, trailer, number = hashlib.sha256(), [], None, 0
    with _open(volume_root, path) as stream:
        lines = _read_lines(stream)
        try:
            number, first = 1, next(lines, b"")
            header = Header.model_validate_json(first)
            digest.update(first)
            for number, line in enumerate(lines, start=2):
                if trailer is not None:
                    raise ShardFileError(f"{path} line {number} stands behind the last one")
                read = _LINE.validate_json(line)
                if isinstance(read, Trailer):
                    trailer = read
                else:
                    digest.update(line)
                    rows.append(read)
        except ValidationError as error:
            raise ShardFileError(f"{path} line {number} is none of its kind: {error}") from error
    if trailer is None:
        raise ShardFileError(f"{path} has no last line: it ends after line {number}")
    if (trailer.rows, trailer.sha256) != (len(rows), digest.hexdigest()):
        raise ShardFileError(
            f"{path} has {len(rows):,} rows with sha256 {digest.hexdigest()}, and {trailer.rows:,} with sha256 "
            f"{trailer.sha256} were written"
        )
    return WholeShard(inputs=header.inputs, rows=tuple(rows), trailer=trailer)


def _open(volume_root: Path, path: Path) -> AbstractContextManager[BinaryIO]:
    return ForeignFolder(claim=volume_root, path=path.parent).open_file(path.name)


def _read_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Whole lines with their ends, up to one that has none."""
    while (line := stream.readline(_MOST_LINE_BYTES)).endswith(b"\n"):
        yield line
