"""Checkpoints as files: whole or not there, each file's digest beside it, nothing pickled.

A folder ``step-NNNNNNNN`` holds ``rank-NNNNN.safetensors`` (the slices of the optimiser that one process updated: fp32
originals and Adam's moments, by parameter and position, so that any number of processes can read them), what can be
served of it (``adapter/`` or ``projector/``), ``state.json``, and ``manifest.json`` with the sha256 of every other
file, which is written last. The folder is written aside and renamed when all of it is on the disk. Random state and the
position in the data follow from seed and step. Knows neither DeepSpeed nor other processes.
"""

import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open

from llava_api.constants import StageName
from llava_api.volume import RunVolume
from llava_trainer.files import aside_of, sha256_file, write_whole
from llava_trainer.training.tensors import write_hashed

_STATE_FILE = "state.json"
_MANIFEST_FILE = "manifest.json"
_FORMAT_VERSION = 2
_FOLDER_PATTERN = re.compile(r"step-(\d{8})")

logger = logging.getLogger(__name__)


class DamagedCheckpointError(Exception):
    """A checkpoint cannot be trusted; the one before may be."""


@dataclass(frozen=True, kw_only=True)
class CheckpointState:
    """What all processes share. The data position follows from the step, random state from seed and step."""

    step: int
    """Optimiser steps done."""
    total_steps: int
    world_size: int
    """Number of processes, and so of ``rank-*`` files."""
    seed: int
    parameters: Mapping[str, Sequence[int]]
    """Shape of everything that is trained, by name."""
    version: int = _FORMAT_VERSION


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Where a stored tensor lies: numbers ``start`` to ``stop`` of one part of one parameter laid flat."""

    start: int
    stop: int
    file: Path
    key: str


def checkpoint_dir(checkpoints: Path, step: int) -> Path:
    """Folder of the checkpoint after ``step`` steps."""
    return checkpoints / f"step-{step:08d}"


def rank_file(folder: Path, rank: int) -> Path:
    """File with one process's tensors."""
    return folder / f"rank-{rank:05d}.safetensors"


def piece_key(part: str, name: str, start: int) -> str:
    """Name under which numbers of a parameter from ``start`` on are stored."""
    return f"{part}:{start}:{name}"


def write_rank(
    folder: Path, rank: int, pieces: Mapping[str, torch.Tensor], on_tensor: Callable[[], None] = lambda: None
) -> bytes:
    """Write one process's tensors, named by ``piece_key``; returns the file's sha256 digest.

    Raises:
        OSError: it cannot be written.
    """
    return write_hashed(pieces, rank_file(folder, rank), on_tensor)


def write_manifest(folder: Path, state: CheckpointState, rank_digests: Sequence[bytes]) -> None:
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
    return [
        folder
        for checkpoints in _folders_so_far(volume, stage, attempt)
        for folder in reversed(list_checkpoints(checkpoints))
    ]


def remove_unfinished(volume: RunVolume, stage: StageName, attempt: int) -> None:
    """Remove what killed processes have left of checkpoints that they were writing: each may be as large as a whole."""
    for checkpoints in _folders_so_far(volume, stage, attempt):
        for aside in checkpoints.glob(aside_of(Path("step-*")).name):
            _delete(aside)


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first."""
    return sorted(path for path in checkpoints.glob("step-*") if _FOLDER_PATTERN.fullmatch(path.name))


def read_state(folder: Path) -> CheckpointState:
    """Read what is shared, checked against the manifest.

    Raises:
        DamagedCheckpointError: it is missing, damaged, or written by another version.
    """
    digests = _read_manifest(folder)
    _verify(folder, _STATE_FILE, digests)
    fields = json.loads((folder / _STATE_FILE).read_text(encoding="utf-8"))
    if fields.get("version") != _FORMAT_VERSION:
        raise DamagedCheckpointError(f"{folder} has format {fields.get('version')}, not {_FORMAT_VERSION}")
    state = CheckpointState(**fields)
    for rank in range(state.world_size):
        if rank_file(folder, rank).name not in digests:
            raise DamagedCheckpointError(f"{folder} lacks {rank_file(folder, rank).name}")
    return state


def verify_files(folder: Path, share: int = 0, num_shares: int = 1) -> None:
    """Compare the files of a checkpoint with its manifest, or one share of them: processes do it together.

    Raises:
        DamagedCheckpointError: naming the file.
    """
    digests = _read_manifest(folder)
    for name in sorted(digests)[share::num_shares]:
        _verify(folder, name, digests)


class StoredOptimizer:
    """The optimiser in a checkpoint, as a whole; files stay open while the context is entered."""

    def __init__(self, folder: Path, state: CheckpointState) -> None:
        self._folder = folder
        self._state = state
        self._files = ExitStack()
        self._open: dict[Path, Any] = {}
        self._pieces: dict[tuple[str, str], list[Piece]] = {}

    def __enter__(self) -> Self:
        """Open every file.

        Raises:
            DamagedCheckpointError: one cannot be read.
        """
        with ExitStack() as stack:
            for rank in range(self._state.world_size):
                self._enter_file(rank_file(self._folder, rank), stack)
            self._files = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._files.close()

    def check_whole(self, parts: Sequence[str]) -> None:
        """Make sure that every part of every parameter is there from its first number to its last.

        Raises:
            DamagedCheckpointError: naming the parameter.
        """
        for name, shape in self._state.parameters.items():
            for part in parts:
                reached = 0
                for piece in self._pieces.get((part, name), []):
                    reached = piece.stop if piece.start == reached else reached
                if reached != torch.Size(shape).numel():
                    raise DamagedCheckpointError(f"{self._folder} lacks numbers of {name} ({part}) from {reached} on")

    def read(self, part: str, name: str, start: int, stop: int) -> torch.Tensor:
        """Numbers ``start`` to ``stop`` of a part of a parameter laid flat, whoever wrote them."""
        found = torch.empty(stop - start)
        for piece in self._pieces[part, name]:
            first, last = max(start, piece.start), min(stop, piece.stop)
            if first < last:
                stored = self._open[piece.file].get_slice(piece.key)
                found[first - start : last - start] = stored[first - piece.start : last - piece.start]
        return found

    def read_whole(self, part: str, name: str) -> torch.Tensor:
        """A part of a parameter in its shape."""
        shape = torch.Size(self._state.parameters[name])
        return self.read(part, name, 0, shape.numel()).view(shape)

    def _enter_file(self, file: Path, stack: ExitStack) -> None:
        try:
            stored = self._open[file] = stack.enter_context(safe_open(file, framework="pt"))
            for key in stored.keys():  # noqa: SIM118
                part, start, name = key.split(":", 2)
                stop = int(start) + stored.get_slice(key).get_shape()[0]
                pieces = self._pieces.setdefault((part, name), [])
                pieces.append(Piece(start=int(start), stop=stop, file=file, key=key))
                pieces.sort(key=lambda piece: piece.start)
        except (OSError, SafetensorError, ValueError) as error:
            raise DamagedCheckpointError(f"{file} cannot be read: {error}") from error


def prune_checkpoints(checkpoints: Path, keep: int, earlier: Sequence[Path] = ()) -> None:
    """Delete all but the newest ``keep`` checkpoints. One that cannot be deleted is left for the next time.

    Args:
        checkpoints: folder of this attempt's, which are the newest.
        keep: how many to keep.
        earlier: checkpoints of earlier attempts, best first; they make room as this attempt's own take their places.
    """
    best_first = [*reversed(list_checkpoints(checkpoints)), *earlier]
    for folder in reversed(best_first[keep:]):
        if folder.exists():
            _delete(folder)


def _folders_so_far(volume: RunVolume, stage: StageName, attempt: int) -> list[Path]:
    """Folders of checkpoints up to this attempt, its own first and the oldest last."""
    pattern = re.compile(rf"{stage}-(\d+)")
    attempts = (
        int(match[1]) for folder in (volume.root / "attempts").glob("*") if (match := pattern.fullmatch(folder.name))
    )
    return [volume.checkpoints_dir(stage, so_far) for so_far in sorted(attempts, reverse=True) if so_far <= attempt]


def _delete(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        logger.warning("the old checkpoint %s could not be deleted: %s", folder, error)


def _read_manifest(folder: Path) -> dict[str, str]:
    try:
        digests: dict[str, str] = json.loads((folder / _MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedCheckpointError(f"{folder} cannot be verified: {error}") from error
    return digests


def _verify(folder: Path, name: str, digests: Mapping[str, str]) -> None:
    try:
        if digests.get(name) != sha256_file(folder / name):
            raise DamagedCheckpointError(f"{folder / name} is not what its manifest says")
    except OSError as error:
        raise DamagedCheckpointError(f"{folder} cannot be verified: {error}") from error
