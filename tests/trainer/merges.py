"""Merging by itself: the weights that the stage would write, in a folder of one's choice."""

from collections.abc import Callable
from pathlib import Path

import torch

from llava_trainer.merging.changes import Changes
from llava_trainer.merging.recipes import plan_merge
from llava_trainer.tensors.writing import MAX_SHARD_BYTES, write_checkpoint


def merge_weights(
    base_dir: Path,
    changes: Changes,
    out_dir: Path,
    dtype: torch.dtype,
    *,
    on_tensor: Callable[[int, int], None] = lambda done, total: None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> dict[str, str]:
    """Write the base with ``changes`` into ``out_dir``; digests of the files."""
    recipes = plan_merge(base_dir, changes, dtype)
    return write_checkpoint(out_dir, recipes, on_tensor=on_tensor, max_shard_bytes=max_shard_bytes)
