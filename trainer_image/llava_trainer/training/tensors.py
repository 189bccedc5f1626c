"""Writing safetensors files, with errors that say what went wrong."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

_OS_ERROR = re.compile(r"(.*)\(os error (\d+)\)", re.DOTALL)


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
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        pieces: list[memoryview] = [memoryview(_header(tensors))]
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


def _header(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """The format: the header's length in 8 bytes, the header in JSON, the tensors without gaps."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, tensor in tensors.items():
        assert (tensor.dtype, tensor.ndim) == (torch.float32, 1), name
        entries[name] = {"dtype": "F32", "shape": [tensor.numel()], "data_offsets": [start, start + tensor.nbytes]}
        start += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
