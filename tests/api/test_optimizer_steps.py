"""The global batch that the data gives; too few optimiser steps: when that is said, whether what is proposed does."""

import math

import pytest

from llava_api.constants import StageName
from llava_api.memory import num_processes, num_steps
from llava_api.optimizer_steps import (
    ENOUGH,
    FEW,
    LLAVA_GLOBAL_BATCH,
    choose_global_batch,
    describe_choice,
    describe_few_steps,
    propose,
    settle_spec,
)
from llava_api.spec import Batch, Training
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


AUTO = {"batch": {"perDevice": 8, "global": "auto"}}


@pytest.mark.parametrize(
    ("samples", "epochs", "per_device", "processes", "chosen"),
    [
        (665_000, 1, 8, 8, 128),
        (12_800, 1, 8, 1, 128),
        (12_600, 1, 8, 1, 120),
        (1_000, 1, 8, 1, 8),
        # Nine would do, and 8 are a full micro-batch.
        (1_000, 1, 9, 1, 9),
        # Fewer than a full micro-batch for each process, and as many for each.
        (1_000, 1, 8, 4, 8),
        (600, 1, 8, 1, 6),
        (40, 1, 8, 1, 1),
        (40, 3, 8, 1, 1),
        (40, 10, 8, 1, 4),
        (40, 100, 8, 1, 40),
        (40, 100, 16, 1, 32),
        # Every process has a sample, though that makes fewer steps.
        (40, 1, 8, 16, 16),
        (1, 1, 8, 1, 1),
        (0, 1, 8, 1, 1),
        # Never more than LLaVA's own, though it leaves processes without a sample.
        (100_000, 1, 8, 200, 128),
        (100_000, 1, 8, 3, 120),
    ],
)
def test_auto_is_the_largest_even_batch_that_makes_enough_steps(
    samples: int, epochs: int, per_device: int, processes: int, chosen: int
) -> None:
    training = Training(batch=Batch(per_device=per_device, global_="auto"), epochs=epochs)
    assert choose_global_batch(training, processes=processes, samples=samples) == chosen


@pytest.mark.parametrize("samples", [*range(1, 260, 7), 4_999, 12_673, 1_000_000])
@pytest.mark.parametrize(
    "workers", [{"replicas": 1, "gpus": 1}, {"replicas": 2, "gpus": 8}, {"replicas": 3, "gpus": 0}]
)
@pytest.mark.parametrize("epochs", [1, 3, 99, 100, 500])
def test_what_is_chosen_is_dealt_evenly_in_full_micro_batches_and_a_larger_one_makes_too_few_steps(
    samples: int, workers: dict[str, int], epochs: int
) -> None:
    spec = make_spec(workers=workers, training={**AUTO, "epochs": epochs})
    processes = num_processes(spec)
    chosen = choose_global_batch(spec.training, processes=processes, samples=samples)
    settled = settle_spec(spec, chosen)
    unit = settled.training.batch.per_device * processes
    assert 1 <= chosen <= LLAVA_GLOBAL_BATCH
    assert chosen % unit == 0
    assert num_steps(settled, StageName.TRAIN, samples) >= ENOUGH or chosen == processes
    if chosen + unit <= LLAVA_GLOBAL_BATCH:
        # With every sample in one batch there are as many steps as epochs, whatever is added.
        assert math.ceil(samples / (chosen + unit)) * epochs < ENOUGH or chosen + unit > samples


def test_a_number_stays_and_auto_is_no_number_until_it_is_settled() -> None:
    spec = make_spec(training={"batch": {"perDevice": 1, "global": 2}})
    assert settle_spec(spec, 64) is spec
    auto = make_spec(training=AUTO)
    assert settle_spec(auto, None) is auto
    with pytest.raises(ValueError, match=r"batch\.global is auto, and nothing has been chosen"):
        _ = auto.training.batch.num_samples


@pytest.mark.parametrize(("max_steps", "chosen"), [(10, 128), (1_000, 128)])
def test_where_the_steps_are_given_a_smaller_batch_would_give_no_more_of_them(max_steps: int, chosen: int) -> None:
    training = Training(batch=Batch(per_device=8, global_="auto"), max_steps=max_steps)
    found = choose_global_batch(training, processes=1, samples=1_000)
    assert found == chosen
    told = describe_choice(found, training, samples=1_000)
    assert told.startswith(f"the {max_steps:,} optimiser steps of maxSteps go through 1,000 samples ")
    assert choose_global_batch(training, processes=1, samples=40) == 40


def test_steps_that_are_given_are_what_counts() -> None:
    few = make_spec(**ONE_GPU, training={"maxSteps": 20})
    assert (describe_few_steps(few, 100_000) or "").endswith(
        "for about 100 set, in spec.training, maxSteps to 100 (is 20)"
    )
    assert "takes 20 optimiser steps on 100000 samples" in (describe_few_steps(few, 100_000) or "")
    assert describe_few_steps(make_spec(**ONE_GPU, training={"maxSteps": FEW}), 1) is None


def test_the_choice_is_told_with_what_llavas_own_would_make() -> None:
    assert describe_choice(8, Training(), samples=1_000) == (
        "1,000 samples in 1 epoch make 125 optimiser steps with it (100 at least are wanted), and would make 8 with "
        "LLaVA's 128"
    )
    assert describe_choice(1, Training(epochs=2), samples=1) == (
        "1 sample in 2 epochs make 2 optimiser steps with it (of 100 wanted), and would make 2 with LLaVA's 128"
    )
    assert describe_choice(128, Training(), samples=12_800) == (
        "LLaVA's own: 12,800 samples in 1 epoch make 100 optimiser steps with it"
    )


def test_where_the_batch_was_chosen_only_more_epochs_are_proposed() -> None:
    spec = settle_spec(make_spec(**ONE_GPU, training=AUTO), 1)
    assert describe_few_steps(spec, 40, is_chosen=True) == (
        "training takes 40 optimiser steps on 40 samples, and with fewer than 50 most models answer as before: for "
        "about 100 set, in spec.training, epochs to 3 (is 1)"
    )
