"""``merge.json`` in a merged model: what it was made from and by, and the digest of every file beside it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from llava_api.base import Strict
from llava_api.constants import StageName
from llava_api.run_config import RunConfig
from llava_trainer.attempts.finished import read_digests
from llava_trainer.files import sha256_file, sha256_folder, sha256_listing, write_whole
from llava_trainer.inputs import read_inputs
from llava_trainer.merging.changes import kept_projector_dir
from llava_trainer.merging.recipes import find_tensors
from llava_trainer.tensors.writing import Shard

MANIFEST = "merge.json"
_LIBRARIES = ("llava-finetune-operator", "torch", "transformers", "peft", "safetensors")


class Origin(Strict):
    """What a merged model was made from and by."""

    base: str | None
    """A hub id, or the address of the source; None if nothing tells."""
    base_revision: str | None
    """The commit of a hub id."""
    base_config: str
    """Digest of the base's config.json."""
    trained: dict[str, str]
    """Digests of the folders that training has left, by name: adapter, weights, projector."""
    dtype: str
    versions: dict[str, str]
    """Of the libraries that made it, and of this project."""


class File(Strict):
    """A file of the merged model."""

    sha256: str
    size: Annotated[int, Field(alias="bytes")]


class Manifest(Strict):
    """What ``merge.json`` holds."""

    version: Literal[1] = 1
    origin: Origin
    files: dict[str, File]
    """By name; all but this one."""


def find_origin(config: RunConfig) -> Origin:
    """What the run's merged model is made from and by. Digests that training has recorded are not worked out again.

    Raises:
        OSError: something of it cannot be read.
    """
    inputs = read_inputs(config)
    base = inputs.base_model if inputs is not None else None
    return Origin(
        base=base.name if base else None,
        base_revision=base.revision if base else None,
        base_config=sha256_file(config.model_dir / "config.json"),
        trained=_digest_trained(config),
        dtype=config.merge.dtype,
        versions={name: version(name) for name in _LIBRARIES},
    )


def digest_plan(origin: Origin, base_dir: Path, shards: Sequence[Shard]) -> str:
    """Digest of everything that decides about the shards' contents.

    The base's weights are told by names, sizes and times: reading them would take as long as merging.
    """
    files = sorted({tensor.file for tensor in find_tensors(base_dir).values()})
    told = {
        "origin": origin.model_dump(),
        "base": [(file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files],
        "shards": [(shard.name, hashlib.sha256(shard.header).hexdigest()) for shard in shards],
    }
    return f"sha256:{hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()}"


def write_manifest(folder: Path, origin: Origin, known: Mapping[str, str]) -> str:
    """Write ``merge.json`` beside everything else in ``folder``.

    Args:
        folder: all that the merged model consists of.
        origin: what it is made from.
        known: digests of files that were hashed while they were written, by name; the others, a few small ones, are
            hashed now.

    Returns:
        Digest of the folder (``files.sha256_folder``).

    Raises:
        OSError: the volume cannot be written.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    digests = {name: known.get(name) or sha256_file(folder / name) for name in names if name != MANIFEST}
    files = {
        name: File(sha256=digest.removeprefix("sha256:"), size=(folder / name).stat().st_size)
        for name, digest in digests.items()
    }
    write_whole(folder / MANIFEST, Manifest(origin=origin, files=files).model_dump_json(indent=2) + "\n")
    return sha256_listing(digests | {MANIFEST: sha256_file(folder / MANIFEST)})


def _digest_trained(config: RunConfig) -> dict[str, str]:
    volume, training = config.volume, config.training
    folders: list[tuple[StageName, str, Path]] = []
    if (projector_dir := kept_projector_dir(config)) is not None:
        folders.append((StageName.ALIGN, "projector", projector_dir))
    if training.method == "full":
        folders.append((StageName.TRAIN, "weights", volume.weights_dir))
    elif training.method != "none":
        folders.append((StageName.TRAIN, "adapter", volume.adapter_dir))
    elif config.model.adapter is not None:
        folders.append((StageName.PREPARE, "inputs/adapter", volume.given_adapter_dir))
    return {
        name.rpartition("/")[2]: read_digests(config, stage).get(name) or sha256_folder(folder)
        for stage, name, folder in folders
    }
