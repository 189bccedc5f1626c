"""Tensors in files, found without reading them: safetensors, and PyTorch's pickles, which are never executed.

A pickle is read with PyTorch's restricted unpickler (``weights_only``): it makes tensors and plain containers, and
refuses anything else. Files are mapped, so that only what is read becomes resident.
"""

import math
import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from llava_api.failures import Reason
from llava_trainer.errors import StageError

# safetensors' names of number formats; floating ones are converted, the others kept.
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
TAGS: dict[torch.dtype, str] = {dtype: tag for tag, dtype in DTYPES.items()}
_SAFETENSORS = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies, and what it is."""

    file: Path
    name: str
    """Its name in that file, whatever the layout."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    mapped: torch.Tensor | None = field(default=None, compare=False, repr=False)
    """Of a pickle: the tensor itself, whose memory is the file's until it is read."""

    def read(self) -> torch.Tensor:
        """Read it into memory of its own; a safetensors file is mapped for this one tensor only."""
        if self.mapped is None:
            with safe_open(self.file, framework="pt") as tensors:
                tensor: torch.Tensor = tensors.get_tensor(self.name)
                return tensor
        return self.mapped.clone()

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize


def find_stored(file: Path) -> Iterator[StoredTensor]:
    """Every tensor of a safetensors file or a pickle (``.bin``, ``.pt``, ``.pth``), in its order.

    Raises:
        StageError: InvalidModel; the file is damaged, holds no tensors but something else, or asks for code to be run.
    """
    if file.suffix != _SAFETENSORS:
        for name, tensor in _unpickle(file):
            yield StoredTensor(file=file, name=name, dtype=tensor.dtype, shape=tuple(tensor.shape), mapped=tensor)
        return
    try:
        with safe_open(file, framework="pt") as tensors:
            views = [(name, tensors.get_slice(name)) for name in tensors.keys()]  # noqa: SIM118 - not a mapping
            described = [(name, view.get_dtype(), tuple(view.get_shape())) for name, view in views]
    except (OSError, SafetensorError) as error:
        raise _invalid(f"{file} cannot be read: {error}") from error
    for name, tag, shape in described:
        if tag not in DTYPES:
            raise _invalid(
                f"{file}: {name} is stored as {tag}: only unquantised weights ({', '.join(DTYPES)}) are read"
            )
        yield StoredTensor(file=file, name=name, dtype=DTYPES[tag], shape=shape)


def _unpickle(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=_can_be_mapped(file))
    except FileNotFoundError as error:
        raise _invalid(f"{file} does not exist") from error
    except pickle.UnpicklingError as error:
        raise _invalid(
            f"{file} is refused: a pickle may run code, and this one holds more than tensors or is damaged: "
            f"{_first_line(error)}"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise _invalid(f"{file} cannot be read: {_first_line(error)}") from error
    yield from _flatten(content, file)


def _flatten(content: Any, file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    if not isinstance(content, dict):
        raise _invalid(f"{file} holds a {type(content).__name__}, not tensors by name")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise _invalid(f"{file}: {name!r:.80} is a {type(value).__name__}, not a tensor")
        if value.dtype not in TAGS:
            raise _invalid(f"{file}: {name} is stored as {value.dtype}: only unquantised weights are read")
        yield name, value


def _can_be_mapped(file: Path) -> bool:
    # The format before PyTorch 1.6 is no archive: it has to be read and held whole.
    return zipfile.is_zipfile(file)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:200]


def _invalid(message: str) -> StageError:
    return StageError(Reason.INVALID_MODEL, message)
