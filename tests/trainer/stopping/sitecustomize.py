"""Read by Python at its start where this folder is on PYTHONPATH: a process stops (SIGSTOP) before it completes one.

``STOP_BEFORE`` is a pattern of what a file or folder is about to be called, or of a file that is about to be synced
with how many times it has been before (``rows.jsonl#3``); ``STOP_NOTE`` a file for the process's id. Whoever has
stopped once does not stop again.
"""

import os
import re
import signal
from collections import Counter
from pathlib import Path

rename, fsync = Path.rename, os.fsync
synced: Counter[str] = Counter()


def stop_before(what: str) -> None:
    note = Path(os.environ["STOP_NOTE"])
    if re.search(os.environ["STOP_BEFORE"], what) and not note.exists():
        note.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)


def rename_later(self: Path, target: Path) -> Path:
    stop_before(str(target))
    return rename(self, target)


def fsync_later(descriptor: int) -> None:
    path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
    stop_before(f"{path}#{synced[path]}")
    synced[path] += 1
    fsync(descriptor)


Path.rename, os.fsync = rename_later, fsync_later
