"""Proof that what was merged computes what base and adapter compute, with PEFT as the oracle, a block at a time.

Comparing the logits of base + adapter with those of a merged bfloat16 model proves little: rounding alone moves them
by a tenth or two, far more than a layer that was missed. So rounding is taken out of every comparison:

1. base + adapter in fp32 against PEFT's own merge of them in fp32: logits agree up to summation order;
2. every tensor on the disk against that merge, rounded to the merged number format: bit for bit;
3. that merge, once rounded, against the folder as a server loads it (plain Auto classes): logits agree again.

Without an adapter there is nothing for PEFT to merge, and the first step is empty: the base with the trained tensors
put in their places is the reference then. What rounding does to the logits is reported beside it.

All passes go through a block (``blocks``) before the next one is read, so that a layer in fp32 is held and no model.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.merging.blocks import Block, Slot
from llava_trainer.merging.comparison import compare_and_round, kl_divergences, largest_difference, largest_size
from llava_trainer.merging.lanes import Batch, Lanes, open_lanes
from llava_trainer.merging.recipes import find_tensors
from llava_trainer.merging.reference import Reference, Streamed, build_reference
from llava_trainer.merging.served import build_served
from llava_trainer.model.layout import is_derived
from llava_trainer.tensors.stored import StoredTensor

LOGIT_TOLERANCE = 1e-4
"""Largest difference of two fp32 logits, in units of the largest logit (at least 1): sums in another order."""
_SUM_NOISE = 4 * torch.finfo(torch.float32).eps
"""Differences of a matrix product's sums, in units of the largest weight: shards of an earlier attempt may have been
made on a processor that adds up in another order. Those of this one are equal to the bit."""
_LOGIT_ELEMENTS = 2**22
"""Logits of a pass: 16 MiB in fp32, 130 positions at a vocabulary of 32,064; all passes' are held at the end."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was found equal, and how nearly."""

    max_logit_difference: float
    """Largest difference of fp32 logits that is not rounding: base + adapter against merged."""
    max_rounding_difference: float
    """Largest difference of logits that rounding the weights to the merged number format makes."""
    mean_kl_divergence: float
    """KL(exact || rounded) of the next token, in nats, mean over the positions compared."""
    max_kl_divergence: float
    """The largest of them."""
    num_tensors: int
    """Tensors on the disk that were found equal to PEFT's."""
    num_varying: int
    """Those of them where a matrix product was summed in another order; all others are equal to the bit."""
    num_samples: int
    num_positions: int
    """Positions whose logits were compared."""


@dataclass(frozen=True, kw_only=True)
class _Passes:
    """The passes over all batches, four times."""

    tuned: Lanes | None
    """Base and adapter, nothing merged; None without an adapter."""
    exact: Lanes
    rounded: Lanes
    served: Lanes


def prove_merge(
    reference: Reference,
    merged_dir: Path,
    batches: Sequence[Batch],
    *,
    on_tensor: Callable[[int], None] = lambda done: None,
) -> Proof:
    """Prove that ``merged_dir`` computes what was trained.

    Args:
        reference: where base and what was trained lie.
        merged_dir: what was merged, with everything that a server needs.
        batches: real samples to compare logits on; at least one.
        on_tensor: told the number of tensors compared after each.

    Raises:
        StageError: MergeMismatch, with what differs and by how much; or base or adapter cannot be loaded.
    """
    assert batches, "nothing to compare logits on"
    trained = build_reference(reference)
    files = {name: tensor for name, tensor in find_tensors(merged_dir).items() if not is_derived(name)}
    _check_headers(trained, files, merged_dir)
    served = build_served(merged_dir)
    positions = [_choose_positions(batch, served.vocabulary) for batch in batches]
    comparison = _TensorCount(files, on_tensor)
    with ExitStack() as stack:

        def begin(streamed: Streamed) -> Lanes:
            modules = [block.module for block in streamed.blocks]
            return stack.enter_context(open_lanes(streamed.model, modules, batches, positions))

        passes = _Passes(
            tuned=None if reference.adapter_dir is None else begin(trained),
            exact=begin(trained), rounded=begin(trained), served=begin(served),
        )  # fmt: skip
        for block, served_block in zip(trained.blocks, served.blocks, strict=True):
            _go_through(block, passes, comparison)
            served_block.fill()
            passes.served.run(served_block.module)
            served_block.empty()
        return _conclude(passes, batches, positions, comparison)


def _go_through(block: Block, passes: _Passes, comparison: "_TensorCount") -> None:
    block.fill()
    if passes.tuned is not None:
        passes.tuned.run(block.module)
    block.merge()
    passes.exact.run(block.module)
    for slot in block.slots:
        comparison.add(slot)
    passes.rounded.run(block.module)
    block.empty()


class _TensorCount:
    """Compares tensors on the disk with PEFT's, and counts them."""

    def __init__(self, files: Mapping[str, StoredTensor], on_tensor: Callable[[int], None]) -> None:
        self._files, self._on_tensor = files, on_tensor
        self.num_tensors = self.num_varying = 0

    def add(self, slot: Slot) -> None:
        """Compare a tensor with the one on the disk, and round it in place."""
        file = self._files.get(slot.hub or "")
        if file is None:
            # A LoRA matrix, or the twin of a tensor that is there.
            return
        found = compare_and_round(file.read(), slot.value, noise=_SUM_NOISE if slot.is_updated else 0.0)
        if found.num_different:
            num_values = slot.value.numel()
            raise _mismatch(
                f"{slot.hub} differs from what was trained in {found.num_different} of {num_values} values, by "
                f"{found.largest:.3g} at most"
            )
        self.num_tensors += 1
        self.num_varying += found.num_varying > 0
        self._on_tensor(self.num_tensors)


def _check_headers(trained: Streamed, files: Mapping[str, StoredTensor], merged_dir: Path) -> None:
    shapes = {slot.hub: slot.shape for block in trained.blocks for slot in block.slots if slot.hub is not None}
    may_lack = {twin for twin in trained.tied if twin not in files}
    if files.keys() != shapes.keys() - may_lack:
        odd = sorted(files.keys() ^ (shapes.keys() - may_lack))
        raise _mismatch(f"{len(odd)} tensors are either not in {merged_dir} or not in the model, like {odd[0]}")
    for name, file in files.items():
        if file.shape != shapes[name]:
            raise _mismatch(f"{name} is {file.shape} on the disk and {shapes[name]} in what was trained")


def _choose_positions(batch: Batch, vocabulary: int) -> torch.Tensor:
    """Positions of a batch whose logits are compared: all, or as many as may be, evenly spread, and the last one."""
    rows, length = batch["input_ids"].shape
    kept = min(length, max(1, _LOGIT_ELEMENTS // (rows * vocabulary)))
    return torch.linspace(length - 1, 0, kept, dtype=torch.float64).round().long().flip(0)


def _conclude(
    passes: _Passes, batches: Sequence[Batch], positions: Sequence[torch.Tensor], comparison: _TensorCount
) -> Proof:
    real = [batch["attention_mask"][:, kept].bool() for batch, kept in zip(batches, positions, strict=True)]

    def read(lanes: Lanes) -> list[torch.Tensor]:
        # A mask makes a copy.
        return [
            logits.flatten(0, 1) if mask.all() else logits[mask]
            for logits, mask in zip(lanes.logits, real, strict=True)
        ]

    exact, rounded = read(passes.exact), read(passes.rounded)
    merging = 0.0
    if passes.tuned is not None:
        merging = _compare_logits("PEFT's merge and base + adapter", exact, read(passes.tuned))
    serving = _compare_logits("the merged model and what was trained", read(passes.served), rounded)
    divergences = kl_divergences(exact, rounded)
    return Proof(
        max_logit_difference=max(merging, serving),
        max_rounding_difference=largest_difference(rounded, exact),
        mean_kl_divergence=divergences.mean().item(),
        max_kl_divergence=divergences.max().item(),
        num_tensors=comparison.num_tensors,
        num_varying=comparison.num_varying,
        num_samples=sum(len(batch["input_ids"]) for batch in batches),
        num_positions=_count(real),
    )


def _count(masks: Iterable[torch.Tensor]) -> int:
    return sum(int(mask.sum()) for mask in masks)


def _compare_logits(what: str, found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    difference = largest_difference(found, wanted)
    allowed = LOGIT_TOLERANCE * max(1.0, largest_size(wanted))
    if not difference <= allowed:  # also when it is not a number
        raise _mismatch(f"logits of {what} differ by {difference:.3g} in fp32, and {allowed:.3g} is allowed")
    return difference


def _mismatch(message: str) -> StageError:
    return StageError(Reason.MERGE_MISMATCH, message)
