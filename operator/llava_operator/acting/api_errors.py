"""Errors that passes over a run end with, again and again: remembered until one ends well, and told in its status."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from llava_api.status import MAX_TEXT, ApiTrouble
from llava_api.text import show
from llava_operator.clock import to_time
from llava_operator.kube.errors import KubeError
from llava_operator.kube.objects import Key

TOLD_FROM = 3
"""Passes in a row that fail before it is told."""
TOLD_AFTER = timedelta(seconds=10)
"""How long they have been failing by then: an API server that restarts is nobody's business."""


@dataclass(kw_only=True)
class _Errors:
    since: datetime
    num: int = 0
    trouble: ApiTrouble | None = None


@dataclass(kw_only=True)
class ApiErrors:
    """By run. All of it can be lost."""

    now: Callable[[], datetime]
    _errors: dict[Key, _Errors] = field(default_factory=dict)

    def note(self, key: Key, error: KubeError) -> ApiTrouble | None:
        """A pass has failed; returns what is to be told, once it is worth that."""
        now = self.now()
        errors = self._errors.setdefault(key, _Errors(since=now))
        errors.num += 1
        if errors.num >= TOLD_FROM and now - errors.since >= TOLD_AFTER:
            message = show(f"the API server does not do what is asked of it: {error}", max_chars=MAX_TEXT)
            time = errors.trouble.time if errors.trouble else to_time(now)
            errors.trouble = ApiTrouble(message=message, time=time)
        return errors.trouble

    def trouble_of(self, key: Key) -> ApiTrouble | None:
        """What is to be told of a run."""
        errors = self._errors.get(key)
        return errors.trouble if errors else None

    def forget(self, key: Key) -> bool:
        """A pass has ended well; returns whether something was told that has to be taken back."""
        errors = self._errors.pop(key, None)
        return errors is not None and errors.trouble is not None
