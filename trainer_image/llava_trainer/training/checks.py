"""When training must not go on: each check ends it with a reason of its own, the same in every rank."""

import math
from collections.abc import Callable, Sequence

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.gang.world import World
from llava_trainer.training.model_under_training import ModelUnderTraining
from llava_trainer.training.slices import list_slices
from llava_trainer.training.step import BatchTotals, StepOutcome

_LISTED = 5


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


def check_supervised(
    totals: BatchTotals, step: int, samples: Sequence[int], describe_place: Callable[[int], str]
) -> None:
    """Refuse a global batch that nothing can be learned from.

    Args:
        totals: of the batch.
        step: counted from 1.
        samples: numbers of the batch's samples.
        describe_place: where the sample of a number stands.

    Raises:
        StageError: NothingSupervised.
    """
    if totals.supervised:
        return
    places = [describe_place(index) for index in samples[:_LISTED]] + ["..."] * (len(samples) > _LISTED)
    raise StageError(
        Reason.NOTHING_SUPERVISED,
        f"no token of step {step}'s {len(samples)} samples is supervised ({', '.join(places)}, in data on the run's "
        "volume): their answers are empty or lie beyond training.maxLength",
    )


def check_gradient(model: ModelUnderTraining, world: World, step: int) -> None:
    """Make sure that the main thing to train has received a gradient; every rank calls it after a step.

    Adam's first moments tell: they are zero for good where every gradient was.

    Raises:
        StageError: ZeroGradient.
    """
    main = {id(parameter) for parameter in model.groups[0].parameters}
    named = {name: parameter for name, parameter in model.named_trainable().items() if id(parameter) in main}
    moved = sum(bool(slice_.parts["exp_avg"].any()) for slice_ in list_slices(model.engine, named))
    if world.sum(moved)[0] == 0:
        raise StageError(
            Reason.ZERO_GRADIENT,
            f"after step {step} none of the {len(named)} tensors of the {model.groups[0].name} has received a "
            "gradient, so nothing would be learned",
        )
