"""What counts as the same answer."""

import pytest

from llava_trainer.evaluation.metrics import is_exact_match, normalise_answer


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
