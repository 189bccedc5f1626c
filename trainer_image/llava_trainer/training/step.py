"""One optimiser step over one global batch, normalised so that nothing but the batch decides what is learned.

DeepSpeed averages the means of micro-batches, which weighs a token by the length of the answers that happen to stand
beside it, and so depends on the number of workers and on accumulation. Here the sum over all supervised tokens of the
global batch is divided by their number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from llava_trainer.gang.stopping import StopAgreement
from llava_trainer.gang.watchdog import Beat, Doing
from llava_trainer.gang.world import World
from llava_trainer.training.batches import MicroBatch
from llava_trainer.training.engine import set_learning_rates
from llava_trainer.training.model_under_training import ModelUnderTraining


@dataclass(frozen=True, kw_only=True)
class BatchTotals:
    """Counts over the whole global batch, the same in every rank."""

    supervised: int
    tokens: int
    """Real (not padding) tokens."""
    stop: bool
    """Whether any rank was asked to stop."""
    last_step_s: float
    """How long the step before took, as the first rank has measured it; 0 if there was none."""
    peak_gpu_memory_bytes: int = 0
    """Most memory that torch has reserved on any rank's GPU before this step; 0 without GPUs."""
    data_wait_s: float = 0.0
    """How long the rank that waited longest has waited for its part of the batch: all others wait for it."""


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """What one step did; the same in every rank, but for ``sample_losses``."""

    loss: float
    """Per supervised token."""
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    """Of the adapter."""
    tokens: int
    samples: int
    sample_losses: np.ndarray
    """Of this rank's own samples in their rows' order: summed loss and supervised tokens, float64 [samples, 2]."""


def count_batch(
    micro_batches: Sequence[MicroBatch], stop: bool, world: World, last_step_s: float = 0.0, data_wait_s: float = 0.0
) -> BatchTotals:
    """Count over all ranks what each one's micro-batches hold, and whether any was asked to stop.

    The first rank's ``last_step_s`` is told to all, and the longest ``data_wait_s``.
    """
    # A sum in which each rank has a place of its own tells all of them, and is no operation more.
    peaks, waits = [0.0] * world.world_size, [0.0] * world.world_size
    peaks[world.rank], waits[world.rank] = world.peak_gpu_memory_bytes, data_wait_s
    supervised, tokens, stops, seconds, *each = world.sum(
        sum(micro_batch.num_supervised for micro_batch in micro_batches),
        sum(micro_batch.num_tokens for micro_batch in micro_batches),
        stop,
        last_step_s if world.is_first else 0.0,
        *peaks,
        *waits,
    )
    return BatchTotals(
        supervised=int(supervised),
        tokens=int(tokens),
        stop=stops > 0,
        last_step_s=seconds,
        peak_gpu_memory_bytes=int(max(each[: world.world_size])),
        data_wait_s=max(each[world.world_size :]),
    )


def run_step(
    model: ModelUnderTraining,
    world: World,
    micro_batches: Sequence[MicroBatch],
    totals: BatchTotals,
    *,
    factor: float,
    samples: int,
    seeds: Sequence[int],
    beat: Beat,
    agreement: StopAgreement,
) -> StepOutcome:
    """Learn from one global batch.

    Args:
        model: what learns.
        world: all of them; each calls this with micro-batches of its own.
        micro_batches: this rank's share; every rank has the same number.
        totals: of the global batch; something of it is supervised.
        factor: of the peak learning rates.
        samples: in the global batch.
        seeds: what dropout of each micro-batch is drawn from.
        beat: told before each micro-batch.
        agreement: on stopping between micro-batches.

    Returns:
        What was done. Where loss or gradient norm is not finite, the weights are not to be used any more.

    Raises:
        AskedToStopError: before a micro-batch, in every rank. Weights and optimiser are as the last step left them;
            gradients that were added up since are to be dropped.
    """
    engine = model.engine
    # DeepSpeed divides the sum of all ranks' gradients by their number.
    scale = world.world_size / totals.supervised
    loss_sum = torch.zeros((), dtype=torch.float32, device=world.device)
    token_losses = []
    for number, (micro_batch, seed) in enumerate(zip(micro_batches, seeds, strict=True), start=1):
        if number > 1:
            beat(Doing.WAITING)
            agreement.check()
        if number < len(micro_batches):
            # Answered before the next one; after the last comes the count of the next batch.
            agreement.ask()
        beat(Doing.COMPUTING)
        torch.manual_seed(seed)
        loss, losses = engine(**micro_batch.to(world.device), parts=True)
        engine.backward(loss * scale, scale_wrt_gas=False)
        loss_sum += loss.detach()
        token_losses.append(losses)
    set_learning_rates(engine, model.groups, factor)
    engine.step()
    own_loss, grad_norm, own_losses = _read(loss_sum, engine.get_global_grad_norm(), token_losses)
    (total_loss,) = world.sum(own_loss)
    return StepOutcome(
        loss=total_loss / totals.supervised,
        grad_norm=grad_norm,
        learning_rate=model.groups[0].learning_rate * factor,
        tokens=totals.tokens,
        samples=samples,
        sample_losses=sum_by_sample(own_losses, [n for one in micro_batches for n in one.supervised_each]),
    )


def _read(
    loss_sum: torch.Tensor, norm: float | torch.Tensor, token_losses: Sequence[torch.Tensor]
) -> tuple[float, float, list[float]]:
    """All that a step has found, as numbers: the one place of it in which our own code waits for the device."""
    scalars = [loss_sum.double()]
    if isinstance(norm, torch.Tensor) and norm.device == loss_sum.device:
        scalars.append(norm.double().reshape(()))
    found = torch.cat((torch.stack(scalars), *(losses.double() for losses in token_losses))).tolist()
    # By stage, DeepSpeed itself may have fetched the norm.
    grad_norm = found[1] if len(scalars) > 1 else float(norm)
    return found[0], grad_norm, found[len(scalars) :]


def sum_by_sample(token_losses: Sequence[float], supervised_each: Sequence[int]) -> np.ndarray:
    """Summed loss and number of tokens of each sample, float64 [samples, 2].

    Args:
        token_losses: of all supervised tokens, sample by sample.
        supervised_each: tokens of each sample; 0 where nothing of it is learned.
    """
    counts = np.asarray(supervised_each, dtype=np.int64)
    # Of the running sum: np.add.reduceat does not know groups of nothing.
    until = np.concatenate(([0.0], np.cumsum(np.asarray(token_losses, dtype=np.float64))))
    ends = np.cumsum(counts)
    return np.stack((until[ends] - until[ends - counts], counts), axis=1)


def draw_seed(seed: int, step: int, first_sample: int) -> int:
    """Where dropout of a micro-batch begins: whoever runs it, and whatever was drawn before, it is the same."""
    return int(np.random.SeedSequence((seed, step, first_sample)).generate_state(1, np.uint64)[0] >> np.uint64(1))
