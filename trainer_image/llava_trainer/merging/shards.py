"""Writing safetensors files header first, so that only one tensor is ever in memory.

The format: 8 bytes with the header's length (little endian), the header (JSON: name → dtype, shape, offsets), then
the tensors without gaps. https://github.com/huggingface/safetensors#format
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import torch

from llava_trainer.merging.plan import PlannedTensor, Shard

_ALIGNMENT = 8


def shard_names(num_shards: int) -> list[str]:
    """File names of a checkpoint's shards, as transformers expects them."""
    if num_shards == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{num_shards:05d}.safetensors" for number in range(1, num_shards + 1)]


def write_shard(path: Path, shard: Shard, produce: Callable[[PlannedTensor], torch.Tensor]) -> None:
    """Write one shard and sync it to the disk; ``produce`` is called for each tensor when its turn comes."""
    with path.open("wb") as file:
        file.write(_header(shard))
        for planned in shard:
            _write_tensor(file, planned, produce(planned))
        file.flush()
        os.fsync(file.fileno())


def write_index(path: Path, names: Sequence[str], shards: Sequence[Shard]) -> None:
    """Write the index that says which tensor lies in which shard."""
    weight_map = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    total_size = sum(tensor.num_bytes for shard in shards for tensor in shard)
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _header(shard: Shard) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in shard:
        end = start + tensor.num_bytes
        entries[tensor.name] = {"dtype": tensor.tag, "shape": tensor.base.shape, "data_offsets": (start, end)}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _write_tensor(file: BinaryIO, planned: PlannedTensor, tensor: torch.Tensor) -> None:
    assert (tensor.dtype, tuple(tensor.shape)) == (planned.dtype, planned.base.shape), planned.name
    file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
