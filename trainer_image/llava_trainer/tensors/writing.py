"""Writing safetensors files: headers first, so that only one tensor need be in memory.

The format: 8 bytes with the header's length (little endian), the header (JSON: name → dtype, shape, offsets), then
the tensors without gaps. https://github.com/huggingface/safetensors#format
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from llava_trainer.tensors.recipes import TensorRecipe
from llava_trainer.tensors.stored import TAGS

MAX_SHARD_BYTES = 5 * 10**9
"""Largest file, as transformers cuts them."""
INDEX_FILE = "model.safetensors.index.json"
_ALIGNMENT = 8
_OS_ERROR = re.compile(r"(.*)\(os error (\d+)\)", re.DOTALL)


def write_checkpoint(
    folder: Path,
    recipes: Collection[TensorRecipe],
    *,
    on_tensor: Callable[[int, int], None] = lambda done, total: None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write tensors into ``folder``, in one file or in several with their index.

    Args:
        folder: an existing folder.
        recipes: what to write, in this order; each is made when its turn comes.
        on_tensor: told (tensors written, tensors in all) after each.
        max_shard_bytes: where to begin the next file.
    """
    shards = cut_into_shards(recipes, max_shard_bytes)
    names = shard_names(len(shards))
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        on_tensor(done, len(recipes))

    for name, shard in zip(names, shards, strict=True):
        write_tensors(folder / name, shard, count)
    if len(shards) > 1:
        _write_index(folder / INDEX_FILE, names, shards)


def write_tensors(path: Path, recipes: Sequence[TensorRecipe], on_tensor: Callable[[], None] = lambda: None) -> None:
    """Write one safetensors file, synced to the disk, with one tensor in memory at a time.

    Args:
        path: where to.
        recipes: what to write, in this order; each is made when its turn comes.
        on_tensor: called after each.
    """
    with path.open("wb") as file:
        file.write(_header((recipe.name, recipe.dtype, recipe.shape, recipe.num_bytes) for recipe in recipes))
        for recipe in recipes:
            _write_tensor(file, recipe)
            on_tensor()
        file.flush()
        os.fsync(file.fileno())


def cut_into_shards(recipes: Iterable[TensorRecipe], max_shard_bytes: int) -> tuple[tuple[TensorRecipe, ...], ...]:
    """Group tensors into files of at most ``max_shard_bytes`` (or one tensor) each, keeping their order."""
    shards: list[list[TensorRecipe]] = []
    left_bytes = 0
    for recipe in recipes:
        if not shards or recipe.num_bytes > left_bytes:
            shards.append([])
            left_bytes = max_shard_bytes
        shards[-1].append(recipe)
        left_bytes -= recipe.num_bytes
    return tuple(tuple(shard) for shard in shards)


def shard_names(num_shards: int) -> list[str]:
    """File names of a checkpoint's shards, as transformers expects them."""
    if num_shards == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{num_shards:05d}.safetensors" for number in range(1, num_shards + 1)]


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write tensors, wherever they are, as one safetensors file.

    Raises:
        OSError: with the system's error number (a full disk, say), which safetensors has in its message only.
    """
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(on_cpu, path, metadata={"format": "pt"})
    except SafetensorError as error:
        told = _OS_ERROR.search(str(error))
        if told is None:
            raise
        raise OSError(int(told[2]), told[1].strip(), str(path)) from error


def write_hashed(
    tensors: Mapping[str, torch.Tensor], path: Path, on_tensor: Callable[[], None] = lambda: None
) -> bytes:
    """Write fp32 tensors in the node's memory as one safetensors file, synced to the disk, and hash it on the way.

    Nothing is copied, and Python's lock is not held while bytes are hashed and written: it can go on beside training.

    Args:
        tensors: (numbers,) each.
        path: where to.
        on_tensor: called after each.

    Returns:
        The file's sha256 digest.

    Raises:
        OSError: it cannot be written.
    """
    assert all((tensor.dtype, tensor.ndim) == (torch.float32, 1) for tensor in tensors.values())
    header = _header((name, tensor.dtype, tuple(tensor.shape), tensor.nbytes) for name, tensor in tensors.items())
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        pieces: list[memoryview] = [memoryview(header)]
        pieces += [tensor.numpy().data.cast("B") for tensor in tensors.values()]
        for piece in pieces:
            digest.update(piece)
            # An unbuffered write may take less than it is given.
            rest = piece
            while rest:
                rest = rest[file.write(rest) :]
            on_tensor()
        os.fsync(file.fileno())
    return digest.digest()


def _write_index(path: Path, names: Sequence[str], shards: Sequence[Sequence[TensorRecipe]]) -> None:
    """Write the index that says which tensor lies in which shard."""
    weight_map = {recipe.name: name for name, shard in zip(names, shards, strict=True) for recipe in shard}
    total_size = sum(recipe.num_bytes for shard in shards for recipe in shard)
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_tensor(file: BinaryIO, recipe: TensorRecipe) -> None:
    tensor = recipe.make()
    assert (tensor.dtype, tuple(tensor.shape)) == (recipe.dtype, recipe.shape), recipe.name
    file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _header(tensors: Iterable[tuple[str, torch.dtype, tuple[int, ...], int]]) -> bytes:
    """The header of a file with these tensors: name, number format, shape, bytes."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, dtype, shape, num_bytes in tensors:
        end = start + num_bytes
        entries[name] = {"dtype": TAGS[dtype], "shape": shape, "data_offsets": (start, end)}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
