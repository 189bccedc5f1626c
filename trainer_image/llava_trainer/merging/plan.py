"""What the merged checkpoint will look like, worked out from headers alone before a single weight is read.

Every tensor's name, shape and number format is known in advance, so that a shard's header can be written first and
its tensors streamed behind it.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.merging.changes import Changes
from llava_trainer.model.layout import hub_name, is_derived

# safetensors' names of number formats; floating ones are converted, the others kept.
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_TAGS = {dtype: tag for tag, dtype in DTYPES.items()}
_INDEX_FILE = "model.safetensors.index.json"
_SINGLE_FILE = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class BaseTensor:
    """Where a tensor of the base lies, and what it is."""

    file: Path
    name: str
    """Its name in that file, whatever the layout."""
    dtype: torch.dtype
    shape: tuple[int, ...]

    def read(self) -> torch.Tensor:
        """Read it; the file is mapped for this one tensor only, so that no other stays resident."""
        with safe_open(self.file, framework="pt") as tensors:
            tensor: torch.Tensor = tensors.get_tensor(self.name)
            return tensor


@dataclass(frozen=True, kw_only=True)
class PlannedTensor:
    """One tensor of the merged checkpoint."""

    name: str
    """Its hub name."""
    base: BaseTensor
    dtype: torch.dtype

    @property
    def tag(self) -> str:
        """Name of the number format in a safetensors header."""
        return _TAGS[self.dtype]

    @property
    def num_bytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.base.shape) * self.dtype.itemsize


Shard = tuple[PlannedTensor, ...]


def plan_merge(base_dir: Path, changes: Changes, dtype: torch.dtype, max_shard_bytes: int) -> tuple[Shard, ...]:
    """Plan the merged checkpoint, shard by shard, in the base's order.

    Raises:
        StageError: base and changes do not fit together, or the base is not a LLaVA v1.5 checkpoint.
    """
    base = find_tensors(base_dir)
    _check_fit(base, changes)
    planned = [
        PlannedTensor(
            name=name,
            base=tensor,
            dtype=dtype if tensor.dtype.is_floating_point and not is_derived(name) else tensor.dtype,
        )
        for name, tensor in base.items()
    ]
    return _cut_into_shards(planned, max_shard_bytes)


def find_tensors(base_dir: Path) -> dict[str, BaseTensor]:
    """Tensors of a checkpoint, sharded or in one file, by hub name.

    Raises:
        StageError: there are no safetensors weights, or they are not a LLaVA's, or a shard is missing or damaged.
    """
    found: dict[str, BaseTensor] = {}
    for file in _weight_files(base_dir):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a mapping
                    view = tensors.get_slice(name)
                    _add(found, BaseTensor(
                        file=file, name=name, dtype=_dtype(file, name, view.get_dtype()), shape=tuple(view.get_shape())
                    ))  # fmt: skip
        except (OSError, SafetensorError) as error:
            raise StageError(Reason.INVALID_MODEL, f"{file} cannot be read: {error}") from error
    return found


def _weight_files(base_dir: Path) -> list[Path]:
    index_file = base_dir / _INDEX_FILE
    if index_file.is_file():
        weight_map = json.loads(index_file.read_text(encoding="utf-8"))["weight_map"]
        return [base_dir / name for name in sorted(set(weight_map.values()))]
    single = base_dir / _SINGLE_FILE
    if single.is_file():
        return [single]
    raise StageError(
        Reason.INVALID_MODEL,
        f"{base_dir} holds neither {_INDEX_FILE} nor {_SINGLE_FILE}: save the model's weights as safetensors",
    )


def _dtype(file: Path, name: str, tag: str) -> torch.dtype:
    if tag not in DTYPES:
        raise StageError(
            Reason.INVALID_MODEL,
            f"{file}: {name} is stored as {tag}, and an adapter is only merged into unquantised weights "
            f"({', '.join(DTYPES)})",
        )
    return DTYPES[tag]


def _add(found: dict[str, BaseTensor], tensor: BaseTensor) -> None:
    name = hub_name(tensor.name)
    if name in found:
        raise StageError(
            Reason.INVALID_MODEL,
            f"{tensor.file}: {tensor.name} is the same tensor as {found[name].name} in {found[name].file.name}",
        )
    found[name] = tensor


def _check_fit(base: dict[str, BaseTensor], changes: Changes) -> None:
    unused = sorted((changes.pairs.keys() | changes.replaced.keys()) - base.keys())
    if unused:
        raise StageError(Reason.MERGE_MISMATCH, f"{changes.what} changes {unused[0]}, which the base does not hold")
    for name, tensor in base.items():
        if name in changes.pairs and not tensor.dtype.is_floating_point:
            raise StageError(
                Reason.INVALID_MODEL,
                f"{tensor.file}: {tensor.name} is stored as {_TAGS[tensor.dtype]}: an adapter is only merged into "
                "unquantised weights",
            )
        if changes.must_replace(name) and name not in changes.replaced and not is_derived(name):
            raise StageError(Reason.MERGE_MISMATCH, f"{changes.what} does not hold the trained {name}")
        if changes.must_update(name) and name not in changes.pairs:
            raise StageError(
                Reason.MERGE_MISMATCH, f"{changes.what} holds no update for {name}, which its target_modules name"
            )


def _cut_into_shards(planned: list[PlannedTensor], max_shard_bytes: int) -> tuple[Shard, ...]:
    shards: list[list[PlannedTensor]] = []
    room = 0
    for tensor in planned:
        if not shards or tensor.num_bytes > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(tensor)
        room -= tensor.num_bytes
    return tuple(tuple(shard) for shard in shards)
