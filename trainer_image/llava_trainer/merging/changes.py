"""What training changes in a base's tensors, whichever method it was: by a product of two matrices, or whole."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from llava_trainer.model.layout import module_name
from llava_trainer.weights.stored import StoredTensor


@dataclass(frozen=True, kw_only=True)
class LoraPair:
    """The two matrices of one update: B (out x rank) and A (rank x in)."""

    a: StoredTensor
    b: StoredTensor
    scale: float
    """alpha / rank."""

    def update(self) -> torch.Tensor:
        """The update B A x scale, in fp32; the order of operations is PEFT's, so that the bits agree."""
        return (read_exact(self.b) @ read_exact(self.a)).mul_(self.scale)


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What was trained, by hub name of the base's tensors."""

    what: str
    """What holds them, for messages: ``the adapter``."""
    pairs: Mapping[str, LoraPair] = field(default_factory=dict)
    """Tensors that get an update."""
    replaced: Mapping[str, StoredTensor]
    """Tensors that were trained whole."""
    targets: str | tuple[str, ...] = ()
    """What must have an update, as PEFT's ``target_modules``: one pattern for the whole module name, or endings."""
    whole: tuple[str, ...]
    """What must have been trained whole: beginnings of hub names."""

    def must_update(self, hub: str) -> bool:
        """Whether the tensor with this hub name has to have an update."""
        if not hub.endswith(".weight"):
            return False
        module = module_name(hub).removesuffix(".weight")
        if isinstance(self.targets, str):
            return re.fullmatch(self.targets, module) is not None
        return any(module == ending or module.endswith(f".{ending}") for ending in self.targets)

    def must_replace(self, hub: str) -> bool:
        """Whether the tensor with this hub name has to have been trained whole."""
        return hub.startswith(self.whole)


def read_exact(tensor: StoredTensor) -> torch.Tensor:
    """A trained tensor in fp32 and in memory of its own.

    A copy: products of the same numbers differ in their last bits with the alignment of their memory.
    """
    return tensor.read().to(torch.float32, copy=True)
