"""Writing a checkpoint in safetensors, headers first, so that only one tensor is ever in memory.

The format: 8 bytes with the header's length (little endian), the header (JSON: name → dtype, shape, offsets), then
the tensors without gaps. https://github.com/huggingface/safetensors#format
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

import torch

MAX_SHARD_BYTES = 5 * 10**9
"""Largest file, as transformers cuts them."""
INDEX_FILE = "model.safetensors.index.json"
_ALIGNMENT = 8


class TensorToWrite(Protocol):
    """What must be known of a tensor before it is made."""

    @property
    def name(self) -> str:
        """Its name in the file."""

    @property
    def tag(self) -> str:
        """Name of its number format in a safetensors header."""

    @property
    def dtype(self) -> torch.dtype:
        """The same for PyTorch."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def num_bytes(self) -> int:
        """Its size in the file."""


Planned = TypeVar("Planned", bound=TensorToWrite)


def write_checkpoint(
    folder: Path,
    planned: Iterable[Planned],
    produce: Callable[[Planned], torch.Tensor],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write tensors into ``folder``, in one file or in several with their index.

    Args:
        folder: an existing folder.
        planned: what to write, in this order.
        produce: makes a tensor when its turn comes; it is of the planned shape and number format.
        max_shard_bytes: where to begin the next file.
    """
    shards = cut_into_shards(planned, max_shard_bytes)
    names = shard_names(len(shards))
    for name, shard in zip(names, shards, strict=True):
        write_shard(folder / name, shard, produce)
    if len(shards) > 1:
        write_index(folder / INDEX_FILE, names, shards)


def cut_into_shards(planned: Iterable[Planned], max_shard_bytes: int) -> tuple[tuple[Planned, ...], ...]:
    """Group tensors into files of at most ``max_shard_bytes`` (or one tensor) each, keeping their order."""
    shards: list[list[Planned]] = []
    room = 0
    for tensor in planned:
        if not shards or tensor.num_bytes > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(tensor)
        room -= tensor.num_bytes
    return tuple(tuple(shard) for shard in shards)


def shard_names(num_shards: int) -> list[str]:
    """File names of a checkpoint's shards, as transformers expects them."""
    if num_shards == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{num_shards:05d}.safetensors" for number in range(1, num_shards + 1)]


def write_shard(path: Path, shard: Sequence[Planned], produce: Callable[[Planned], torch.Tensor]) -> None:
    """Write one shard and sync it to the disk; ``produce`` is called for each tensor when its turn comes."""
    with path.open("wb") as file:
        file.write(_header(shard))
        for planned in shard:
            _write_tensor(file, planned, produce(planned))
        file.flush()
        os.fsync(file.fileno())


def write_index(path: Path, names: Sequence[str], shards: Sequence[Sequence[TensorToWrite]]) -> None:
    """Write the index that says which tensor lies in which shard."""
    weight_map = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    total_size = sum(tensor.num_bytes for shard in shards for tensor in shard)
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _header(shard: Sequence[TensorToWrite]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in shard:
        end = start + tensor.num_bytes
        entries[tensor.name] = {"dtype": tensor.tag, "shape": tensor.shape, "data_offsets": (start, end)}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _write_tensor(file: BinaryIO, planned: TensorToWrite, tensor: torch.Tensor) -> None:
    assert (tensor.dtype, tuple(tensor.shape)) == (planned.dtype, planned.shape), planned.name
    file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
