"""Every metric by hand-computed cases: what counts as which answer, and what an answer adds to a score."""

import pytest

from llava_trainer.evaluation.metrics import Metric, select_metrics
from llava_trainer.evaluation.numbers import find_number, is_number, matches_number
from llava_trainer.evaluation.overlap import anls, rouge_l, split_words, token_f1
from llava_trainer.evaluation.vqa import normalise_vqa, vqa_accuracy
from llava_trainer.evaluation.yes_no import is_yes, truth_of

ALL = ("exact_match", "vqa_accuracy", "anls", "token_f1", "rouge_l", "yes_no", "number")


def metric(name: str, tolerance: float = 0.05) -> Metric:
    [found] = [one for one in select_metrics(ALL, number_tolerance=tolerance) if one.name == name]
    return found


# --- VQA accuracy


@pytest.mark.parametrize(
    ("agreeing", "accuracy"),
    # Of ten annotators: each is left out in turn, and three of the other nine are enough.
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_vqa_accuracy_leaves_out_every_annotator(agreeing: int, accuracy: float) -> None:
    references = ["red"] * agreeing + ["blue"] * (10 - agreeing)
    assert vqa_accuracy("Red", references) == pytest.approx(accuracy)


def test_vqa_accuracy_refuses_questions_whose_right_answer_would_be_wrong() -> None:
    assert vqa_accuracy("red", ["red"] * 4) == 1.0
    assert vqa_accuracy("red", ["red"] * 3) == pytest.approx(2 / 3)
    assert vqa_accuracy("red", ["red"]) == 0.0
    judged = metric("vqa_accuracy")
    assert judged.judges(["red"] * 4)
    assert not judged.judges(["red"] * 3)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The Two dogs.", "2 dogs"),
        ("none", "0"),
        ("ten\n", "10"),
        ("1,000", "1000"),
        ("yes, it is", "yes it is"),
        ("8:30", "8:30"),
        ("T-Shirt", "t shirt"),
        ("stop - now!", "stop now"),
        ("{x}", "x"),
        ("A/C", "c"),
        ("it's", "it's"),
        ("girl's", "girl's"),
        ("Don't", "don't"),
        ("dont", "don't"),
        ("couldn'tve", "couldn't've"),
        ("o'clock", "o'clock"),
        ("10 oclock", "10 o'clock"),
        ("well", "well"),
        ("its", "its"),
        ("9.00", "9.00"),
        ("No. 5", "no 5"),
        ("red ; or [blue]", "red or blue"),
        ("a", ""),
    ],
)
def test_the_official_normalisation(text: str, plain: str) -> None:
    assert normalise_vqa(text) == plain


# --- letters, words, order


@pytest.mark.parametrize(
    ("answer", "reference", "similarity"),
    [
        ("Hello  World\n", "hello world", 1.0),
        ("kitten", "sitting", 1 - 3 / 7),
        ("abcx", "abcd", 0.75),
        ("abxy", "abcd", 0.0),
        ("", "abcd", 0.0),
        ("", "", 1.0),
        ("Straße", "Strasse", 1 - 2 / 7),
    ],
)
def test_anls_is_nothing_from_half_on(answer: str, reference: str, similarity: float) -> None:
    assert anls(answer, reference) == pytest.approx(similarity)
    assert anls(reference, answer) == pytest.approx(similarity)


@pytest.mark.parametrize(
    ("answer", "reference", "f1"),
    [
        ("The cat sat on the mat.", "a cat sat", 2 * 2 / (4 + 2)),
        ("red red", "red", 2 * 1 / 3),
        ("dog", "cat", 0.0),
        ("$5", "5", 1.0),
        ("¿Qué hora es?", "qué hora es", 1.0),
        ("«Ja»", "ja", 1.0),
        ("the", "", 1.0),
        ("the", "cat", 0.0),
    ],
)
def test_token_f1_is_squads(answer: str, reference: str, f1: float) -> None:
    assert token_f1(answer, reference) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("answer", "reference", "f1"),
    [
        # Lin, 2004, section 3.
        ("police kill the gunman", "police killed the gunman", 0.75),
        ("the gunman kill police", "police killed the gunman", 0.5),
        ("Красная МАШИНА", "красная машина едет", 2 * 2 / 5),
        ("北京大学", "北京", 2 * 2 / 6),
        ("東京 タワー", "東京タワー", 1.0),
        ("", "", 1.0),
        ("?!", "yes", 0.0),
    ],
)
def test_rouge_l_goes_by_words_of_any_script(answer: str, reference: str, f1: float) -> None:
    assert rouge_l(answer, reference) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't panic, re-do it!", ["don", "t", "panic", "re", "do", "it"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("สวัสดี", ["ส", "วั", "ส", "ดี"]),
        ("ＡＢ１２", ["ab12"]),
        ("e\N{COMBINING ACUTE ACCENT}t", ["ét"]),
        ("한국어 단어", ["한국어", "단어"]),
        ("iPhone15を買う", ["iphone15", "を", "買", "う"]),
    ],
)
def test_words_of_any_script(text: str, words: list[str]) -> None:
    assert split_words(text) == words


# --- yes and no


@pytest.mark.parametrize(
    ("answer", "is_a_yes"),
    [
        ("Yes, there is a dog in the image.", True),
        ("No", False),
        ("NO!", False),
        ("There is no dog.", False),
        ("There is not a dog", False),
        ("Yes. It is not a cat.", True),
        ("Nothing", True),
        ("I know", True),
        ("", True),
    ],
)
def test_what_says_neither_no_nor_not_in_its_first_sentence_is_a_yes(answer: str, is_a_yes: bool) -> None:
    assert is_yes(answer) is is_a_yes


def test_questions_of_yes_or_no_are_told_by_the_datasets_own_answer() -> None:
    assert [truth_of([text]) for text in ("Yes.", " no ", "NO!", "yes it is", "")] == [True, False, False, None, None]
    assert truth_of(()) is None
    assert truth_of(["red", "yes"]) is None


def test_precision_recall_and_f1_come_with_yes_no() -> None:
    metrics = select_metrics(("anls", "yes_no"), number_tolerance=0.0)
    assert [one.name for one in metrics] == ["anls", "yes_no", "yes_no_precision", "yes_no_recall", "yes_no_f1"]
    # Two yes found, one missed; two no taken for a yes, one found.
    asked = [("yes", "yes"), ("yes", "yes"), ("no", "yes"), ("yes", "no"), ("yes", "no"), ("no", "no")]
    scores = {}
    for one in metrics[1:]:
        tallies = [one.tally(answer, [truth]) for answer, truth in asked]
        scores[one.name] = sum(found for found, _ in tallies) / sum(most for _, most in tallies)
    assert scores == pytest.approx(
        {"yes_no": 3 / 6, "yes_no_precision": 2 / 4, "yes_no_recall": 2 / 3, "yes_no_f1": 4 / 7}
    )


def test_the_best_and_the_worst_answers_score_1_and_0() -> None:
    for one in select_metrics(ALL, number_tolerance=0.0):
        references = [("yes",), ("no",), ("yes",)] if "yes" in one.name else [("5",) * 4]
        best = [one.best(held) for held in references]
        worst = [one.worst(held) for held in references]
        assert sum(found for found, _ in best) / sum(most for _, most in best) == 1.0, one.name
        assert sum(found for found, _ in worst) == 0.0, one.name
        for held in references:
            assert one.tally(held[0], held) == one.best(held), one.name
            assert one.tally({"yes": "no", "no": "yes", "5": "blue"}[held[0]], held) == one.worst(held), one.name


# --- numbers


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("9.00", 9.0),
        ("The total is $1,234.50.", 1234.5),
        ("1.234,50 €", 1234.5),
        ("1 234,5", 1234.5),
        ("1'234'567", 1_234_567.0),
        ("1.234.567", 1_234_567.0),
        ("1,234", 1234.0),
        ("1.234", 1.234),
        ("12,5", 12.5),
        ("RM9.00", 9.0),
        ("Rs.500", 500.0),
        ("−5 °C", -5.0),
        ("-$5", -5.0),
        (".5", 0.5),
        ("１２ %", 12.0),
        ("2e3", 2000.0),
        ("KILO-5", 5.0),
        ("the 5th", 5.0),
        ("5-7", None),
        ("12/05/2020", None),
        ("10:30", None),
        ("3 of 4", None),
        ("five", None),
        ("", None),
        ("1,234,5", None),
        ("1e999", None),
        ("9" * 40, None),
    ],
)
def test_the_only_number_of_a_text(text: str, number: float | None) -> None:
    assert find_number(text) == number


def test_a_question_asks_for_a_number_where_its_own_answer_is_one() -> None:
    assert [is_number(text) for text in ("9.00", "$ 5", "USD 5", "RM9.00", "5 kg", "12 %", "5.")] == [True] * 7
    assert [is_number(text) for text in ("Route 66", "5 red cars", "KILO-5", "two", "", "3 of 4")] == [False] * 6
    assert metric("number").judges(["5", "five"])
    assert not metric("number").judges(["five", "5"])
    assert not metric("number").judges([])


def test_numbers_are_compared_within_a_part_of_the_right_one() -> None:
    assert matches_number("105", "100", tolerance=0.05) == 1.0
    assert matches_number("95", "100", tolerance=0.05) == 1.0
    assert matches_number("105.1", "100", tolerance=0.05) == 0.0
    assert matches_number("-100", "100", tolerance=0.05) == 0.0
    assert matches_number("0", "0.00", tolerance=0.05) == 1.0
    assert matches_number("0.01", "0", tolerance=1.0) == 0.0
    assert matches_number("100 or 200", "100", tolerance=0.05) == 0.0
    assert matches_number("1,234.50", "1.234,50", tolerance=0.0) == 1.0
    assert metric("number", tolerance=0.1).tally("109", ["100"]) == (1.0, 1.0)
    assert metric("number", tolerance=0.0).tally("109", ["100"]) == (0.0, 1.0)


# --- all of them


@pytest.mark.parametrize(
    ("name", "answer", "references"),
    [
        ("exact_match", "KILO-5.", ["kilo 5", "kilo-5"]),
        ("anls", "kilo", ["metre", "kilo"]),
        ("token_f1", "the cat", ["dog", "cat"]),
        ("rouge_l", "a cat", ["a dog", "a cat"]),
        ("number", "7", ["5", "7"]),
    ],
)
def test_the_best_of_several_references_counts(name: str, answer: str, references: list[str]) -> None:
    assert metric(name).tally(answer, references) == (1.0, 1.0)
    assert metric(name).tally(answer, references[:1]) != (1.0, 1.0)


def test_questions_without_references_are_judged_by_none() -> None:
    assert not [one.name for one in select_metrics(ALL, number_tolerance=0.0) if one.judges([])]


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(ValueError, match=r"evaluation.metrics has 'bleu' but must be of exact_match, .*number"):
        select_metrics(["bleu"], number_tolerance=0.0)


def test_answers_as_long_as_they_may_be_are_scored_at_once() -> None:
    long = "1,2.3 ä北 not " * 3000
    for one in select_metrics(ALL, number_tolerance=0.05):
        references = ["yes"] if "yes" in one.name else ["1"] if one.name == "number" else [long] * 4
        assert one.tally(long, references)
