"""Log lines about what strangers do: so many at once and later on, since who is refused must not fill the log."""

import logging
from collections.abc import Callable

from llava_operator.serving.allowances import Allowances

LINES_AT_ONCE, LINES_PER_S = 20, 0.2


class FewLines:
    """Logs what there is room for, and how many lines there was none for."""

    def __init__(self, logger: logging.Logger, *, clock: Callable[[], float]) -> None:
        self._logger = logger
        self._allowed: Allowances[None] = Allowances(per_s=LINES_PER_S, burst=LINES_AT_ONCE, clock=clock)
        self._num_unlogged = 0

    def log(self, message: str) -> None:
        """Log a message, unless there are too many."""
        if not self._allowed.take(None):
            self._num_unlogged += 1
            return
        others = f" ({self._num_unlogged} others before were not logged)" if self._num_unlogged else ""
        self._num_unlogged = 0
        self._logger.info("%s%s", message, others)
