"""Which image a run goes on with: the very one that it began with. Pure."""

import re
from collections.abc import Sequence

from llava_operator.cache.views import PodView

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PULLED_BY = "docker-pullable://"


def pin_image(reference: str | None, pods: Sequence[PodView]) -> str | None:
    """``reference`` by the digest that a pod runs; as it is where the node cannot tell from where to pull that.

    A node names the repository and digest of an image that it has pulled (``REPOSITORY@sha256:...``), and the digest
    alone of one that was loaded by hand, which no other node could pull.
    """
    if reference is None or "@" in reference:
        return reference
    repository = _repository(reference)
    for pod in pods:
        name, _, digest = pod.image_id.removeprefix(_PULLED_BY).partition("@")
        if _DIGEST.fullmatch(digest) and _normalise(name) == _normalise(repository):
            return f"{repository}@{digest}"
    return reference


def _repository(reference: str) -> str:
    """The reference without its tag; a colon before the last slash belongs to a port."""
    head, slash, last = reference.rpartition("/")
    return head + slash + last.partition(":")[0]


def _normalise(repository: str) -> str:
    """The repository as nodes write it: Docker's hub is the default, and ``library`` its default folder."""
    first, _, rest = repository.partition("/")
    if not rest:
        return f"docker.io/library/{repository}"
    return repository if any(mark in first for mark in ".:") or first == "localhost" else f"docker.io/{repository}"
