"""Scores: what counts as the same answer, and how far chance reaches."""

import pytest

from llava_trainer.evaluation.metrics import Proportion, is_exact_match, normalise_answer


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("KILO-5", "kilo-5"),
        ("  9.00\n", "9.00"),
        ("New   York", "new york"),
        ("Yes.", "yes"),
        ("Yes !?", "yes"),
        ("JOHOR BAHRU, JOHOR.", "Johor Bahru,\nJohor"),
        ("straße", "STRASSE"),
        ("ﬁne １２", "fine 12"),
        ("", "  "),
        ("?", "?"),
    ],
)
def test_same_answers(answer: str, expected: str) -> None:
    assert is_exact_match(answer, expected)
    assert is_exact_match(expected, answer)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("9.00", "900"),
        ("1,5", "15"),
        ("KILO 5", "KILO-5"),
        ("the cat", "cat"),
        ("KILO-5 KILO-5", "KILO-5"),
        ("", "KILO-5"),
        ("", "?"),
        ("?", "!"),
        ("-5", "5"),
        ("resume", "résumé"),
    ],
)
def test_different_answers(answer: str, expected: str) -> None:
    assert not is_exact_match(answer, expected)


def test_normalising_twice_changes_nothing() -> None:
    for text in ("A b. ", "?!", " x , ", "“Ja”.", "9.00 ."):
        assert normalise_answer(normalise_answer(text)) == normalise_answer(text)


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_wilsons(right: int, total: int, low: float, high: float) -> None:
    assert Proportion(right=right, total=total).interval() == pytest.approx((low, high), abs=5e-5)
    mirrored = Proportion(right=total - right, total=total).interval()
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_the_ends_are_exact_and_no_answers_say_nothing() -> None:
    assert Proportion(right=0, total=7).interval()[0] == 0.0
    assert Proportion(right=7, total=7).interval()[1] == 1.0
    nothing = Proportion(right=0, total=0)
    assert (nothing.value, nothing.interval()) == (0.0, (0.0, 1.0))
