"""How many held-out groups a comparison takes, and what is said where there are fewer, or pictures are too large."""

import itertools

import pytest

from llava_api.judging import can_decide, describe_too_few_groups, least_groups, needed_groups
from llava_api.legibility import describe_small_pictures, describe_small_text, scale_of


@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.95, 0.975, 0.99, 0.999])
def test_the_sign_test_reaches_the_confidence_with_so_many_groups_and_with_one_less_it_cannot(confidence: float):
    def smallest_p(num_groups: int) -> float:
        """Two-sided p-value of the clearest result there is, counted over all outcomes of fair coins."""
        outcomes = list(itertools.product((-1, 1), repeat=num_groups))
        return sum(abs(sum(outcome)) == num_groups for outcome in outcomes) / len(outcomes)

    least = least_groups(confidence)
    assert smallest_p(least) <= 1 - confidence + 1e-12
    assert smallest_p(least - 1) > 1 - confidence


def test_six_groups_decide_and_five_do_not():
    assert needed_groups(is_gated=False) == least_groups() == 6
    assert (can_decide(5, is_gated=False), can_decide(6, is_gated=False)) == (False, True)


def test_a_gate_takes_eight():
    assert needed_groups(is_gated=True) == 8
    assert (can_decide(7, is_gated=True), can_decide(8, is_gated=True)) == (False, True)
    assert describe_too_few_groups(8, sufficient_fraction=None, is_gated=True) is None
    assert describe_too_few_groups(7, 7, sufficient_fraction=None, is_gated=True) == (
        "14 groups are held out and 7 of them select a step: of 7 spec.evaluation.gate decides nothing, which takes 8; "
        "hold out samples of 16 groups at least"
    )


def test_what_is_said_names_the_field_and_what_would_do():
    assert describe_too_few_groups(1, sufficient_fraction=None, is_gated=False) == (
        "1 group is held out: scores of 1 cannot tell the tuned model from its base with 95% confidence, however "
        "clear they are, which takes 6; hold out samples of 6 groups at least"
    )
    assert describe_too_few_groups(4, 5, sufficient_fraction=0.25, is_gated=False) == (
        "9 groups are held out and 5 of them select a step: scores of 4 cannot tell the tuned model from its base with "
        "95% confidence, however clear they are, which takes 6; set spec.dataset.validation.fraction to 0.25"
    )
    said = describe_too_few_groups(4, 4, sufficient_fraction=None, is_gated=False)
    assert said is not None
    assert said.endswith("samples of 12 groups at least")


@pytest.mark.parametrize("judging", [0, 6, 600])
def test_nothing_is_said_where_they_are_enough_or_were_not_counted(judging: int):
    assert describe_too_few_groups(judging, sufficient_fraction=None, is_gated=False) is None


def test_padding_fits_the_longer_side_and_cutting_the_shorter_one():
    assert scale_of(672, 336, 336, "pad") == 0.5
    assert scale_of(672, 336, 336, "square") == 1
    assert scale_of(100, 200, 336, "pad") == 1.68


def test_small_pictures_and_texts_are_told_with_what_can_be_read():
    assert describe_small_pictures(0.25, 336) is None
    assert describe_small_pictures(None, 336) is None
    assert "scaled to 10% of its size for the vision tower, which sees 336 px: what is less than about 80 px" in (
        describe_small_pictures(0.1, 336) or ""
    )
    assert describe_small_text(8.0, 336) is None
    assert describe_small_text(None, 336) is None
    assert "the median word is 4.2 px high" in (describe_small_text(4.25, 336) or "")
