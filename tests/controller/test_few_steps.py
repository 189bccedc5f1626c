"""Too few optimiser steps to change anything: when that is said, and whether what is proposed would do."""

import math

import pytest

from llava_operator.deciding.few_steps import ENOUGH, FEW, describe_few_steps, propose
from tests.controller.makers import make_spec

ONE_GPU = {"workers": {"replicas": 1, "gpus": 1}}


def test_forty_samples_at_the_recipes_batch_are_one_step() -> None:
    warning = describe_few_steps(make_spec(**ONE_GPU, training={}), 40)
    assert warning == (
        "training takes 1 optimiser step on 40 samples, and with fewer than 50 most models answer as before: for about "
        "100 set, in spec.training, batch.perDevice to 4 (is 8), batch.global to 4 (is 128), epochs to 10 (is 1)"
    )


def test_fifty_are_enough_and_what_is_not_trained_needs_none() -> None:
    spec = make_spec(**ONE_GPU, training={"batch": {"perDevice": 8, "global": 8}})
    assert describe_few_steps(spec, 8 * FEW) is None
    assert describe_few_steps(spec, 8 * FEW - 8) is not None
    assert describe_few_steps(make_spec(**ONE_GPU, training={"epochs": FEW}), 40) is None
    assert describe_few_steps(spec, 0) is None


def test_steps_that_are_given_are_what_counts() -> None:
    few = make_spec(**ONE_GPU, training={"maxSteps": 20})
    assert (describe_few_steps(few, 100_000) or "").endswith(
        "for about 100 set, in spec.training, maxSteps to 100 (is 20)"
    )
    assert "takes 20 optimiser steps on 100000 samples" in (describe_few_steps(few, 100_000) or "")
    assert describe_few_steps(make_spec(**ONE_GPU, training={"maxSteps": FEW}), 1) is None


@pytest.mark.parametrize("samples", [1, 3, 40, 100, 999, 5000])
@pytest.mark.parametrize(
    "workers", [{"replicas": 1, "gpus": 1}, {"replicas": 2, "gpus": 8}, {"replicas": 3, "gpus": 0}]
)
def test_what_is_proposed_is_accepted_and_enough(samples: int, workers: dict[str, int]) -> None:
    batch = {"perDevice": 8, "global": 8 * 3 * 16}
    spec = make_spec(workers=workers, training={"batch": batch, "precision": "auto"})
    found = propose(spec, samples)
    processes = workers["replicas"] * max(workers["gpus"], 1)
    assert found.global_ % (found.per_device * processes) == 0
    assert 1 <= found.per_device <= 8
    assert math.ceil(samples / found.global_) * found.epochs >= ENOUGH
    make_spec(
        workers=workers,
        training={"batch": {"perDevice": found.per_device, "global": found.global_}, "epochs": found.epochs},
    )
