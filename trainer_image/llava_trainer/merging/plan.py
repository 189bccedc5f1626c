"""What the merged checkpoint will look like, worked out from headers alone before a single weight is read.

Every tensor's name, shape and number format is known in advance, so that a shard's header can be written first and
its tensors streamed behind it.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.merging.changes import Changes
from llava_trainer.model.layout import hub_name, is_derived
from llava_trainer.weights.stored import TAGS, StoredTensor, find_stored
from llava_trainer.weights.streaming import INDEX_FILE

_SINGLE_FILE = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class PlannedTensor:
    """One tensor of the merged checkpoint."""

    name: str
    """Its hub name."""
    base: StoredTensor
    dtype: torch.dtype

    @property
    def tag(self) -> str:
        """Name of the number format in a safetensors header."""
        return TAGS[self.dtype]

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape: the base's."""
        return self.base.shape

    @property
    def num_bytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def plan_merge(base_dir: Path, changes: Changes, dtype: torch.dtype) -> tuple[PlannedTensor, ...]:
    """Plan the merged checkpoint's tensors, in the base's order.

    Raises:
        StageError: base and changes do not fit together, or the base is not a LLaVA v1.5 checkpoint.
    """
    base = find_tensors(base_dir)
    _check_fit(base, changes)
    return tuple(
        PlannedTensor(
            name=name,
            base=tensor,
            dtype=dtype if tensor.dtype.is_floating_point and not is_derived(name) else tensor.dtype,
        )
        for name, tensor in base.items()
    )


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
