"""Read by Python at its start where this folder is on PYTHONPATH: a process stops (SIGSTOP) before it completes one.

``STOP_BEFORE`` is a pattern of what a file or folder is about to be called, ``STOP_NOTE`` a file for the process's id.
Whoever has stopped once does not stop again.
"""

import os
import re
import signal
from pathlib import Path

rename = Path.rename


def rename_later(self: Path, target: Path) -> Path:
    note = Path(os.environ["STOP_NOTE"])
    if re.search(os.environ["STOP_BEFORE"], str(target)) and not note.exists():
        note.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)
    return rename(self, target)


Path.rename = rename_later
