"""How many optimiser steps the data makes: the global batch that gives enough, and a warning where there are few. Pure.

40 samples at LLaVA's global batch of 128 are one step an epoch. The run succeeds, and answers as before.
"""

import math
from dataclasses import dataclass

from llava_api.constants import StageName
from llava_api.memory import num_processes, num_steps
from llava_api.spec import Batch, Spec, Training

FEW = 50
"""Optimiser steps below which a person is warned."""
ENOUGH = 100
"""What is chosen, and what is proposed, comes to at least."""
LLAVA_GLOBAL_BATCH = 128
"""Of LLaVA v1.5's fine-tuning, by LoRA and of all weights (scripts/v1_5/finetune.sh and finetune_lora.sh): never more
is chosen."""
_MANY_EPOCHS = 10
"""More than so many are proposed only where no batch is small enough: samples are learned by heart."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Settings with which there are enough steps."""

    per_device: int
    global_: int
    epochs: int


def choose_global_batch(training: Training, *, processes: int, samples: int) -> int:
    """The largest global batch with which training takes ``ENOUGH`` steps, for ``batch.global: auto``.

    Where the steps are given (``maxSteps``), a smaller one would give no more of them: it is LLaVA's, or all samples.

    It is one that the processes share out evenly, in full micro-batches where it is large enough for one of each:
    training does not need that, but whoever has less to do waits for the others. Where even the smallest such batch
    makes fewer steps, it is that one; with more processes than LLaVA's batch has samples it is LLaVA's.
    """
    batch = training.batch
    steps_per_epoch = 1 if training.max_steps is not None else math.ceil(ENOUGH / training.epochs)
    # ceil(samples / size) >= steps_per_epoch for every size up to this one.
    size = samples if steps_per_epoch == 1 else (samples - 1) // (steps_per_epoch - 1)
    size = min(size, LLAVA_GLOBAL_BATCH)
    unit = batch.per_device * processes
    if size < unit:
        unit = processes
    return min(max(size // unit * unit, unit), LLAVA_GLOBAL_BATCH)


def settle_batch(batch: Batch, global_batch: int | None, *, processes: int) -> Batch:
    """The batch sizes with what has been chosen in place of ``auto``; as they are where there is no ``auto``.

    A process then holds no more samples at a time than there are for it.
    """
    if batch.global_ != "auto" or global_batch is None:
        return batch
    per_device = min(batch.per_device, math.ceil(global_batch / processes))
    return batch.model_copy(update={"per_device": per_device, "global_": global_batch})


def settle_spec(spec: Spec, global_batch: int | None) -> Spec:
    """The same for a spec."""
    batch = settle_batch(spec.training.batch, global_batch, processes=num_processes(spec))
    if batch is spec.training.batch:
        return spec
    return spec.model_copy(update={"training": spec.training.model_copy(update={"batch": batch})})


def describe_choice(global_batch: int, training: Training, *, samples: int) -> str:
    """Why so many samples are in a step, for a person."""
    epochs, max_steps = training.epochs, training.max_steps
    if max_steps is not None:
        rounds = max_steps * global_batch / max(samples, 1)
        return (
            f"the {max_steps:,} optimiser {_plural(max_steps, 'step')} of maxSteps go through {samples:,} "
            f"{_plural(samples, 'sample')} {rounds:.1f} times with it"
        )
    steps = math.ceil(samples / global_batch) * epochs
    data = f"{samples:,} {_plural(samples, 'sample')} in {epochs:,} {_plural(epochs, 'epoch')}"
    if global_batch == LLAVA_GLOBAL_BATCH:
        return f"LLaVA's own: {data} make {steps:,} optimiser {_plural(steps, 'step')} with it"
    wanted = f"of {ENOUGH} wanted" if steps < ENOUGH else f"{ENOUGH} at least are wanted"
    would = math.ceil(samples / LLAVA_GLOBAL_BATCH) * epochs
    return (
        f"{data} make {steps:,} optimiser {_plural(steps, 'step')} with it ({wanted}), and would make {would:,} with "
        f"LLaVA's {LLAVA_GLOBAL_BATCH}"
    )


def describe_few_steps(spec: Spec, samples: int, *, is_chosen: bool = False) -> str | None:
    """A warning where training on so many samples takes few steps; None where it takes enough, or trains nothing.

    Args:
        spec: of the run, with a number in ``batch.global``.
        samples: that training learns from in an epoch.
        is_chosen: that number was chosen by the data, so only more epochs give more steps.
    """
    if spec.training.method == "none" or samples < 1:
        return None
    steps = num_steps(spec, StageName.TRAIN, samples)
    if steps >= FEW:
        return None
    changes = [
        f"{name} to {wanted} (is {has})" for name, wanted, has in _list_changes(spec, samples, is_chosen=is_chosen)
    ]
    return (
        f"training takes {steps} optimiser {_plural(steps, 'step')} on {samples} samples, and with fewer "
        f"than {FEW} most models answer as before: for about {ENOUGH} set, in spec.training, {', '.join(changes)}"
    )


def _list_changes(spec: Spec, samples: int, *, is_chosen: bool) -> list[tuple[str, int, int]]:
    """What to set in spec.training: its name, what it should be, and what it is."""
    training = spec.training
    if training.max_steps is not None:
        # Whatever the batch and the epochs are.
        return [("maxSteps", ENOUGH, training.max_steps)]
    found = _propose_epochs(spec, samples) if is_chosen else propose(spec, samples)
    compared = (
        ("batch.perDevice", found.per_device, training.batch.per_device),
        ("batch.global", found.global_, training.batch.num_samples),
        ("epochs", found.epochs, training.epochs),
    )
    return [change for change in compared if change[1] != change[2]]


def propose(spec: Spec, samples: int) -> Proposal:
    """The largest batch with which there are enough steps in few epochs; the run's own epochs where they are more."""
    processes, epochs = num_processes(spec), spec.training.epochs
    per_device = spec.training.batch.per_device
    while True:
        unit = per_device * processes
        for global_ in range(spec.training.batch.num_samples // unit * unit, 0, -unit):
            wanted = math.ceil(ENOUGH / math.ceil(samples / global_))
            if wanted <= max(epochs, _MANY_EPOCHS) or (per_device == 1 and global_ == unit):
                return Proposal(per_device=per_device, global_=global_, epochs=max(epochs, wanted))
        per_device = max(1, per_device // 2)


def _propose_epochs(spec: Spec, samples: int) -> Proposal:
    batch = spec.training.batch
    epochs = math.ceil(ENOUGH / math.ceil(samples / batch.num_samples))
    return Proposal(per_device=batch.per_device, global_=batch.num_samples, epochs=epochs)


def _plural(count: int, what: str) -> str:
    return what if count == 1 else f"{what}s"
