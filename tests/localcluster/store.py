"""Reading buildah's image storage, so that a layer can be handed to a node without being packed and unpacked.

The storage is ours alone (in the cache), written by buildah with the overlay driver. Its files are those of
github.com/containers/storage: `overlay-images/images.json`, `overlay-layers/layers.json` and one folder
`overlay/<layer>/diff` a layer.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.localcluster.errors import ClusterError
from tests.localcluster.paths import RUN_ROOT, cache_root


@dataclass(frozen=True)
class StoredLayer:
    """A layer: the digest of its uncompressed tar, its unpacked files and the key of the layer in the storage."""

    key: str
    diff_id: str
    files: Path


@dataclass(frozen=True)
class StoredImage:
    """An image: layers from the bottom up, and its manifest and configuration byte for byte."""

    reference: str
    layers: tuple[StoredLayer, ...]
    manifest: bytes
    config_digest: str
    config: bytes


def storage_root() -> Path:
    """The folder of the storage."""
    return cache_root() / "images"


def buildah_command() -> list[str]:
    """The start of every buildah command line on this storage."""
    # What is mounted right now, of this storage and no other.
    run_root = RUN_ROOT / f"buildah-{hashlib.sha256(str(storage_root()).encode()).hexdigest()[:8]}"
    return ["buildah", "--root", str(storage_root()), "--runroot", str(run_root), "--storage-driver", "overlay"]


def read_json(path: Path) -> Any:
    """The decoded file, an empty list when there is none yet."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise ClusterError(f"{path} is not readable ({error}); delete {storage_root()} and build anew") from error


def normalized(reference: str) -> str:
    """The reference with the registry and tag that containers write out: localhost/NAME:latest."""
    name, _, tag = reference.rpartition(":")
    if not name or "/" in tag:
        name, tag = reference, "latest"
    return f"{name if '/' in name else f'localhost/{name}'}:{tag}"


def _layers(top: str) -> tuple[StoredLayer, ...]:
    known = {layer["id"]: layer for layer in read_json(storage_root() / "overlay-layers/layers.json")}
    found: list[StoredLayer] = []
    key: str | None = top
    while key:
        layer = known[key]
        found.append(StoredLayer(key, layer["diff-digest"], storage_root() / "overlay" / key / "diff"))
        key = layer.get("parent")
    return tuple(reversed(found))


def find_image(reference: str) -> StoredImage | None:
    """The image of that name in the storage, None when there is none.

    Raises ClusterError when the storage contradicts itself: it is then fit only to be deleted.
    """
    wanted = normalized(reference)
    images = read_json(storage_root() / "overlay-images/images.json")
    image = next((image for image in images if wanted in image.get("names", [])), None)
    if image is None:
        return None
    folder = storage_root() / "overlay-images" / image["id"]
    manifest = (folder / "manifest").read_bytes()
    config_digest = json.loads(manifest)["config"]["digest"]
    config = (folder / ("=" + base64.b64encode(config_digest.encode()).decode())).read_bytes()
    layers = _layers(image["layer"])
    if [layer.diff_id for layer in layers] != json.loads(config)["rootfs"]["diff_ids"]:
        raise ClusterError(f"image {wanted}: its layers are not those of its configuration; delete {storage_root()}")
    return StoredImage(wanted, layers, manifest, config_digest, config)


def disposable_images(
    images: list[dict[str, Any]], layers: list[dict[str, Any]], *, num_kept: int, big_bytes: int
) -> list[str]:
    """Which images may go to free disk space, as image ids, the newest first.

    Of each repository the newest `num_kept` images stay, and every image that is named `:dev`. Unnamed images are
    the build's own cache: they go only when they hold on to a layer of `big_bytes` or more that no kept image has.
    """
    parents = {layer["id"]: layer.get("parent") for layer in layers}
    sizes = {layer["id"]: layer.get("diff-size", 0) for layer in layers}

    def chain(image: dict[str, Any]) -> set[str]:
        found: set[str] = set()
        key = image.get("layer")
        while key:
            found.add(key)
            key = parents.get(key)
        return found

    newest_first = sorted(images, key=lambda image: image.get("created", ""), reverse=True)
    kept: list[dict[str, Any]] = []
    counts: dict[str, int] = {}
    disposable: list[dict[str, Any]] = []
    for image in newest_first:
        names = image.get("names") or []
        if not names:
            continue
        repositories = {name.rpartition(":")[0] for name in names}
        for repository in repositories:
            counts[repository] = counts.get(repository, 0) + 1
        is_kept = any(name.endswith(":dev") for name in names) or any(counts[name] <= num_kept for name in repositories)
        (kept if is_kept else disposable).append(image)
    needed = set().union(*(chain(image) for image in kept))
    for image in newest_first:
        lone = chain(image) - needed
        if not image.get("names") and any(sizes.get(key, 0) >= big_bytes for key in lone):
            disposable.append(image)
    return [image["id"] for image in disposable]


def find_disposable_images(*, num_kept: int, big_bytes: int) -> list[str]:
    """The same for the storage as it is."""
    return disposable_images(
        read_json(storage_root() / "overlay-images/images.json"),
        read_json(storage_root() / "overlay-layers/layers.json"),
        num_kept=num_kept,
        big_bytes=big_bytes,
    )
