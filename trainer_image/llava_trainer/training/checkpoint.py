"""Checkpoints as files: whole or not there, each file's digest beside it, nothing pickled.

A folder ``step-NNNNNNNN`` holds ``rank-NNNNN.safetensors`` (the slices of the optimiser that one rank updated: fp32
originals and Adam's moments, by parameter and position, so that any number of ranks can read them), what can be
served of it (``adapter/`` or ``projector/``), ``state.json``, and ``manifest.json`` with the sha256 of every other
file, which is written last. The folder is written aside and renamed when all of it is on the disk. Random state and the
position in the data follow from seed and step. Knows neither DeepSpeed nor other ranks.
"""

import errno
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from llava_trainer.files import sha256_file, write_whole
from llava_trainer.retrying import Rereading
from llava_trainer.tensors.writing import write_hashed

STATE_FILE = "state.json"
MANIFEST_FILE = "manifest.json"
_FORMAT_VERSION = 4
_READABLE_VERSIONS = (2, 3, _FORMAT_VERSION)
"""Version 2 does not tell ``training``: what it was made by is not compared."""


class DamagedCheckpointError(Exception):
    """A checkpoint cannot be trusted; the one before may be."""


class WrongContentError(DamagedCheckpointError):
    """A file was read, and is not what was written; it does not become so again."""


@dataclass(frozen=True, kw_only=True)
class CheckpointState:
    """What all processes share. The data position follows from the step, random state from seed and step."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")

    step: int
    """Optimiser steps done."""
    total_steps: int
    world_size: int
    """Number of ranks, and so of ``rank-*`` files."""
    seed: int
    parameters: Mapping[str, Sequence[int]]
    """Shape of everything that is trained, by name."""
    training: Mapping[str, str] = field(default_factory=dict)
    """What made it, by name (``identity``): another training must not go on from it."""
    selection: Mapping[str, Any] = field(default_factory=dict)
    """Which step validation has found to be the best so far (``selection``); empty without validation."""
    version: int = _FORMAT_VERSION


_STATE = TypeAdapter(CheckpointState)


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
    """File with one rank's tensors."""
    return folder / f"rank-{rank:05d}.safetensors"


def piece_key(part: str, name: str, start: int) -> str:
    """Name under which numbers of a parameter from ``start`` on are stored."""
    return f"{part}:{start}:{name}"


def write_rank(
    folder: Path, rank: int, pieces: Mapping[str, torch.Tensor], on_tensor: Callable[[], None] = lambda: None
) -> bytes:
    """Write one rank's tensors, named by ``piece_key``; returns the file's sha256 digest.

    Raises:
        OSError: it cannot be written.
    """
    return write_hashed(pieces, rank_file(folder, rank), on_tensor)


def write_manifest(folder: Path, state: CheckpointState, rank_digests: Sequence[bytes]) -> None:
    """Write what is shared, and the digests of everything; the ranks' own are known from ``write_rank``."""
    write_whole(folder / STATE_FILE, json.dumps(asdict(state), indent=2) + "\n")
    digests = {rank_file(folder, rank).name: f"sha256:{digest.hex()}" for rank, digest in enumerate(rank_digests)}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in digests:
            digests[name] = sha256_file(path)
    write_whole(folder / MANIFEST_FILE, json.dumps(digests, indent=2, sort_keys=True) + "\n")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Which files a checkpoint consists of, and what they hash to."""

    files: Mapping[str, str]
    """sha256 of each, by its path below the checkpoint's folder."""
    digest: str
    """Of the manifest itself: it stands for the whole checkpoint."""


def read_manifest(folder: Path, *, expected: str | None = None, rereading: Rereading | None = None) -> Manifest:
    """Read which files a checkpoint consists of.

    Args:
        folder: of the checkpoint.
        expected: digest of the manifest, if it is known; another one is waited for as long as a missing one is.
        rereading: how often to look again.

    Raises:
        DamagedCheckpointError: it cannot be read, or is not the one that was expected.
    """

    def read() -> tuple[bytes, str]:
        content = (folder / MANIFEST_FILE).read_bytes()
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        if expected is not None and digest != expected:
            raise OSError(errno.ESTALE, f"its manifest is {digest} on this node and {expected} on the first one")
        return content, digest

    try:
        content, digest = (rereading or Rereading()).read(read)
        files: dict[str, str] = json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedCheckpointError(f"{folder} cannot be verified: {error}") from error
    if not isinstance(files, dict):
        raise DamagedCheckpointError(f"{folder} cannot be verified: its manifest lists no files")
    return Manifest(files=files, digest=digest)


def read_state(folder: Path, manifest: Manifest, rereading: Rereading | None = None) -> CheckpointState:
    """Read what is shared, checked against the manifest.

    Raises:
        DamagedCheckpointError: it is missing, damaged, or written by another version.
    """
    _verify(folder, STATE_FILE, manifest, rereading or Rereading())
    file = folder / STATE_FILE
    try:
        content = file.read_bytes()
        fields = json.loads(content)
        version = fields.get("version") if isinstance(fields, dict) else None
        if version not in _READABLE_VERSIONS:
            raise DamagedCheckpointError(f"{folder} has format {version!r:.20}, not {_FORMAT_VERSION}")
        state = _STATE.validate_json(content)
    except ValidationError as error:
        raise DamagedCheckpointError(f"{file} is not what this version writes: {_first_of(error)}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedCheckpointError(f"{file} cannot be read: {error}") from error
    for rank in range(state.world_size):
        if rank_file(folder, rank).name not in manifest.files:
            raise DamagedCheckpointError(f"{folder} lacks {rank_file(folder, rank).name}")
    return state


def find_missing(folder: Path, manifest: Manifest) -> str | None:
    """A file of a checkpoint that is not there; None if none is."""
    return next((name for name in sorted(manifest.files) if not (folder / name).is_file()), None)


def verify_files(
    folder: Path, manifest: Manifest, shard: int = 0, num_shards: int = 1, rereading: Rereading | None = None
) -> None:
    """Compare the files of a checkpoint with its manifest, or one shard of them: ranks do it together.

    Raises:
        DamagedCheckpointError: naming the file.
    """
    for name in sorted(manifest.files)[shard::num_shards]:
        _verify(folder, name, manifest, rereading or Rereading())


class StoredOptimizer:
    """The optimiser in a checkpoint, as a whole; files stay open while the context is entered."""

    def __init__(self, folder: Path, state: CheckpointState, rereading: Rereading | None = None) -> None:
        """Of the checkpoint in ``folder``; ``rereading`` says how often to look again for a file of another node."""
        self._folder = folder
        self._state = state
        self._rereading = rereading or Rereading()
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
            stored = self._open[file] = stack.enter_context(
                self._rereading.read(lambda: safe_open(file, framework="pt"))
            )
            for key in stored.keys():  # noqa: SIM118
                part, start, name = key.split(":", 2)
                (length,) = stored.get_slice(key).get_shape()
                stop = int(start) + length
                pieces = self._pieces.setdefault((part, name), [])
                pieces.append(Piece(start=int(start), stop=stop, file=file, key=key))
                pieces.sort(key=lambda piece: piece.start)
        except (OSError, SafetensorError, ValueError) as error:
            raise DamagedCheckpointError(f"{file} cannot be read: {error}") from error


def _first_of(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])):.100}: {first['msg']}"


def _verify(folder: Path, name: str, manifest: Manifest, rereading: Rereading) -> None:
    try:
        if manifest.files.get(name) != rereading.read(lambda: sha256_file(folder / name)):
            raise WrongContentError(f"{folder / name} is not what its manifest says")
    except OSError as error:
        raise DamagedCheckpointError(f"{folder} cannot be verified: {error}") from error
