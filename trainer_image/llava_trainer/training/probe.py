"""Whether the micro-batches that may take the most memory fit: found out before the first step, not hours later."""

import logging

import torch

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.gang.world import World
from llava_trainer.training.batch_plan import BatchPlan, Extreme
from llava_trainer.training.batches import BatchLoader
from llava_trainer.training.model_under_training import ModelUnderTraining
from llava_trainer.training.slices import make_moments

logger = logging.getLogger(__name__)


def probe_largest(model: ModelUnderTraining, loader: BatchLoader, plan: BatchPlan, world: World) -> None:
    """Run the largest micro-batches of the run forward and backward in every rank, and learn nothing from them.

    They are the ones with the most positions, the most images, and the most supervised tokens. Adam's moments are
    there by then, as they are in every step but the first. The loss is multiplied by zero, so that DeepSpeed goes
    through all that it does for a real one and adds gradients of zero to what the first step sums up: no loss changes
    by a bit. Dropout of each micro-batch begins from a seed of its own anyway.

    Raises:
        StageError: OutOfDeviceMemory or LossNotFinite, with the size of the micro-batch.
        ImageError, ImageCutError, OSError: as ``BatchLoader.load``.
    """
    extremes = plan.find_extremes()
    try:
        make_moments(model.engine)
    except torch.OutOfMemoryError as error:
        raise StageError(Reason.OUT_OF_DEVICE_MEMORY, f"Adam's moments do not fit: {error}") from error
    # Gradients are kept from the first pass on, so that only a second one runs beside them, as later micro-batches do.
    for extreme in (extremes[0], *extremes):
        _run(extreme, model, loader, world)
    if world.device.type == "cuda":
        logger.info("it took %.2f GiB", torch.cuda.max_memory_allocated(world.device) / 2**30)


def _run(extreme: Extreme, model: ModelUnderTraining, loader: BatchLoader, world: World) -> None:
    told = (
        f"{extreme.name} of the run ({len(extreme.rows)} rows, {extreme.tokens:,} tokens with filling, "
        f"{extreme.images} pictures, {extreme.supervised:,} supervised)"
    )
    logger.info("before the first step: %s", told)
    micro_batch = loader.load_rows(extreme.rows)
    try:
        loss = model.engine(**micro_batch.to(world.device))
        _check_finite(loss, told, world)
        model.engine.backward(loss * 0.0, scale_wrt_gas=False)
    except torch.OutOfMemoryError as error:
        raise StageError(Reason.OUT_OF_DEVICE_MEMORY, f"{told} does not fit: {error}") from error


def _check_finite(loss: torch.Tensor, told: str, world: World) -> None:
    """Zero times infinity is no number: it would spoil the first step, which would be blamed for it."""
    if world.all_true(bool(torch.isfinite(loss))):
        return
    raise StageError(
        Reason.LOSS_NOT_FINITE,
        f"before the first step, and whatever the learning rate, the loss of {told} is {loss.item()}: the model's "
        "weights are damaged, or these samples are",
    )
