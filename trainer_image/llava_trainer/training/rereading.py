"""Reading what another node has written to a file system that both have mounted.

A network file system answers from what it has cached: for up to a minute (NFS' acdirmax) a node does not see a file
that another one has just made. A server that was restarted, or a path to it that broke, shows as ESTALE or EIO that
are over with the next attempt. Written here and not taken from a library: it is one loop, for one kind of error.
"""

import errno
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Result = TypeVar("Result")

_TRANSIENT = frozenset({errno.ESTALE, errno.EIO})
_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Rereading:
    """How long errors that may be over soon are waited out. Seconds."""

    transient_s: float = 20.0
    """ESTALE and EIO."""
    missing_s: float = 0.0
    """A file that is not there; 0 for who has made it, or sees the list that it is in."""
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def read(self, action: Callable[[], Result]) -> Result:
        """What ``action`` gives, tried again for as long as it may yet succeed.

        Raises:
            OSError: of the last attempt.
        """
        began, wait_s = self.clock(), _FIRST_WAIT_S
        while True:
            try:
                return action()
            except OSError as error:
                if self.clock() - began + wait_s > self._limit_s(error):
                    raise
                logger.info("trying again in %.1f s: %s", wait_s, error)
            self.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def _limit_s(self, error: OSError) -> float:
        if error.errno == errno.ENOENT:
            return self.missing_s
        # A stale handle is also what a node sees of a file that was replaced: as long as of one that was made.
        return max(self.transient_s, self.missing_s) if error.errno in _TRANSIENT else 0.0


OF_ANOTHER_NODE = Rereading(missing_s=90.0)
"""For what another process says is there: half as long again as NFS caches what it knows of a folder at most."""
