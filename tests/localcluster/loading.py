"""Putting images onto a node.

A layer of the local storage is hard-linked into the node's containerd instead of being packed, copied and
unpacked: gigabytes take seconds and no room, and a layer that a node has is not touched again.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
import uuid
from pathlib import Path

from tests.localcluster.archive import write_oci_archive, write_single_file_image
from tests.localcluster.errors import ClusterError
from tests.localcluster.instance import Node
from tests.localcluster.node import PAUSE_IMAGE, ctr
from tests.localcluster.shell import run
from tests.localcluster.store import StoredImage, StoredLayer, find_image, storage_root

_LINK_TIMEOUT_S = 600


def chain_ids(diff_ids: list[str]) -> list[str]:
    """containerd's name of each layer together with all below it (OCI image specification, "ChainID")."""
    chain = [diff_ids[0]]
    for diff_id in diff_ids[1:]:
        chain.append(f"sha256:{hashlib.sha256(f'{chain[-1]} {diff_id}'.encode()).hexdigest()}")
    return chain


def _snapshots(node: Node) -> set[str]:
    listing = ctr(node, "snapshots", "ls", what=f"listing the layers of {node.name}")
    return {line.split()[0] for line in listing.splitlines()[1:] if line.strip()}


def _snapshot_folder(node: Node, key: str) -> Path:
    """Where an active snapshot's own files go, out of the mount command that containerd proposes."""
    mount = ctr(node, "snapshots", "mounts", "/unused", key, what=f"asking for the folder of layer {key}")
    found = re.search(r"upperdir=([^,\s]+)", mount) or re.search(r"(/\S+/fs)\b", mount)
    if found is None:
        raise ClusterError(f"containerd of {node.name} names no folder for layer {key}: {mount.strip()!r}")
    return Path(found[1])


# A hard link cannot cross from one mount to another, even of one file system, and buildah leaves its storage
# mounted onto itself: hence a mount namespace of our own in which that mount is taken away. Where the two folders
# do lie on different file systems, the files are copied; never into an existing file, which may be a link already.
_LINK_SCRIPT = """
while mountpoint -q "$1"; do umount --lazy "$1"; done
cp --archive --link "$2/." "$3" 2>/dev/null || cp --archive --reflink=auto --remove-destination "$2/." "$3"
"""


def _add_layer(node: Node, layer: StoredLayer, chain_id: str, parent: str | None) -> None:
    key = f"localcluster-{uuid.uuid4().hex}"
    what = f"adding layer {layer.diff_id} to {node.name}"
    ctr(node, "snapshots", "prepare", key, *([parent] if parent else []), what=what)
    folder = _snapshot_folder(node, key)
    # Neither side ever writes to a layer's files in place, so both may own the same ones.
    run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-ec", _LINK_SCRIPT, "sh",
         storage_root() / "overlay", layer.files, folder],
        what=what,
        timeout_s=_LINK_TIMEOUT_S,
    )  # fmt: skip
    # The folder itself is the image's root: cp gives it the storage's mode, which may lock others out.
    folder.chmod(0o755)
    ctr(node, "snapshots", "commit", chain_id, key, what=what)


def load_stored_image(node: Node, image: StoredImage, reference: str) -> int:
    """Give a node an image of the local storage under a name; returns how many layers it lacked."""
    chain = chain_ids([layer.diff_id for layer in image.layers])
    present = _snapshots(node)
    num_added = 0
    for number, layer in enumerate(image.layers):
        if chain[number] not in present:
            _add_layer(node, layer, chain[number], chain[number - 1] if number else None)
            num_added += 1
    with tempfile.TemporaryDirectory(dir=node.folder) as scratch:
        archive = Path(scratch, "image.tar")
        write_oci_archive(archive, reference, image.manifest, {image.config_digest: image.config})
        load_archive(node, archive)
    return num_added


def load_archive(node: Node, archive: Path) -> None:
    """Give a node the images of an OCI or docker archive."""
    what = f"loading {archive} into {node.name}"
    ctr(node, "images", "import", "--snapshotter", "overlayfs", archive, what=what, timeout_s=900)


def load_image(node: Node, what: str) -> None:
    """Give a node an image, by its name in the local storage or as an archive file.

    Raises ClusterError when it is neither.
    """
    if (image := find_image(what)) is not None:
        load_stored_image(node, image, image.reference)
    elif Path(what).is_file():
        load_archive(node, Path(what))
    else:
        raise ClusterError(f"{what!r} is neither an image in {storage_root()} (see `build-images`) nor an archive file")


def load_pause_image(node: Node, program: Path) -> None:
    """Give a node the image that holds every pod's namespaces open."""
    with tempfile.TemporaryDirectory(dir=node.folder) as scratch:
        archive = Path(scratch, "pause.tar")
        write_single_file_image(archive, PAUSE_IMAGE, program)
        load_archive(node, archive)
