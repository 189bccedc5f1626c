"""Whether the micro-batch that takes the most memory fits, found out before the first step instead of hours later."""

import logging

import torch

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.training.batches import BatchLoader
from llava_trainer.training.plan import Plan
from llava_trainer.training.processes import Processes
from llava_trainer.training.trainee import Trainee

_PASSES = 2
"""Gradients are kept from the first pass on, so that only a second one runs beside them, as later micro-batches do."""

logger = logging.getLogger(__name__)


def probe_longest(trainee: Trainee, loader: BatchLoader, plan: Plan, processes: Processes) -> None:
    """Run the longest micro-batch of the run forward and backward in every process, and learn nothing from it.

    The loss is multiplied by zero, so that DeepSpeed goes through all that it does for a real one and adds gradients
    of zero to what the first step sums up: no loss changes by a bit. Dropout of each micro-batch begins from a seed of
    its own anyway.

    Raises:
        StageError: OutOfDeviceMemory or LossNotFinite, with the size of the micro-batch.
        PictureError, PictureCutError, OSError: as ``BatchLoader.load``.
    """
    longest = plan.find_longest()
    micro_batch = loader.load_rows(longest.rows)
    num_pictures = int(sum(plan.sizes.pictures[index] for row in longest.rows for index in row))
    size = f"{len(longest.rows)} rows, {longest.tokens:,} tokens with filling, {num_pictures} pictures"
    logger.info("the longest micro-batch: %s", size)
    try:
        for _ in range(_PASSES):
            loss = trainee.engine(**micro_batch.to(processes.device, trainee.dtype))
            _check_finite(loss, size, processes)
            trainee.engine.backward(loss * 0.0, scale_wrt_gas=False)
    except torch.OutOfMemoryError as error:
        raise StageError(
            Reason.OUT_OF_DEVICE_MEMORY, f"the longest micro-batch of the run ({size}) does not fit: {error}"
        ) from error
    if processes.device.type == "cuda":
        logger.info("it took %.2f GiB", torch.cuda.max_memory_allocated(processes.device) / 2**30)


def _check_finite(loss: torch.Tensor, size: str, processes: Processes) -> None:
    """Zero times infinity is no number: it would spoil the first step, which would be blamed for it."""
    if processes.all_true(bool(torch.isfinite(loss))):
        return
    raise StageError(
        Reason.LOSS_NOT_FINITE,
        f"before the first step, and whatever the learning rate, the loss of the longest micro-batch of the run "
        f"({size}) is {loss.item()}: the model's weights are damaged, or these samples are",
    )
