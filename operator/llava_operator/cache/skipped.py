"""Objects that carry our label and are none of ours: passed over, counted, and told of once."""

import logging
from collections.abc import Callable

from llava_operator.cache.wire import ForeignError
from llava_operator.kube.objects import Object
from llava_operator.recent import Recent

logger = logging.getLogger(__name__)


class SkippedObjects:
    """Counts every one, and logs the first of a kind and reason in each namespace: a flood fills no log."""

    def __init__(self, count: Callable[[str, str], None] = lambda kind, reason: None) -> None:
        """Make one that calls ``count`` with kind and reason of every object that is passed over."""
        self._count = count
        self._told: Recent[tuple[str, str, str]] = Recent()

    def note(self, kind: str, raw: Object, error: ForeignError) -> None:
        """Note that an object was passed over."""
        self._count(kind, error.reason)
        meta = raw.get("metadata") if isinstance(raw, dict) else None
        namespace, name = (meta.get("namespace"), meta.get("name")) if isinstance(meta, dict) else (None, None)
        told = (str(namespace), kind, str(error.reason))
        if told in self._told:
            return
        self._told.add(told)
        logger.warning(
            "%s %s in namespace %s is passed over, and so are others like it: it carries our label, but is %s: %s",
            kind, name, namespace, error.reason, error,
        )  # fmt: skip
