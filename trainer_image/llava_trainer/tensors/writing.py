"""Writing safetensors files: headers first, so that only one tensor need be in memory.

The format: 8 bytes with the header's length (little endian), the header (JSON: name → dtype, shape, offsets), then
the tensors without gaps. https://github.com/huggingface/safetensors#format
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from llava_trainer.tensors.hashed_file import HashedFile
from llava_trainer.tensors.recipes import TensorRecipe
from llava_trainer.tensors.stored import TAGS

MAX_SHARD_BYTES = 5 * 10**9
"""Largest file, as transformers cuts them."""
INDEX_FILE = "model.safetensors.index.json"
_ALIGNMENT = 8
_OS_ERROR = re.compile(r"(.*)\(os error (\d+)\)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of a checkpoint."""

    name: str
    recipes: tuple[TensorRecipe, ...]

    @property
    def header(self) -> bytes:
        """What its file begins with: all but the values."""
        return _header((recipe.name, recipe.dtype, recipe.shape, recipe.num_bytes) for recipe in self.recipes)


def write_checkpoint(
    folder: Path,
    recipes: Collection[TensorRecipe],
    *,
    on_tensor: Callable[[int, int], None] = lambda done, total: None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> dict[str, str]:
    """Write tensors into ``folder``, in one file or in several with their index.

    Args:
        folder: an existing folder.
        recipes: what to write, in this order; each is made when its turn comes.
        on_tensor: told (tensors written, tensors in all) after each.
        max_shard_bytes: where to begin the next file.

    Returns:
        Digests of the files (``files.sha256_file``) by name.
    """
    return write_shards(folder, plan_shards(recipes, max_shard_bytes), on_tensor=on_tensor)


def write_shards(
    folder: Path,
    shards: Sequence[Shard],
    *,
    whole: Mapping[str, str] = MappingProxyType({}),
    on_tensor: Callable[[int, int], None] = lambda done, total: None,
    on_shard: Callable[[str, str], None] = lambda name, digest: None,
) -> dict[str, str]:
    """Write a checkpoint's files into ``folder``, and the index where there are several.

    Args:
        folder: an existing folder.
        shards: the files.
        whole: digests of those that are there already, by name; they are not written again.
        on_tensor: told (tensors written, tensors in all) after each.
        on_shard: told name and digest of each file that was written, once it is on the disk.

    Returns:
        Digests of all files (``files.sha256_file``) by name.
    """
    digests = dict(whole)
    done, total = 0, sum(len(shard.recipes) for shard in shards)

    def count(num_tensors: int = 1) -> None:
        nonlocal done
        done += num_tensors
        on_tensor(done, total)

    for shard in shards:
        if shard.name in whole:
            count(len(shard.recipes))
            continue
        digests[shard.name] = _write_shard(folder / shard.name, shard, count)
        on_shard(shard.name, digests[shard.name])
    if len(shards) > 1:
        digests[INDEX_FILE] = _write_index(folder / INDEX_FILE, shards)
    return digests


def write_tensors(path: Path, recipes: Sequence[TensorRecipe], on_tensor: Callable[[], None] = lambda: None) -> str:
    """Write one safetensors file, synced to the disk, with one tensor being made and one being written at a time.

    Args:
        path: where to.
        recipes: what to write, in this order; each is made when its turn comes.
        on_tensor: called after each.

    Returns:
        The file's digest (``files.sha256_file``), of what was written.
    """
    return _write_shard(path, Shard(name=path.name, recipes=tuple(recipes)), on_tensor)


def plan_shards(recipes: Iterable[TensorRecipe], max_shard_bytes: int = MAX_SHARD_BYTES) -> tuple[Shard, ...]:
    """Group tensors into files of at most ``max_shard_bytes`` (or one tensor) each, keeping their order."""
    groups: list[list[TensorRecipe]] = []
    left_bytes = 0
    for recipe in recipes:
        if not groups or recipe.num_bytes > left_bytes:
            groups.append([])
            left_bytes = max_shard_bytes
        groups[-1].append(recipe)
        left_bytes -= recipe.num_bytes
    names = shard_names(len(groups))
    return tuple(Shard(name=name, recipes=tuple(group)) for name, group in zip(names, groups, strict=True))


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


def _write_shard(path: Path, shard: Shard, on_tensor: Callable[[], None]) -> str:
    with HashedFile(path) as file:
        file.write(memoryview(shard.header))
        for recipe in shard.recipes:
            file.write(_bytes_of(recipe))
            on_tensor()
        return file.finish()


def _write_index(path: Path, shards: Sequence[Shard]) -> str:
    """Write the index that says which tensor lies in which shard."""
    weight_map = {recipe.name: shard.name for shard in shards for recipe in shard.recipes}
    total_size = sum(recipe.num_bytes for shard in shards for recipe in shard.recipes)
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    text = json.dumps(index, indent=2) + "\n"
    with HashedFile(path) as file:
        file.write(memoryview(text.encode()))
        return file.finish()


def _bytes_of(recipe: TensorRecipe) -> memoryview:
    tensor = recipe.make()
    assert (tensor.dtype, tuple(tensor.shape)) == (recipe.dtype, recipe.shape), recipe.name
    content: memoryview = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
    return content


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
