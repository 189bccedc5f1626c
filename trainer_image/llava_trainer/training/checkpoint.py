"""Checkpoints as files: whole or not there, each file's digest beside it, nothing pickled.

A folder ``step-NNNNNNNN`` holds ``rank-NNNNN.safetensors`` (one process's part of the optimiser and its random
number generators), ``adapter/`` (adapter and projector in PEFT's layout), ``state.json`` and ``manifest.json`` with
the sha256 of every other file. It is written aside and renamed when all of it is on the disk. Knows neither DeepSpeed
nor other processes.
"""

import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from llava_api.constants import StageName
from llava_api.volume import RunVolume
from llava_trainer.files import sha256_file, write_whole
from llava_trainer.training.tensors import save_tensors

ADAPTER_FOLDER = "adapter"
_STATE_FILE = "state.json"
_MANIFEST_FILE = "manifest.json"
_FORMAT_VERSION = 1
_FOLDER_PATTERN = re.compile(r"step-(\d{8})")

logger = logging.getLogger(__name__)


class DamagedCheckpointError(Exception):
    """A checkpoint cannot be trusted; the one before may be."""


@dataclass(frozen=True, kw_only=True)
class CheckpointState:
    """What all processes share. The data position follows from the step."""

    step: int
    """Optimiser steps done."""
    world_size: int
    total_steps: int
    version: int = _FORMAT_VERSION


def checkpoint_dir(checkpoints: Path, step: int) -> Path:
    """Folder of the checkpoint after ``step`` steps."""
    return checkpoints / f"step-{step:08d}"


def rank_file(folder: Path, rank: int) -> Path:
    """File with one process's tensors."""
    return folder / f"rank-{rank:05d}.safetensors"


def write_rank(folder: Path, rank: int, tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Write one process's tensors; returns the file's sha256 digest.

    Raises:
        OSError: it cannot be written.
    """
    path = rank_file(folder, rank)
    save_tensors(tensors, path)
    return bytes.fromhex(sha256_file(path).removeprefix("sha256:"))


def write_manifest(folder: Path, state: CheckpointState, rank_digests: list[bytes]) -> None:
    """Write what is shared, and the digests of everything; the ranks' own are known from ``write_rank``."""
    write_whole(folder / _STATE_FILE, json.dumps(asdict(state), indent=2) + "\n")
    digests = {rank_file(folder, rank).name: f"sha256:{digest.hex()}" for rank, digest in enumerate(rank_digests)}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in digests:
            digests[name] = sha256_file(path)
    write_whole(folder / _MANIFEST_FILE, json.dumps(digests, indent=2, sort_keys=True) + "\n")


def find_checkpoints(volume: RunVolume, stage: StageName, attempt: int) -> list[Path]:
    """Checkpoints to resume from, best first: this attempt's own (its pod was restarted), then earlier attempts'."""
    pattern = re.compile(rf"{stage}-(\d+)")
    attempts = sorted(
        (int(match[1]) for folder in (volume.root / "attempts").glob("*") if (match := pattern.fullmatch(folder.name))),
        reverse=True,
    )
    return [
        folder
        for earlier in attempts
        if earlier <= attempt
        for folder in reversed(list_checkpoints(volume.checkpoints_dir(stage, earlier)))
    ]


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first."""
    return sorted(path for path in checkpoints.glob("step-*") if _FOLDER_PATTERN.fullmatch(path.name))


def read_state(folder: Path) -> CheckpointState:
    """Read what is shared, checked against the manifest.

    Raises:
        DamagedCheckpointError: it is missing, damaged, or written by another version.
    """
    verify_files(folder, [_STATE_FILE])
    state = CheckpointState(**json.loads((folder / _STATE_FILE).read_text(encoding="utf-8")))
    if state.version != _FORMAT_VERSION:
        raise DamagedCheckpointError(f"{folder} has format {state.version}, not {_FORMAT_VERSION}")
    return state


def verify_files(folder: Path, names: list[str]) -> None:
    """Compare files with the manifest.

    Raises:
        DamagedCheckpointError: naming the file.
    """
    try:
        digests = json.loads((folder / _MANIFEST_FILE).read_text(encoding="utf-8"))
        for name in names:
            if digests.get(name) != sha256_file(folder / name):
                raise DamagedCheckpointError(f"{folder / name} is not what its manifest says")
    except (OSError, ValueError) as error:
        raise DamagedCheckpointError(f"{folder} cannot be verified: {error}") from error


def list_adapter_files(folder: Path) -> list[str]:
    """Names, for ``verify_files``, of the adapter's files in a checkpoint."""
    return [f"{ADAPTER_FOLDER}/{name}" for name in ("adapter_config.json", "adapter_model.safetensors")]


def read_rank(folder: Path, rank: int) -> dict[str, torch.Tensor]:
    """Read one process's tensors, verified.

    Raises:
        DamagedCheckpointError: the file is missing or damaged.
    """
    path = rank_file(folder, rank)
    verify_files(folder, [path.name])
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DamagedCheckpointError(f"{path} cannot be read: {error}") from error
    return tensors


def prune_checkpoints(checkpoints: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` checkpoints. One that cannot be deleted is left for the next time."""
    for folder in list_checkpoints(checkpoints)[:-keep]:
        try:
            shutil.rmtree(folder)
        except OSError as error:
            logger.warning("the old checkpoint %s could not be deleted: %s", folder, error)
