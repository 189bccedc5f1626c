"""Addresses that others wrote: which host they lead to, and what is reached without a proxy. Pure, for both sides.

No address is read by a library: two libraries disagree about what is odd, and what is odd is refused here. No pattern
needs a backslash: CEL, whose engine is another one, takes them as they are.
"""

import ipaddress
import re
from collections.abc import Sequence

PORT = "(:[0-9]+)?"
_REST = "(/[!-~]*)?$"
ADDRESS_HOST = f"^https://[A-Za-z0-9.-]+{PORT}"
ADDRESS = f"{ADDRESS_HOST}{_REST}"
ANY_HOST = f"^https?://[A-Za-z0-9.-]+{PORT}"
"""The same where plain HTTP is allowed too."""
ANY_ADDRESS = f"{ANY_HOST}{_REST}"
ANYTHING = "*"
"""Entry of a list of hosts that stands for all."""


def matches(pattern: str, value: str) -> bool:
    """Whether a pattern matches the whole value."""
    # re.match would let a newline follow a $, which CEL's engine does not.
    return re.fullmatch(pattern, value) is not None


def is_at(address: str, hosts: Sequence[str]) -> bool:
    """Whether an address by TLS is one of these hosts', each HOST or HOST:PORT in lower case."""
    found = re.match(ADDRESS_HOST, address)
    if found is None or not matches(ADDRESS, address):
        return False
    return found[0].lower().removesuffix(":443") in {f"https://{host}".removesuffix(":443") for host in hosts}


def is_allowed_address(address: str, hosts: Sequence[str], *, insecure: bool) -> bool:
    """Whether an address may be asked for (a picture) or sent to (a notification).

    Args:
        address: any text.
        hosts: as above; ``*`` stands for every one.
        insecure: whether it may be reached by plain HTTP.
    """
    if not matches(ANY_ADDRESS, address) or not (insecure or address.startswith("https://")):
        return False
    if ANYTHING in hosts or is_at(address, hosts):
        return True
    origin = show_host(address).lower().removesuffix(":80")
    return origin in {f"http://{host}".removesuffix(":80") for host in hosts}


def show_host(address: str) -> str:
    """Scheme, host and port of an address, which may be shown; what follows may be a secret. Empty if it is none."""
    found = re.match(ANY_HOST, address)
    return found[0] if found is not None and matches(ANY_ADDRESS, address) else ""


def is_spared(no_proxy: str, host: str, port: int | None) -> bool:
    """Whether a host is reached without proxy.

    ``no_proxy`` is read as most programs do: hosts (with or without a port), domains (``.svc`` or ``svc`` for all
    below), addresses, networks (10.0.0.0/8), and ``*``.
    """
    entries = (entry.strip().lower() for entry in no_proxy.split(","))
    return any(_is_meant(entry, host.lower(), port) for entry in entries if entry)


def _is_meant(entry: str, host: str, port: int | None) -> bool:
    if entry == ANYTHING:
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        pass
    name, _, wanted_port = entry.partition(":")
    if wanted_port and wanted_port != str(port):
        return False
    domain = name.removeprefix("*").removeprefix(".")
    return host == domain or host.endswith(f".{domain}")
