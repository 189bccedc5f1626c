"""A file that is hashed on the way to the disk, by a thread that is one piece behind whoever makes the pieces.

Neither hashing nor writing holds Python's lock, so that the next piece is made meanwhile. Two pieces are in memory.
"""

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self


class HashedFile:
    """A new file; what is written to it is neither changed nor kept once the next ``write`` has returned."""

    def __init__(self, path: Path) -> None:
        """Open it; one of that name is replaced.

        Raises:
            OSError: it cannot be written.
        """
        self._file = path.open("wb", buffering=0)
        self._digest = hashlib.sha256()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hashing")
        self._pending: Future[None] | None = None

    def write(self, piece: memoryview) -> None:
        """Have a piece written once the one before it is.

        Raises:
            OSError: a piece before it could not be written.
        """
        self._wait()
        self._pending = self._thread.submit(self._store, piece)

    def finish(self) -> str:
        """Wait until everything is on the disk.

        Returns:
            ``sha256:`` and the hex digest of what was written.

        Raises:
            OSError: it cannot be written.
        """
        self._wait()
        os.fsync(self._file.fileno())
        return f"sha256:{self._digest.hexdigest()}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        self._file.close()

    def _wait(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _store(self, piece: memoryview) -> None:
        self._digest.update(piece)
        # An unbuffered write may take less than it is given.
        rest = piece.cast("B")
        while rest:
            rest = rest[self._file.write(rest) :]
