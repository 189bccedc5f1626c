"""How publishing fails: for good (DestinationRefused, ResultDamaged), or for now (DestinationUnavailable)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Final

from llava_api.failures import Reason
from llava_trainer.errors import StageError

_OF_SOURCES: Final[Mapping[Reason, Reason]] = MappingProxyType(
    {
        Reason.SOURCE_REFUSED: Reason.DESTINATION_REFUSED,
        Reason.SOURCE_UNAVAILABLE: Reason.DESTINATION_UNAVAILABLE,
    }
)


def refused(message: str) -> StageError:
    """Something else stands there, it does not exist, or it may not be written."""
    return StageError(Reason.DESTINATION_REFUSED, message)


def unavailable(message: str) -> StageError:
    """The network or the server is in the way; the next attempt may succeed."""
    return StageError(Reason.DESTINATION_UNAVAILABLE, message)


def damaged(message: str) -> StageError:
    """A file is not what it was when it was made."""
    return StageError(Reason.RESULT_DAMAGED, message)


@contextmanager
def told_of_destinations() -> Iterator[None]:
    """Errors of what publishing shares with fetching (credentials, connections, answers) get publishing's reasons."""
    try:
        yield
    except StageError as error:
        reason = _OF_SOURCES.get(error.reason)
        if reason is None:
            raise
        raise StageError(reason, error.message) from error
