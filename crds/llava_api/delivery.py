"""What the operator hands to the pod that sends one notification. It holds no secret: those are files there."""

from typing import Annotated, Literal

from pydantic import Field

from llava_api.base import Strict

EXIT_REFUSED = 65
"""Exit code of a sending pod that has nothing to try again: the receiver refuses, or something is set wrongly."""
EXIT_UNREACHED = 75
"""The same of one that has tried for as long as it may: another pod may have more luck."""


class Patience(Strict):
    """How long one pod tries."""

    try_for_seconds: Annotated[float, Field(gt=0, le=3600)] = 900
    """From its first try to its last."""
    first_delay_seconds: Annotated[float, Field(gt=0, le=3600)] = 1
    """Between the first two tries; doubled after each."""
    last_delay_seconds: Annotated[float, Field(gt=0, le=3600)] = 60
    answer_seconds: Annotated[float, Field(gt=0, le=3600)] = 30
    """Longest that one try may take, connecting included."""
    connect_seconds: Annotated[float, Field(gt=0, le=3600)] = 10


class Delivery(Strict):
    """One request."""

    kind: Literal["webhook", "slack"]
    id: str
    body: str
    """Sent as it is, in UTF-8; what is signed is these bytes."""
    content_type: str
    url: str | None = None
    """None: it is in the Secret."""
    is_signed: bool = False
    allowed_hosts: tuple[str, ...] = ()
    """The installation's ``policy.notificationHosts``: an address from a Secret is held to them here."""
    insecure: bool = False
    """Its ``policy.insecureNotifications``."""
    http_proxy: str | None = None
    https_proxy: str | None = None
    no_proxy: str = ""
    is_proxy_own: bool = False
    """Whether the proxy for plain HTTP, in the Secret too, is the run's choice and not the installation's."""
    patience: Patience = Patience()
