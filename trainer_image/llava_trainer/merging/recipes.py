"""The merge itself, as recipes: base tensors through, adapted ones updated, those trained whole replaced.

The recipes are worked out from headers alone before a single weight is read, and made one at a time.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.merging.changes import Changes
from llava_trainer.model.layout import hub_name, is_derived
from llava_trainer.tensors.lora import LoraError, read_exact, updated
from llava_trainer.tensors.recipes import TensorRecipe, copied
from llava_trainer.tensors.stored import TAGS, StoredTensor, find_stored
from llava_trainer.tensors.writing import INDEX_FILE

_SINGLE_FILE = "model.safetensors"

MergeDtype = Literal["bfloat16", "float16", "float32"]


def torch_dtype(name: MergeDtype) -> torch.dtype:
    """Number format of ``spec.merge.dtype``."""
    return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[name]


def plan_merge(base_dir: Path, changes: Changes, dtype: torch.dtype) -> tuple[TensorRecipe, ...]:
    """Recipes for the merged checkpoint's tensors, in the base's order.

    Args:
        base_dir: checkpoint with safetensors weights, in any of the three layouts.
        changes: what to change.
        dtype: number format of the merged floating-point tensors.

    Raises:
        StageError: base and changes do not fit together, or the base is not a LLaVA v1.5 checkpoint.
    """
    base = find_tensors(base_dir)
    _check_fit(base, changes)
    return tuple(_merge(name, tensor, changes, dtype) for name, tensor in base.items())


def find_tensors(base_dir: Path) -> dict[str, StoredTensor]:
    """Tensors of a checkpoint, sharded or in one file, by hub name.

    Raises:
        StageError: there are no safetensors weights, or they are not a LLaVA's, or a shard is missing or damaged.
    """
    found: dict[str, StoredTensor] = {}
    for file in _weight_files(base_dir):
        for tensor in find_stored(file):
            _add(found, tensor)
    return found


def _merge(name: str, tensor: StoredTensor, changes: Changes, dtype: torch.dtype) -> TensorRecipe:
    """One merged tensor: ``(W.float() + B A x scale).to(dtype)``, rounded once."""
    base = copied(name, tensor)
    is_kept = is_derived(name) or not tensor.dtype.is_floating_point
    return _rounded(_change(base, changes), tensor.dtype if is_kept else dtype)


def _change(base: TensorRecipe, changes: Changes) -> TensorRecipe:
    trained = changes.replaced.get(base.name)
    if trained is not None:
        if trained.shape != base.shape:
            raise StageError(
                Reason.MERGE_MISMATCH,
                f"training makes {base.name} {trained.shape}, but in the base it is {base.shape}",
            )
        return replace(base, dtype=torch.float32, make=lambda: read_exact(trained))
    pair = changes.pairs.get(base.name)
    if pair is None:
        return base
    try:
        return updated(base, pair, torch.float32)
    except LoraError as error:
        raise StageError(Reason.MERGE_MISMATCH, str(error)) from error


def _rounded(exact: TensorRecipe, dtype: torch.dtype) -> TensorRecipe:
    """Its values in another number format, refused where they are not finite there."""

    def make() -> torch.Tensor:
        tensor = exact.make()
        merged = tensor.to(dtype)
        if not _is_finite(merged):
            raise _not_finite(exact.name, tensor)
        return merged

    return replace(exact, dtype=dtype, make=make)


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether all its numbers are finite; without a copy of it, as ``torch.isfinite`` makes some."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    # Both ends are no number where any is not.
    return all(bool(torch.isfinite(end)) for end in tensor.aminmax())


def _not_finite(name: str, exact: torch.Tensor) -> StageError:
    if _is_finite(exact):
        largest = exact.abs().max().item()
        return StageError(
            Reason.INVALID_MODEL,
            f"spec.merge.dtype float16 cannot hold {name}, whose largest value is {largest:.4g}: use bfloat16",
        )
    return StageError(Reason.INVALID_MODEL, f"{name} holds values that are not finite: base or adapter is damaged")


def _weight_files(base_dir: Path) -> list[Path]:
    index_file = base_dir / INDEX_FILE
    if index_file.is_file():
        weight_map = json.loads(index_file.read_text(encoding="utf-8"))["weight_map"]
        return [base_dir / name for name in sorted(set(weight_map.values()))]
    single = base_dir / _SINGLE_FILE
    if single.is_file():
        return [single]
    raise StageError(
        Reason.INVALID_MODEL,
        f"{base_dir} holds neither {INDEX_FILE} nor {_SINGLE_FILE}: save the model's weights as safetensors",
    )


def _add(found: dict[str, StoredTensor], tensor: StoredTensor) -> None:
    name = hub_name(tensor.name)
    if name in found:
        raise StageError(
            Reason.INVALID_MODEL,
            f"{tensor.file}: {tensor.name} is the same tensor as {found[name].name} in {found[name].file.name}",
        )
    found[name] = tensor


def _check_fit(base: dict[str, StoredTensor], changes: Changes) -> None:
    unused = sorted((changes.pairs.keys() | changes.replaced.keys()) - base.keys())
    if unused:
        raise StageError(Reason.MERGE_MISMATCH, f"{changes.what} changes {unused[0]}, which the base does not hold")
    for name, tensor in base.items():
        if name in changes.pairs and not tensor.dtype.is_floating_point:
            raise StageError(
                Reason.INVALID_MODEL,
                f"{tensor.file}: {tensor.name} is stored as {TAGS[tensor.dtype]}: an adapter is only merged into "
                "unquantised weights",
            )
        if changes.must_replace(name) and name not in changes.replaced and not is_derived(name):
            raise StageError(Reason.MERGE_MISMATCH, f"{changes.what} does not hold the trained {name}")
        if changes.must_update(name) and name not in changes.pairs:
            raise StageError(
                Reason.MERGE_MISMATCH, f"{changes.what} holds no update for {name}, which its target_modules name"
            )
