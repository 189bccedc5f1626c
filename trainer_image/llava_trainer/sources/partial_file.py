"""A file that is not whole yet; beside it stands which version of it that is, and how much is on the disk for sure.

After a crash of the node what was written last may be anything.
"""

import os
from pathlib import Path
from typing import Annotated, BinaryIO

from pydantic import Field

from llava_api.base import Lenient
from llava_trainer.files import write_whole
from llava_trainer.sources.fetched import read_note


class _Note(Lenient):
    version: str
    """As the server told it; empty if it did not."""
    size: Annotated[int, Field(ge=0)]
    """Bytes that have been synced."""


class PartialFile:
    """What has come in of a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._note_file = path.with_suffix(".json")

    def find(self, *, has_digest: bool) -> tuple[int, str]:
        """Bytes that are there already, and of which version; 0 if it has to be begun anew.

        Args:
            has_digest: a digest will tell whether the pieces fit together, where no version does.
        """
        known = read_note(self._note_file, _Note)
        if known is None or not (known.version or has_digest):
            return 0, ""
        is_there = self.path.exists() and self.path.stat().st_size >= known.size
        # The last byte is asked for again: a file that was all there would have no rest to ask for.
        return (max(0, known.size - 1), known.version) if is_there else (0, "")

    def open(self, begin: int) -> BinaryIO:
        """To be read up to ``begin``, and written from there on."""
        if not begin:
            # Before the file is cut: a crash in between must not leave the old bytes under the new version.
            self._note_file.unlink(missing_ok=True)
        return self.path.open("r+b" if begin else "w+b")

    def keep(self, stream: BinaryIO, version: str, size: int) -> None:
        """Note how much of the file is on the disk for sure, and of which version."""
        stream.flush()
        os.fdatasync(stream.fileno())
        write_whole(self._note_file, _Note(version=version, size=size).model_dump_json())

    def publish(self, path: Path) -> None:
        """It is whole, and gets its name.

        Raises:
            IsADirectoryError: that is a folder's.
        """
        self.path.chmod(0o644)
        self.path.rename(path)
        self._note_file.unlink(missing_ok=True)

    def discard(self) -> None:
        """Begin anew next time."""
        self.path.unlink(missing_ok=True)
        self._note_file.unlink(missing_ok=True)
