"""Instants as the API writes them."""

from datetime import UTC, datetime

from llava_api.status import Time


def now() -> datetime:
    """The present instant, in UTC."""
    return datetime.now(UTC)


def to_time(instant: datetime) -> Time:
    """RFC 3339 in UTC with whole seconds, as Kubernetes writes it."""
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def to_micro_time(instant: datetime) -> str:
    """RFC 3339 in UTC with microseconds: Kubernetes' MicroTime."""
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def from_time(text: Time) -> datetime:
    """The instant of ``to_time``'s or Kubernetes' text.

    Raises:
        ValueError: it is no RFC 3339 text.
    """
    return datetime.fromisoformat(text)
