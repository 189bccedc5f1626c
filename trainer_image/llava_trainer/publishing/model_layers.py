"""A model in a registry: layers of one file each, and the two manifests that are made of the same layers.

Under the tag stands a model artifact as ModelPack has it (https://github.com/modelpack/model-spec; modctl and KitOps
read it); under ``TAG-modelcar`` an image with the same files in /models, which Kubernetes mounts as an image volume and
KServe as a model. A layer is a tar of one file below ``models/``, not compressed, and made of nothing but the file's
name, size and content: both manifests name the same blobs, and nothing is stored twice.

Pure but for ``make_layer`` and ``read_layer``, which read the file.
"""

import hashlib
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from llava_api.constants import GROUP
from llava_trainer.publishing.content import PUBLICATION, SIGNATURE, Content, Item, read_chunks, read_span

CONTENT_ANNOTATION: Final = f"{GROUP}/content"
"""Of a manifest or an index: digest of the content (``Content.digest``). Only publications of this project have it."""
MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
ARTIFACT_TYPE: Final = "application/vnd.cncf.model.manifest.v1+json"
ARCHITECTURES: Final = ("amd64", "arm64")
"""Of nodes that mount the image; a container runtime takes none that is of another one than its own."""
_MODEL_CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
_IMAGE_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_IMAGE_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
_FOLDER = "models"
"""Where KServe looks for a model in an image."""
_FILE_PATH_ANNOTATION = "org.cncf.model.filepath"
_TITLE_ANNOTATION = "org.opencontainers.image.title"
_BLOCK_BYTES = tarfile.BLOCKSIZE


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A file as a tar: header, content, trailer."""

    item: Item
    header: bytes
    trailer: bytes
    digest: str
    """``sha256:HEX`` of the tar."""

    @property
    def size(self) -> int:
        """Bytes of the tar."""
        return len(self.header) + self.item.size + len(self.trailer)


@dataclass(frozen=True, kw_only=True)
class Document:
    """A manifest, an index or a configuration: small, and made here."""

    media_type: str
    body: bytes

    @property
    def digest(self) -> str:
        """``sha256:HEX`` of the body."""
        return f"sha256:{hashlib.sha256(self.body).hexdigest()}"

    def describe(self, **more: Any) -> dict[str, Any]:
        """The descriptor by which others name it."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.body), **more}


@dataclass(frozen=True, kw_only=True)
class Documents:
    """What is pushed beside the layers, in this order."""

    configs: Sequence[Document]
    images: Sequence[Document]
    """Manifests of the image, one an architecture, which ``index`` lists."""
    index: Document
    artifact: Document


def make_layer(item: Item) -> Layer:
    """Read the file and find its layer's digest.

    Raises:
        StageError: ResultDamaged, if it is not what it was when it was made.
    """
    header = make_header(item)
    trailer = bytes(-item.size % _BLOCK_BYTES + 2 * _BLOCK_BYTES)
    digest = hashlib.sha256(header)
    for chunk in read_chunks(item):
        digest.update(chunk)
    digest.update(trailer)
    return Layer(item=item, header=header, trailer=trailer, digest=f"sha256:{digest.hexdigest()}")


def read_layer(layer: Layer, begin: int, end: int) -> Iterator[bytes]:
    """Bytes ``begin`` to ``end`` of the tar; what comes of a file that has changed since is for its digest to tell.

    Raises:
        StageError: ResultDamaged, if the file is gone or shorter.
    """
    content_begin, content_end = len(layer.header), len(layer.header) + layer.item.size
    if begin < content_begin:
        yield layer.header[begin : min(end, content_begin)]
    if begin < content_end and end > content_begin:
        offset = max(begin - content_begin, 0)
        yield from read_span(layer.item, offset, min(end, content_end) - content_begin - offset)
    if end > content_end:
        yield layer.trailer[max(begin - content_end, 0) : end - content_end]


def make_header(item: Item) -> bytes:
    """The headers of the folders and of the file: the same whoever makes them, and whenever."""
    path = PurePosixPath(_FOLDER, item.name)
    blocks = []
    for folder in reversed(path.parents[:-1]):
        entry = tarfile.TarInfo(str(folder))
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        blocks.append(entry.tobuf(tarfile.PAX_FORMAT))
    entry = tarfile.TarInfo(str(path))
    entry.size, entry.mode = item.size, 0o644
    return b"".join([*blocks, entry.tobuf(tarfile.PAX_FORMAT)])


def make_documents(content: Content, layers: Sequence[Layer], name: str) -> Documents:
    """Everything that names the layers, to the byte the same for the same content.

    Args:
        content: what the layers are of.
        layers: one a file of it, in its order.
        name: what the artifact calls the model.
    """
    annotations = {CONTENT_ANNOTATION: content.digest}
    digests = [layer.digest for layer in layers]
    model = _write(_MODEL_CONFIG_TYPE, _describe_model(content, name, digests))
    artifact = _write(
        MANIFEST_TYPE,
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": model.describe(),
            "layers": [
                _describe_layer(
                    layer, _choose_type(layer.item.name),
                    # KitOps unpacks the tar into the folder of this path: of the tar's own it would make models/models.
                    # oras fetches what has a title, and calls it so.
                    annotations={_FILE_PATH_ANNOTATION: layer.item.name, _TITLE_ANNOTATION: f"{layer.item.name}.tar"},
                )
                for layer in layers
            ],
            "annotations": annotations,
        },
    )  # fmt: skip
    configs = [
        _write(
            _IMAGE_CONFIG_TYPE,
            {"architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": digests}},
        )
        for architecture in ARCHITECTURES
    ]
    images = [
        _write(
            MANIFEST_TYPE,
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "config": config.describe(),
                "layers": [_describe_layer(layer, _IMAGE_LAYER_TYPE) for layer in layers],
            },
        )
        for config in configs
    ]
    index = _write(
        INDEX_TYPE,
        {
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "manifests": [
                image.describe(platform={"architecture": architecture, "os": "linux"})
                for architecture, image in zip(ARCHITECTURES, images, strict=True)
            ],
            "annotations": annotations,
        },
    )
    return Documents(configs=(model, *configs), images=images, index=index, artifact=artifact)


def _describe_model(content: Content, name: str, digests: Sequence[str]) -> dict[str, Any]:
    return {
        "descriptor": {"family": "llava", "name": name},
        "config": {
            "architecture": "transformer",
            "format": "safetensors",
            "capabilities": {"inputTypes": ["text", "image"], "outputTypes": ["text"]},
        },
        "modelfs": {"type": "layers", "diffIds": list(digests)},
    }


def _describe_layer(layer: Layer, media_type: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": layer.digest, "size": layer.size, **more}


def _choose_type(name: str) -> str:
    """The specification's type of a layer with this file."""
    if name.endswith((".safetensors", ".bin")):
        kind = "weight"
    elif name.endswith((".md", ".intoto.jsonl")) or name in (PUBLICATION, SIGNATURE):
        kind = "doc"
    else:
        kind = "weight.config"
    return f"application/vnd.cncf.model.{kind}.v1.tar"


def _write(media_type: str, value: dict[str, Any]) -> Document:
    return Document(media_type=media_type, body=json.dumps(value, separators=(",", ":"), sort_keys=True).encode())
