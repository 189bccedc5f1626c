"""One optimiser step over one global batch, normalised so that nothing but the batch decides what is learned.

DeepSpeed averages the means of micro-batches, which weighs a token by the length of the answers that happen to stand
beside it, and so depends on the number of workers and on accumulation. Here the sum over all supervised tokens of the
global batch is divided by their number.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.training.batches import MicroBatch
from llava_trainer.training.engine import set_learning_rates
from llava_trainer.training.processes import Processes
from llava_trainer.training.trainee import Trainee


@dataclass(frozen=True, kw_only=True)
class BatchTotals:
    """Counts over the whole global batch, the same in every process."""

    supervised: int
    tokens: int
    """Real (not padding) tokens."""
    stop: bool
    """Whether any process was asked to stop."""


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """What one step did, the same in every process."""

    loss: float
    """Per supervised token."""
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    """Of the adapter."""
    tokens: int
    samples: int


def count_batch(micro_batches: Sequence[MicroBatch], stop: bool, processes: Processes) -> BatchTotals:
    """Count over all processes what each one's micro-batches hold, and whether any was asked to stop."""
    supervised, tokens, stops = processes.sum(
        sum(micro_batch.num_supervised for micro_batch in micro_batches),
        sum(micro_batch.num_tokens for micro_batch in micro_batches),
        stop,
    )
    return BatchTotals(supervised=int(supervised), tokens=int(tokens), stop=stops > 0)


def run_step(
    trainee: Trainee,
    processes: Processes,
    micro_batches: Sequence[MicroBatch],
    totals: BatchTotals,
    *,
    factor: float,
    samples: int,
) -> StepOutcome:
    """Learn from one global batch.

    Args:
        trainee: what learns.
        processes: all of them; each calls this with micro-batches of its own.
        micro_batches: this process's share; every process has the same number.
        totals: of the global batch.
        factor: of the peak learning rates.
        samples: in the global batch.

    Returns:
        What was done. Where loss or gradient norm is not finite, DeepSpeed has left the weights as they were.
    """
    engine = trainee.engine
    # DeepSpeed divides the sum of all processes' gradients by their number.
    scale = processes.world_size / max(1, totals.supervised)
    loss_sum = torch.zeros((), dtype=torch.float32, device=processes.device)
    for micro_batch in micro_batches:
        loss = engine(**micro_batch.to(processes.device, trainee.dtype))
        engine.backward(loss * scale, scale_wrt_gas=False)
        loss_sum += loss.detach()
    set_learning_rates(engine, trainee.groups, factor)
    engine.step()
    (total_loss,) = processes.sum(loss_sum.item())
    return StepOutcome(
        loss=total_loss / max(1, totals.supervised),
        grad_norm=float(engine.get_global_grad_norm()),
        learning_rate=trainee.groups[0].learning_rate * factor,
        tokens=totals.tokens,
        samples=samples,
    )


def check_finite(outcome: StepOutcome, step: int) -> None:
    """Refuse to go on with a loss or a gradient that is not a number.

    Raises:
        StageError: LossNotFinite.
    """
    if math.isfinite(outcome.loss) and math.isfinite(outcome.grad_norm):
        return
    raise StageError(
        Reason.LOSS_NOT_FINITE,
        f"in step {step} the loss is {outcome.loss} and the norm of its gradient {outcome.grad_norm}, at a learning "
        f"rate of {outcome.learning_rate:.3g}",
    )
