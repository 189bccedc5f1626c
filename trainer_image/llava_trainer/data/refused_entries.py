"""Every entry that cannot be used, as a file to work through: the dataset report shows the first ones only."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from llava_trainer.data.entries import MAX_EMBEDDING_CHARACTERS, ReadingPosition, read_entries
from llava_trainer.data.json_file import JsonFileError
from llava_trainer.files import make_folder, resolve_inside

MAX_LISTED = 100_000
"""Entries that are listed; who has more will not go through them one by one."""
MAX_ENTRY_BYTES = 16 * 2**10
"""Largest entry that is shown as it is: one that holds an image would hide the others."""
MAX_SHOWN_BYTES = 32 * 2**20
"""All entries that are shown, which are held in memory."""


class RefusedEntries:
    """A list on the disk, in a file without a name, while a dataset is read: a line of JSON for each entry."""

    def __init__(self, source: str, root: Path, spool: Path) -> None:
        """Begin an empty one.

        Args:
            source: of the dataset, as the spec names it.
            root: where it lies.
            spool: where the file is made; it is gone from the folder when this returns.
        """
        make_folder(spool.parent)
        self._source = source
        self._root = root
        self._stream: BinaryIO = spool.open("w+b")
        spool.unlink()
        self.num_listed = 0

    def add(self, fields: dict[str, str | int | None]) -> None:
        """List one entry, as long as there are not too many; ``file`` and ``index`` say which one it is."""
        if self.num_listed < MAX_LISTED:
            line = json.dumps({"source": self._source, **fields})
            self._stream.write(line.encode() + b"\n")
            self.num_listed += 1

    def lines(self) -> Iterator[bytes]:
        """What has been listed, in the order in which it was found, with the entries of JSON files as they are."""
        self._stream.flush()
        wanted: dict[str, set[int]] = {}
        for line in self._read():
            if line["index"] is not None:
                wanted.setdefault(line["file"], set()).add(line["index"])
        shown = dict(self._find(wanted))
        for line in self._read():
            entry = shown.get((line["file"], line["index"]))
            line["entry"] = None if entry is None else json.loads(entry)
            # Escapes, since an entry may hold what UTF-8 cannot.
            yield json.dumps(line).encode() + b"\n"

    def close(self) -> None:
        """Give the file back to the disk."""
        self._stream.close()

    def _read(self) -> Iterator[dict[str, Any]]:
        with os.fdopen(os.dup(self._stream.fileno()), "rb") as stream:
            stream.seek(0)
            for line in stream:
                yield json.loads(line)

    def _find(self, wanted: dict[str, set[int]]) -> Iterator[tuple[tuple[str, int], str]]:
        """The wanted entries, each as JSON, by file and number."""
        num_bytes = 0
        for name, indexes in wanted.items():
            last = max(indexes)
            try:
                path = resolve_inside(self._root, self._root, name)
                for entry in read_entries(path, ReadingPosition(), max_characters=MAX_EMBEDDING_CHARACTERS):
                    if entry.index > last:
                        break
                    if entry.index not in indexes or isinstance(entry.value, JsonFileError):
                        continue
                    text = json.dumps(entry.value)
                    if len(text) <= MAX_ENTRY_BYTES and (num_bytes := num_bytes + len(text)) <= MAX_SHOWN_BYTES:
                        yield (name, entry.index), text
            except (OSError, ValueError):
                # Of no JSON, or broken there: what can be told of it is told.
                continue
