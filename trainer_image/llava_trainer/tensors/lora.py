"""LoRA as PEFT stores it: pairs of matrices, and what they make of a base's tensor. Knows no layout's names.

PEFT is not asked here: it is the oracle that a merged model is proven against (``merging.proof``).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from llava_trainer.tensors.recipes import TensorRecipe
from llava_trainer.tensors.stored import StoredTensor

LORA_A = ".lora_A.weight"
LORA_B = ".lora_B.weight"


class LoraError(ValueError):
    """Matrices do not belong together, or not to the base; the message names them."""


@dataclass(frozen=True, kw_only=True)
class LoraPair:
    """The two matrices of one update: B (out x rank) and A (rank x in)."""

    a: StoredTensor
    b: StoredTensor
    scale: float
    """``scale_of`` the adapter."""

    def update(self) -> torch.Tensor:
        """The update B A x scale, in fp32; the order of operations is PEFT's, so that the bits agree."""
        return (read_exact(self.b) @ read_exact(self.a)).mul_(self.scale)


def scale_of(settings: Mapping[str, Any]) -> float:
    """What an update is multiplied by: alpha / rank, or alpha / sqrt(rank) with rsLoRA (Kalajdzievski 2023).

    Args:
        settings: adapter_config.json, checked: ``r`` and ``lora_alpha`` are numbers.
    """
    rank = settings["r"]
    return float(settings["lora_alpha"] / (math.sqrt(rank) if settings.get("use_rslora") else rank))


def find_pairs(tensors: Mapping[str, StoredTensor], *, rank: int, scale: float) -> dict[str, LoraPair]:
    """The pairs among an adapter's tensors, by the name of the layer that each updates, as the adapter has it.

    Raises:
        LoraError: a matrix is alone, or is not of this rank.
    """
    pairs = {}
    for name, a in tensors.items():
        if not name.endswith(LORA_A):
            continue
        layer = name.removesuffix(LORA_A)
        b = tensors.get(layer + LORA_B)
        if b is None:
            raise LoraError(f"the adapter holds {name} without {layer + LORA_B}")
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != rank or b.shape[1] != rank:
            raise LoraError(
                f"{name} is {a.shape} and {b.name} is {b.shape}: B must have as many columns and A as many rows as "
                f"adapter_config.json's r, which is {rank}"
            )
        pairs[layer] = LoraPair(a=a, b=b, scale=scale)
    alone = [name for name in tensors if name.endswith(LORA_B) and name.removesuffix(LORA_B) not in pairs]
    if alone:
        raise LoraError(f"the adapter holds {alone[0]} without its lora_A")
    return pairs


def updated(base: TensorRecipe, pair: LoraPair, dtype: torch.dtype) -> TensorRecipe:
    """``(W.float() + B A x scale).to(dtype)``, rounded once.

    Raises:
        LoraError: the update is of another shape than the base's tensor.
    """
    shape = (pair.b.shape[0], pair.a.shape[1])
    if shape != base.shape:
        raise LoraError(
            f"{pair.b.name} and its lora_A make {shape}, but in the base it is {base.shape}: the adapter was trained "
            "on another base"
        )

    def make() -> torch.Tensor:
        return base.make().to(torch.float32, copy=True).add_(pair.update()).to(dtype)

    return replace(base, dtype=dtype, make=make)


def read_exact(tensor: StoredTensor) -> torch.Tensor:
    """A trained tensor in fp32 and in memory of its own.

    A copy: products of the same numbers differ in their last bits with the alignment of their memory.
    """
    return tensor.read().to(torch.float32, copy=True)
