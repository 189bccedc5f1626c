"""Whether training takes so few steps that it hardly changes anything, and what would give enough. Pure.

40 samples at LLaVA's global batch of 128 are one step an epoch. The run succeeds, and answers as before.
"""

import math
from dataclasses import dataclass

from llava_api.constants import StageName
from llava_api.memory import num_processes, num_steps
from llava_api.spec import Spec

FEW = 50
"""Optimiser steps below which a person is warned."""
ENOUGH = 100
"""What the settings that are proposed come to at least."""
_MANY_EPOCHS = 10
"""More than so many are proposed only where no batch is small enough: samples are learned by heart."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Settings with which there are enough steps."""

    per_device: int
    global_: int
    epochs: int


def describe_few_steps(spec: Spec, samples: int) -> str | None:
    """A warning where training on so many samples takes few steps; None where it takes enough, or trains nothing."""
    if spec.training.method == "none" or samples < 1:
        return None
    steps = num_steps(spec, StageName.TRAIN, samples)
    if steps >= FEW:
        return None
    changes = [f"{name} to {wanted} (is {has})" for name, wanted, has in _list_changes(spec, samples)]
    return (
        f"training takes {steps} optimiser {'step' if steps == 1 else 'steps'} on {samples} samples, and with fewer "
        f"than {FEW} most models answer as before: for about {ENOUGH} set, in spec.training, {', '.join(changes)}"
    )


def _list_changes(spec: Spec, samples: int) -> list[tuple[str, int, int]]:
    """What to set in spec.training: its name, what it should be, and what it is."""
    training = spec.training
    if training.max_steps is not None:
        # Whatever the batch and the epochs are.
        return [("maxSteps", ENOUGH, training.max_steps)]
    found = propose(spec, samples)
    compared = (
        ("batch.perDevice", found.per_device, training.batch.per_device),
        ("batch.global", found.global_, training.batch.global_),
        ("epochs", found.epochs, training.epochs),
    )
    return [change for change in compared if change[1] != change[2]]


def propose(spec: Spec, samples: int) -> Proposal:
    """The largest batch with which there are enough steps in few epochs; the run's own epochs where they are more."""
    processes, epochs = num_processes(spec), spec.training.epochs
    per_device = spec.training.batch.per_device
    while True:
        unit = per_device * processes
        for global_ in range(spec.training.batch.global_ // unit * unit, 0, -unit):
            wanted = math.ceil(ENOUGH / math.ceil(samples / global_))
            if wanted <= max(epochs, _MANY_EPOCHS) or (per_device == 1 and global_ == unit):
                return Proposal(per_device=per_device, global_=global_, epochs=max(epochs, wanted))
        per_device = max(1, per_device // 2)
