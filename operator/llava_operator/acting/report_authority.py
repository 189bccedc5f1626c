"""The certificate authority of the reporting endpoint, as far as a pass needs it."""

from dataclasses import dataclass


@dataclass(kw_only=True)
class Authority:
    """Filled in when the endpoint is up; runs begin also without it, and get it later."""

    certificate: str | None = None
    """PEM; None while it is not known."""
