"""Logs of a stage's processes: to stdout for ``kubectl logs``, and to a file on the run's volume that outlives the pod.

Every record is handed to the kernel as it is written, so that a process killed with SIGKILL loses nothing.
"""

import logging
import re
import sys
import time
from collections import deque
from pathlib import Path
from types import TracebackType

from llava_api.text import show
from llava_trainer.files import make_folder

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
_LINES_KEPT = 60
_LIKE_A_RECORD = re.compile(r"\n(?=\d{4}-\d\d-\d\dT)")


class ProcessLog:
    """The log of this process, while the context is entered.

    Records of level INFO and above, and Python's warnings, go to stdout and, from ``keep_in`` on, to a file too.
    """

    def __init__(self) -> None:
        self._formatter = _Formatter(_FORMAT, _TIME_FORMAT)
        self._formatter.converter = time.gmtime
        self._tail = _Tail()
        self._handlers: list[logging.Handler] = []
        self._file: logging.Handler | None = None
        self._previous_level = logging.WARNING

    def __enter__(self) -> "ProcessLog":
        root = logging.getLogger()
        self._previous_level = root.level
        root.setLevel(logging.INFO)
        logging.captureWarnings(True)
        self._add(logging.StreamHandler(sys.stdout))
        self._add(self._tail)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        root = logging.getLogger()
        for handler in self._handlers:
            root.removeHandler(handler)
            handler.close()
        logging.captureWarnings(False)
        root.setLevel(self._previous_level)

    def keep_in(self, file: Path) -> None:
        """Write to ``file`` too, behind what it may hold already; what was logged before is put in first.

        Raises:
            OSError: the file cannot be opened.
        """
        make_folder(file.parent)
        if self._tail.lines:
            with file.open("a", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(self.tail() + "\n")
        self._file = logging.FileHandler(file, encoding="utf-8", errors="backslashreplace")
        self._add(self._file)

    def leave_file(self) -> None:
        """Write to the file no longer: it is another attempt's by now."""
        if self._file is not None:
            logging.getLogger().removeHandler(self._file)
            self._file.close()

    def tail(self) -> str:
        """The last lines, oldest first."""
        return "\n".join(self._tail.lines)

    def _add(self, handler: logging.Handler) -> None:
        handler.setFormatter(self._formatter)
        logging.getLogger().addHandler(handler)
        self._handlers.append(handler)


def read_tail(file: Path, max_bytes: int = 8192) -> str:
    """The whole lines among the last ``max_bytes`` of a log; empty if there is no such file."""
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - max_bytes))
            text = stream.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    return text if size <= max_bytes else text.partition("\n")[2]


class _Formatter(logging.Formatter):
    """Lines that are fit to show, whatever names and answers are told in them.

    A further line of a message that begins like a record is indented: it could be taken for one.
    """

    def format(self, record: logging.LogRecord) -> str:
        return _LIKE_A_RECORD.sub("\n    ", show(super().format(record), multiline=True))


class _Tail(logging.Handler):
    """Keeps the last lines in memory, for a process whose file cannot be read any more."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=_LINES_KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.extend(self.format(record).splitlines())
