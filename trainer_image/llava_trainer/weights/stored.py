"""Tensors in files, found without reading them: safetensors, and PyTorch's pickles, which are never executed.

Only what is read becomes resident, one tensor at a time (``pickled`` for the pickles).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from llava_api.failures import Reason
from llava_api.text import show
from llava_trainer.errors import StageError
from llava_trainer.weights.pickled import PickledTensor, read_pickle
from llava_trainer.weights.unpickler import PickleError

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
    pickled: PickledTensor | None = field(default=None, compare=False, repr=False)
    """Of a pickle: where in the file it lies."""

    def read(self) -> torch.Tensor:
        """Read it into memory of its own; a safetensors file is mapped for this one tensor only."""
        if self.pickled is not None:
            return self.pickled.read(self.file)
        with safe_open(self.file, framework="pt") as tensors:
            tensor: torch.Tensor = tensors.get_tensor(self.name)
            return tensor

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
        yield from _find_pickled(file)
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


def _find_pickled(file: Path) -> Iterator[StoredTensor]:
    try:
        found = read_pickle(file)
    except FileNotFoundError as error:
        raise _invalid(f"{file} does not exist") from error
    except (PickleError, OSError) as error:
        raise _invalid(f"{file} is refused: {show(error, max_chars=300)}") from error
    for name, tensor in found.items():
        yield StoredTensor(file=file, name=name, dtype=tensor.dtype, shape=tensor.shape, pickled=tensor)


def _invalid(message: str) -> StageError:
    return StageError(Reason.INVALID_MODEL, message)
