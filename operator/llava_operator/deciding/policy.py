"""What an installation lets runs ask for: the installer's lists, and what their entries may be. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from llava_api.addresses import ANYTHING, PORT

PUBLIC_HUB = "huggingface.co"
MAX_ENTRIES = 16
MAX_ENTRY = 200
"""Longest entry. A message names all of them, and the API server gives up on one of more than 5 KiB."""

COMPONENT = "[a-z0-9]+([._-]+[a-z0-9]+)*"
"""Of an image's path."""
ALLOWED_REPOSITORY = f"^([*]|([a-z0-9-]+([.][a-z0-9-]+)+{PORT}|[a-z0-9-]+:[0-9]+|localhost)(/{COMPONENT})*)$"
ALLOWED_DESTINATION = f"^([*]|(s3|hf|oci|pvc)://[A-Za-z0-9._-]+{PORT}(/[A-Za-z0-9_][A-Za-z0-9._-]*)*)$"
ALLOWED_NAME = "^[a-z0-9.*-]+$"
ALLOWED_HOST = f"^([*]|[a-z0-9.-]+{PORT})$"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The installer's rules. In each list ``*`` alone stands for everything; an empty list allows nothing."""

    trainer_image: str = ""
    """The installation's own image, which is always allowed."""
    hub_endpoint: str = ""
    """The installation's own hub, to which tokens may always be sent; empty: the public one."""
    image_repositories: tuple[str, ...] = (ANYTHING,)
    """REGISTRY or REGISTRY/PATH: this repository and those below it."""
    secret_names: tuple[str, ...] = (ANYTHING,)
    """Names; a ``*`` stands for any part of one."""
    ca_config_maps: tuple[str, ...] = (ANYTHING,)
    """The same, of ConfigMaps with certificate authorities."""
    hub_token_hosts: tuple[str, ...] = (PUBLIC_HUB,)
    """HOST or HOST:PORT, reached by TLS."""
    web_credential_hosts: tuple[str, ...] = (ANYTHING,)
    """The same, for credentials of https:// sources, and of trackers that ``tracking_hosts`` does not name."""
    picture_hosts: tuple[str, ...] = ()
    """The same, for pictures that datasets name by address, by plain HTTP too. What they name only prepare knows, which
    is told the hosts; none by default, since prepare may reach what nobody outside does."""
    notification_hosts: tuple[str, ...] = (ANYTHING,)
    """The same, for notifications."""
    tracking_hosts: tuple[str, ...] = (ANYTHING,)
    """The same, for tracking servers, by plain HTTP too where no credential goes along."""
    publish_destinations: tuple[str, ...] = (ANYTHING,)
    """Addresses without tag or branch: this place and those below it."""
    insecure_notifications: bool = False
    """Whether notifications may go by plain HTTP."""
    tolerations: bool = True
    service_account_names: tuple[str, ...] = ()
    """Names as of Secrets; none by default, since pods act as whom they name."""


def check_entries(entries: Sequence[str], pattern: str, right: str) -> None:
    """Make sure that every entry of a list is one.

    Args:
        entries: of one of the lists.
        pattern: what each must be.
        right: the same in words.

    Raises:
        ValueError: naming the entry.
    """
    wrong = next((one for one in entries if len(one) > MAX_ENTRY or not re.fullmatch(pattern, one)), None)
    if wrong is not None:
        raise ValueError(f"{wrong!r} must be {right}, of at most {MAX_ENTRY} characters")
    if len(entries) > MAX_ENTRIES:
        raise ValueError(f"has {len(entries)} entries, but may have {MAX_ENTRIES}")
