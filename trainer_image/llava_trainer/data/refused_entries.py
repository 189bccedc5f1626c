"""Every entry that cannot be used, as a file to work through: the dataset report shows the first ones only."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from llava_trainer.files import make_folder

MAX_LISTED = 100_000
"""Entries that are listed; who has more will not go through them one by one."""


class RefusedEntries:
    """A list on the disk, in a file without a name, while a dataset is read: a line of JSON for each entry."""

    def __init__(self, source: str, spool: Path) -> None:
        """Begin an empty one.

        Args:
            source: of the dataset, as the spec names it.
            spool: where the file is made; it is gone from the folder when this returns.
        """
        make_folder(spool.parent)
        self._source = source
        self._stream: BinaryIO = spool.open("w+b")
        spool.unlink()
        self.num_listed = 0

    def add(self, fields: dict[str, str | int | None]) -> None:
        """List one entry, as long as there are not too many."""
        if self.num_listed < MAX_LISTED:
            line = json.dumps({"source": self._source, **fields}, ensure_ascii=False)
            self._stream.write(line.encode() + b"\n")
            self.num_listed += 1

    def lines(self) -> Iterator[bytes]:
        """What has been listed, in the order in which it was found."""
        self._stream.flush()
        begin = 0
        while chunk := os.pread(self._stream.fileno(), 1 << 20, begin):
            # Whole lines, or what there is of one that is longer.
            end = chunk.rfind(b"\n") + 1 or len(chunk)
            yield chunk[:end]
            begin += end

    def close(self) -> None:
        """Give the file back to the disk."""
        self._stream.close()
