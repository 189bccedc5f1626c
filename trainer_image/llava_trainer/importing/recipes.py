"""Recipes for the tensors of a model in hub layout: copied, added up, enlarged or drawn (``lora``: updated)."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import nn

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.importing.names import EMBEDDING, HEAD, PROJECTOR_PREFIX, Tensors
from llava_trainer.tensors.recipes import TensorRecipe, copied
from llava_trainer.tensors.stored import StoredTensor

Recipes = dict[str, TensorRecipe]


def copy_all(tensors: Mapping[str, StoredTensor]) -> Recipes:
    """Every tensor as it is."""
    return {name: copied(name, tensor) for name, tensor in tensors.items()}


def add_delta(base: Mapping[str, StoredTensor], delta: Mapping[str, StoredTensor]) -> Recipes:
    """Base and delta added up; what the base does not have, the delta holds whole.

    Raises:
        StageError: InvalidModel; shapes differ otherwise than by rows that were added to the vocabulary.
    """
    recipes = {}
    for name, changed in delta.items():
        original = base.get(name)
        if original is None or name.startswith(PROJECTOR_PREFIX):
            recipes[name] = copied(name, changed)
            continue
        grown = name in (EMBEDDING, HEAD) and changed.shape[0] >= original.shape[0]
        if changed.shape != original.shape and not (grown and changed.shape[1:] == original.shape[1:]):
            raise _invalid(
                f"{changed.file}: {changed.name} is {changed.shape}, but in the base it is {original.shape}: the delta "
                "was made for another language model"
            )
        recipes[name] = replace(copied(name, changed), make=_sum(original, changed))
    return recipes


def replace_all(recipes: Recipes, tensors: Mapping[str, StoredTensor], what: str) -> Recipes:
    """Put ``tensors`` in the place of those of the same name.

    Raises:
        StageError: InvalidModel; a tensor's shape differs from the one that it replaces.
    """
    for name, tensor in tensors.items():
        known = recipes.get(name)
        if known is not None and known.shape != tensor.shape:
            raise _invalid(
                f"{tensor.file}: {tensor.name} is {tensor.shape}, but the model's is {known.shape}: {what} was trained "
                "for another model"
            )
    return recipes | copy_all(tensors)


def draw_projector(vision_width: int, text_width: int, dtype: torch.dtype, seed: int) -> Recipes:
    """A fresh projector, ``mlp2x_gelu``, drawn as PyTorch draws linear layers, the same for the same seed.

    Args:
        vision_width: width of the tower's features.
        text_width: width of the language model.
        dtype: number format to round to.
        seed: of the draw.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        layers = {"linear_1": nn.Linear(vision_width, text_width), "linear_2": nn.Linear(text_width, text_width)}
    drawn = {
        f"{PROJECTOR_PREFIX}{layer}.{key}": tensor.to(dtype)
        for layer, module in layers.items()
        for key, tensor in module.state_dict().items()
    }
    return {
        name: TensorRecipe(name=name, dtype=dtype, shape=tuple(tensor.shape), make=_constant(tensor))
        for name, tensor in drawn.items()
    }


def untie_head(tensors: Tensors) -> Tensors:
    """Give the head the embedding's weights where a checkpoint stores them once for both."""
    return tensors if HEAD in tensors or EMBEDDING not in tensors else tensors | {HEAD: tensors[EMBEDDING]}


def enlarge_vocabulary(recipes: Recipes, rows: int) -> Recipes:
    """Give embedding and head ``rows`` rows; a new row is the mean of the others, as in LLaVA's own resizing."""
    enlarged = dict(recipes)
    for name in (EMBEDDING, HEAD):
        recipe = recipes.get(name)
        if recipe is not None and recipe.shape[0] < rows:
            shape = (rows, *recipe.shape[1:])
            enlarged[name] = replace(recipe, shape=shape, make=_with_mean_rows(recipe, rows))
    return enlarged


def _constant(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: tensor


def _sum(original: StoredTensor, changed: StoredTensor) -> Callable[[], torch.Tensor]:
    def make() -> torch.Tensor:
        total = changed.read().to(torch.float32, copy=True)
        added = original.read().float()
        total[: added.shape[0]] += added
        return total.to(changed.dtype)

    return make


def _with_mean_rows(recipe: TensorRecipe, rows: int) -> Callable[[], torch.Tensor]:
    def make() -> torch.Tensor:
        known = recipe.make()
        mean = known.float().mean(dim=0, keepdim=True).to(recipe.dtype)
        return torch.cat([known, mean.expand(rows - known.shape[0], -1)])

    return make


def _invalid(message: str) -> StageError:
    return StageError(Reason.INVALID_MODEL, message)
