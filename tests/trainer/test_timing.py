"""How quick training is, and when it will end: by hand."""

import pytest

from llava_trainer.training.timing import WINDOW_S, StepTime, Timing, count_validations, is_validation_due


def taken(seconds: float, waited_s: float = 0.0) -> StepTime:
    return StepTime(seconds=seconds, data_wait_s=waited_s)


def test_the_time_that_is_left_has_the_validations_that_are_left() -> None:
    timing = Timing(10, 100, validate_every=20)
    assert timing.seconds_to_end(10) is None
    for step in range(11, 41):
        timing.note_step(step, taken(2.0))
        if step % 20 == 0:
            timing.note_validation(30.0)
    # After step 40: 60 steps, and the validations after 60, 80 and 100.
    assert timing.seconds_to_end(40) == pytest.approx(60 * 2.0 + 3 * 30.0)
    assert timing.seconds_to_end(40, validations_more=0.5) == pytest.approx(60 * 2.0 + 3.5 * 30.0)


def test_a_validation_does_not_make_steps_look_slow() -> None:
    timing = Timing(0, 1000, validate_every=5)
    for step in range(1, 11):
        timing.note_step(step, taken(1.0))
        if step % 5 == 0:
            timing.note_validation(600.0)
    assert timing.seconds_to_end(10) == pytest.approx(990 + 198 * 600.0)


def test_before_the_first_validation_steps_alone_count() -> None:
    timing = Timing(0, 100, validate_every=50)
    timing.note_step(1, taken(3.0))
    assert timing.seconds_to_end(1) == pytest.approx(297.0)


def test_an_estimate_is_bounded() -> None:
    timing = Timing(0, 2**40, validate_every=1)
    timing.note_step(1, taken(1e6))
    assert timing.seconds_to_end(1) == 1e9


@pytest.mark.parametrize("total", [1, 7, 20, 21])
@pytest.mark.parametrize("every", [1, 3, 20, 50])
def test_validations_are_counted_as_they_are_due(total: int, every: int) -> None:
    for step in range(total + 1):
        due = [later for later in range(step + 1, total + 1) if is_validation_due(later, total, every)]
        assert count_validations(step, total, every) == len(due)
    assert count_validations(0, total, None) == 0


def test_waiting_for_data_is_told_of_the_newest_steps() -> None:
    timing = Timing(0, 100)
    assert timing.data_wait_ratio is None
    timing.note_step(1, taken(10.0, 10.0))
    assert timing.data_wait_ratio == 1.0
    timing.note_step(2, taken(10.0, 0.0))
    assert timing.data_wait_ratio == pytest.approx(0.5)
    for step in range(3, 10):
        timing.note_step(step, taken(WINDOW_S / 4, WINDOW_S / 40))
    assert timing.data_wait_ratio == pytest.approx(0.1)
    # A clock read in another order than the step's: never more than all of it.
    assert taken(1.0, 1.5).data_wait_ratio == 1.0


def test_one_step_longer_than_the_window_is_told_alone() -> None:
    timing = Timing(0, 100)
    timing.note_step(1, taken(1.0, 1.0))
    timing.note_step(2, taken(2 * WINDOW_S, WINDOW_S))
    assert timing.data_wait_ratio == pytest.approx(0.5)


def test_utilisation_is_told_of_the_newest_steps() -> None:
    timing = Timing(0, 100)
    assert timing.mfu is None
    timing.note_step(1, taken(1.0))
    assert timing.mfu is None
    timing.note_step(2, StepTime(seconds=3.0, data_wait_s=0.0, mfu=0.4))
    timing.note_step(3, StepTime(seconds=1.0, data_wait_s=0.0, mfu=0.8))
    assert timing.mfu == pytest.approx(0.5)
