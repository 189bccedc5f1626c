"""Whom of ``spec.notifications`` was told what, and what is owed."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from llava_api.base import Lenient
from llava_api.constants import MAX_NOTIFICATION_NAME, StageName
from llava_api.status.values import Count, Short, Time

NOTIFICATIONS_KEPT = 32
"""Notifications that a status tells of, the newest."""


class NotificationState(StrEnum):
    """How far a notification is."""

    PENDING = "Pending"
    """Owed: its Job is to be made, or under way."""
    DELIVERED = "Delivered"
    """The receiver has taken it."""
    UNDELIVERED = "Undelivered"
    """It was given up."""


class NotificationStatus(Lenient):
    """One event that one receiver is told of. It is written with what it tells of, and sent on the word of it."""

    name: Annotated[str, Field(max_length=MAX_NOTIFICATION_NAME, description="Which of spec.notifications.")]
    id: Annotated[Short, Field(description="Id of the event: the same for every receiver and over all tries.")]
    event: Annotated[Short, Field(description="What has happened.")]
    time: Annotated[Time, Field(description="When that was seen.")]
    stage: Annotated[StageName | None, Field(description="Stage that it is about.")] = None
    attempt: Annotated[Count, Field(description="Attempt of that stage; 0 before the first.")] = 0
    reason: Annotated[Short, Field(description="Why, in one CamelCase word.")] = ""
    message: Annotated[Short, Field(description="The same for a person.")] = ""
    restarts: Annotated[Count, Field(description="How often the run had been restarted by then.")] = 0
    state: Annotated[NotificationState, Field(description="How far it is.")] = NotificationState.PENDING
    outcome: Annotated[Short, Field(description="Why it is not delivered, or not yet.")] = ""
    first_try_time: Annotated[
        Time | None, Field(description="When no Job could be made for it for the first time: it is given up 8 h later.")
    ] = None
    completion_time: Annotated[Time | None, Field(description="When it was delivered, or given up.")] = None

    @property
    def is_open(self) -> bool:
        """Whether it is still to be delivered."""
        return self.state is NotificationState.PENDING
