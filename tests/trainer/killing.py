"""A piece of work in a process of its own, which is killed (SIGKILL) when a server gets a certain request.

Processes are forked from a server that has imported what the work needs: a process that imports it anew takes a second.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any


class Victim:
    """A process that can be killed from the thread of a server."""

    def __init__(self, preload: list[str]) -> None:
        self._context = multiprocessing.get_context("forkserver")
        # The main module, too, which is pytest: else each process imports it anew.
        self._context.set_forkserver_preload(["__main__", *preload])
        self._pid = 0

    def run(self, work: Callable[..., None], *arguments: Any) -> int:
        """Its exit code: -9 if it was killed."""
        process = self._context.Process(target=work, args=arguments)
        process.start()
        assert process.pid is not None
        self._pid = process.pid
        process.join(60)
        assert process.exitcode is not None, "it hangs"
        return process.exitcode

    def kill(self) -> None:
        """SIGKILL, which nothing can do anything about."""
        os.kill(self._pid, signal.SIGKILL)
