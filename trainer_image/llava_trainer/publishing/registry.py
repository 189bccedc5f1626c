"""oci://: a model in a registry, as an artifact under the tag and as an image under ``TAG-modelcar``.

Blobs are pushed first, where nobody sees them; a tag makes all of a model visible at once. A registry compares nothing
when a tag is set, so what stands under it is looked at before the first byte is sent, and again before it is set.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llava_api.constants import MODELCAR_SUFFIX
from llava_api.text import show
from llava_trainer.publishing.content import Content, check_item
from llava_trainer.publishing.destination import Place, Sent
from llava_trainer.publishing.model_layers import (
    CONTENT_ANNOTATION,
    Document,
    Layer,
    make_documents,
    make_layer,
    read_layer,
)
from llava_trainer.publishing.refusals import refused
from llava_trainer.publishing.registry_access import read_login
from llava_trainer.publishing.registry_client import CHUNK_BYTES, Blob, RegistryClient
from llava_trainer.sources.responses import origin_of

_SCHEME = "oci://"
_API_HOSTS = {"docker.io": "registry-1.docker.io"}
"""Registries whose address is another one than the name that images have."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Reference:
    host: str
    repository: str
    tag: str


def parse_reference(place: Place) -> _Reference:
    """Registry, repository and tag of a destination; what goes beside the merged model has a tag of its own.

    Raises:
        StageError: DestinationRefused.
    """
    host, _, path = place.address.removeprefix(_SCHEME).partition("/")
    repository, colon, tag = path.rpartition(":")
    try:
        origin_of(f"https://{host}")
    except ValueError:
        host = ""
    if not (place.address.startswith(_SCHEME) and host and repository and colon and tag):
        raise refused(f"{place.field} is {show(place.address)} but must be oci://REGISTRY/REPOSITORY:TAG")
    return _Reference(host=host, repository=repository, tag=f"{tag}-{place.folder}" if place.folder else tag)


class RegistryDestination:
    """One tag of a repository.

    Args:
        place: the destination.
        chunk_bytes: the size of chunks in which a blob is sent.

    Raises:
        StageError: DestinationRefused or SourceRefused; the address or the Secret cannot be used.
    """

    def __init__(self, place: Place, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._place = place
        self._reference = parse_reference(place)
        host = _API_HOSTS.get(self._reference.host, self._reference.host)
        login = read_login(place, self._reference.host, self._reference.repository)
        base = f"{'http' if place.plain_http else 'https'}://{host}"
        self._client = RegistryClient(place, base, self._reference.repository, login, chunk_bytes=chunk_bytes)

    def publish(self, content: Content, on_bytes: Callable[[int], None]) -> Sent:
        """See ``Destination``. The revision is the digest of the artifact's manifest."""
        tag = self._reference.tag
        artifact, image = self._look(tag), self._look(tag + MODELCAR_SUFFIX)
        if artifact is not None and image is not None and artifact.content == image.content == content.digest:
            on_bytes(content.size)
            return Sent(revision=artifact.digest, sent_bytes=0, was_there=True)
        layers = [make_layer(item) for item in content.items]
        documents = make_documents(content, layers, name=self._reference.repository.rpartition("/")[2])
        sent_bytes = done = 0
        for layer in layers:
            sent_bytes += self._push(layer, done, on_bytes)
            done += layer.item.size
        for config in documents.configs:
            sent_bytes += self._client.push_blob(_blob_of(config), lambda num_bytes: None)
        self._look(tag + MODELCAR_SUFFIX)
        self._place.check_attempt()
        for manifest in documents.images:
            self._client.push_manifest(manifest.digest, manifest)
        self._client.push_manifest(tag + MODELCAR_SUFFIX, documents.index)
        self._look(tag)
        self._place.check_attempt()
        self._client.push_manifest(tag, documents.artifact)
        logger.info("%s: %s, and %s%s as an image", self._place.what, documents.artifact.digest, tag, MODELCAR_SUFFIX)
        return Sent(revision=documents.artifact.digest, sent_bytes=sent_bytes)

    def _push(self, layer: Layer, done: int, on_bytes: Callable[[int], None]) -> int:
        blob = Blob(
            digest=layer.digest, size=layer.size, read=lambda begin, end: read_layer(layer, begin, end),
            check=lambda: check_item(layer.item),
        )  # fmt: skip
        return self._client.push_blob(blob, lambda num_bytes: on_bytes(done + min(num_bytes, layer.item.size)))

    def _look(self, tag: str) -> "_Standing | None":
        """What stands under a tag.

        Raises:
            StageError: DestinationRefused; it is no publication of this project.
        """
        found = self._client.find_manifest(tag)
        if found is None:
            return None
        content = _read_annotation(found)
        if content is None:
            raise refused(
                f"{self._place.what}: tag {show(tag)} is taken by something that this project has not published: name "
                "another tag, or delete that one"
            )
        return _Standing(content=content, digest=Document(media_type="", body=found).digest)


@dataclass(frozen=True, kw_only=True)
class _Standing:
    """An earlier publication."""

    content: str
    """Digest of what was published."""
    digest: str
    """Of the manifest."""


def _read_annotation(manifest: bytes) -> str | None:
    try:
        parsed: Any = json.loads(manifest)
    except (ValueError, RecursionError):
        return None
    annotations = parsed.get("annotations") if isinstance(parsed, dict) else None
    found = annotations.get(CONTENT_ANNOTATION) if isinstance(annotations, dict) else None
    return found if isinstance(found, str) else None


def _blob_of(document: Document) -> Blob:
    return Blob(
        digest=document.digest, size=len(document.body), read=lambda begin, end: iter((document.body[begin:end],))
    )
