"""Image archives made by hand: small enough that no image builder is needed for them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def write_oci_archive(path: Path, reference: str, manifest: bytes, blobs: Mapping[str, bytes]) -> None:
    """Write an OCI archive of one image; blobs that the receiver has already may be left out.

    `blobs` maps digests (sha256:…) to contents.
    """
    media_type = json.loads(manifest).get("mediaType", _MANIFEST_TYPE)
    index = {
        "schemaVersion": 2,
        "manifests": [
            {
                "mediaType": media_type,
                "digest": _digest(manifest),
                "size": len(manifest),
                "annotations": {"io.containerd.image.name": reference},
            }
        ],
    }
    with tarfile.open(path, "w") as archive:
        _add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add(archive, "index.json", json.dumps(index).encode())
        for digest, content in {_digest(manifest): manifest, **blobs}.items():
            _add(archive, f"blobs/sha256/{digest.removeprefix('sha256:')}", content)


def write_single_file_image(path: Path, reference: str, program: Path) -> None:
    """Write an archive of an image with nothing in it but one static program, which is its entry point."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        _add(archive, program.name, program.read_bytes(), mode=0o755)
    content = layer.getvalue()
    machine = os.uname().machine
    config: dict[str, Any] = {
        "architecture": _ARCHITECTURES.get(machine, machine),
        "os": "linux",
        "config": {"Entrypoint": [f"/{program.name}"], "User": "65535:65535"},
        "rootfs": {"type": "layers", "diff_ids": [_digest(content)]},
    }
    config_bytes = json.dumps(config).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST_TYPE,
        "config": {"mediaType": _CONFIG_TYPE, "digest": _digest(config_bytes), "size": len(config_bytes)},
        "layers": [{"mediaType": _LAYER_TYPE, "digest": _digest(content), "size": len(content)}],
    }
    write_oci_archive(
        path,
        reference,
        json.dumps(manifest).encode(),
        {_digest(config_bytes): config_bytes, _digest(content): content},
    )
