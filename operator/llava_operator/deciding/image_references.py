"""Which repository an image reference is of. By no library, and with patterns that CEL takes, too. Pure."""

import re
from collections.abc import Sequence

from llava_api.addresses import PORT, matches
from llava_operator.deciding.policy import COMPONENT

REPOSITORY = f"^[a-z0-9.-]+{PORT}(/{COMPONENT})+"
"""Registry and path at the beginning of an image reference."""
IMAGE = f"{REPOSITORY}(:[A-Za-z0-9_][A-Za-z0-9._-]*)?(@[a-z0-9+._-]+:[0-9a-f]+)?$"
HAS_REGISTRY = "^([^/]*[.:][^/]*|localhost)/"
"""As container runtimes decide whether the first part of a reference is a registry."""


def add_registry(reference: str) -> str:
    """The reference with what container runtimes add to one that names no registry, or none of Docker's own folders."""
    if not re.match(HAS_REGISTRY, reference):
        reference = f"docker.io/{reference}"
    registry, _, path = reference.partition("/")
    return f"docker.io/library/{path}" if registry == "docker.io" and "/" not in path else reference


def is_of_repository(reference: str, allowed: Sequence[str]) -> bool:
    """Whether a reference with its registry is of one of the allowed repositories, or of one below them."""
    found = re.match(REPOSITORY, reference)
    if found is None or not matches(IMAGE, reference):
        return False
    return any(found[0] == one or found[0].startswith(f"{one}/") for one in allowed)
