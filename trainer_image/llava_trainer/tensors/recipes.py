"""How a tensor of a file to be written is made when its turn comes; of one kind for importing, training and merging."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from llava_trainer.tensors.stored import TAGS, StoredTensor


@dataclass(frozen=True, kw_only=True)
class TensorRecipe:
    """One tensor of a file to be written. All but its values is known in advance, so that a header can come first."""

    name: str
    """Its name in the file."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], torch.Tensor]
    """Makes it, of that shape and number format."""

    @property
    def tag(self) -> str:
        """Name of the number format in a safetensors header."""
        return TAGS[self.dtype]

    @property
    def num_bytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def copied(name: str, tensor: StoredTensor) -> TensorRecipe:
    """A stored tensor as it is, under ``name``."""
    return TensorRecipe(name=name, dtype=tensor.dtype, shape=tensor.shape, make=tensor.read)
