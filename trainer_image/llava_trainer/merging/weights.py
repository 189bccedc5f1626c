"""The merge itself: base tensors through, adapted ones updated, those trained whole replaced."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.merging.changes import Changes, read_exact
from llava_trainer.merging.plan import PlannedTensor, plan_merge
from llava_trainer.weights.streaming import MAX_SHARD_BYTES, write_checkpoint

MergeDtype = Literal["bfloat16", "float16", "float32"]


@dataclass(frozen=True, kw_only=True)
class MergedWeights:
    """What was written."""

    num_tensors: int
    num_merged: int
    """Tensors that training changed."""


def merge_weights(
    base_dir: Path,
    changes: Changes,
    out_dir: Path,
    dtype: torch.dtype,
    *,
    on_tensor: Callable[[int, int], None] = lambda done, total: None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> MergedWeights:
    """Write the base with ``changes`` into ``out_dir`` in hub layout, one tensor in memory at a time.

    Args:
        base_dir: checkpoint with safetensors weights, in any of the three layouts.
        changes: what to change.
        out_dir: an existing folder.
        dtype: number format of the merged floating-point tensors.
        on_tensor: told (tensors written, tensors in all) after each.
        max_shard_bytes: where to begin the next file.

    Raises:
        StageError: base and changes do not fit together, or a merged weight is not finite.
    """
    planned_tensors = plan_merge(base_dir, changes, dtype)
    total = len(planned_tensors)
    done = 0

    def produce(planned: PlannedTensor) -> torch.Tensor:
        nonlocal done
        tensor = merge_tensor(planned, changes)
        done += 1
        on_tensor(done, total)
        return tensor

    write_checkpoint(out_dir, planned_tensors, produce, max_shard_bytes)
    return MergedWeights(num_tensors=total, num_merged=len(changes.pairs) + len(changes.replaced))


def torch_dtype(name: MergeDtype) -> torch.dtype:
    """Number format of ``spec.merge.dtype``."""
    return {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[name]


def merge_tensor(planned: PlannedTensor, changes: Changes) -> torch.Tensor:
    """One merged tensor: ``(W.float() + B A x alpha / rank).to(dtype)``, rounded once.

    Raises:
        StageError: shapes do not fit, or a value is not finite in the merged number format.
    """
    if planned.name in changes.replaced:
        exact = read_exact(changes.replaced[planned.name])
    elif planned.name in changes.pairs:
        update = changes.pairs[planned.name].update()
        _check_shape(planned, update)
        exact = planned.base.read().to(torch.float32, copy=True).add_(update)
    else:
        exact = planned.base.read()
    _check_shape(planned, exact)
    merged = exact.to(planned.dtype)
    if merged.is_floating_point() and not torch.isfinite(merged).all():
        raise _not_finite(planned, exact)
    return merged


def _check_shape(planned: PlannedTensor, tensor: torch.Tensor) -> None:
    if tuple(tensor.shape) != planned.shape:
        raise StageError(
            Reason.MERGE_MISMATCH,
            f"training makes {planned.name} {tuple(tensor.shape)}, but in the base it is {planned.shape}",
        )


def _not_finite(planned: PlannedTensor, exact: torch.Tensor) -> StageError:
    if torch.isfinite(exact).all():
        largest = exact.abs().max().item()
        return StageError(
            Reason.INVALID_MODEL,
            f"spec.merge.dtype float16 cannot hold {planned.name}, whose largest value is {largest:.4g}: use bfloat16",
        )
    return StageError(
        Reason.INVALID_MODEL, f"{planned.name} holds values that are not finite: base or adapter is damaged"
    )
