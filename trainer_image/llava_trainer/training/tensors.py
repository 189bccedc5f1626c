"""Writing safetensors files, with errors that say what went wrong."""

import re
from collections.abc import Mapping
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
