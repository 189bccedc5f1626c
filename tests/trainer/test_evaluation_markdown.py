"""report.md: the same in Markdown, in which nothing of the data's is markup."""

import re

from llava_api.constants import GateOutcome
from llava_api.report import Judgement
from llava_trainer.evaluation.page import build_evaluation_markdown
from llava_trainer.evaluation.summary import share_cut, summarise
from tests.trainer.report_pages import NASTY, make_answer, make_content, make_metrics

HOSTILE = f"{NASTY}\n# heading | cell\n[a](https://example.com) ![b](x) `c` <b> www.example.com @me"


def test_it_has_what_the_page_has() -> None:
    answers = [make_answer(str(n), type="colour", instructed="maybe", alone="yes") for n in range(9)]
    answers += [make_answer("1", set="prompt", expected=None, text="Who?"), make_answer("2", set="train")]
    gate = Judgement(
        outcome=GateOutcome.FAILED, metric="exact_match", gain=0.1, low=0.0, high=0.2, limit=0.3, samples=9, groups=9
    )
    metrics = make_metrics(answers, gate=gate, origins={"model": "hf://a/b@c0ffee"}, digests={"merged": "sha256:ab"})
    text = build_evaluation_markdown(make_content(answers, metrics=metrics))
    assert text.startswith("# invoices: base against tuned\n\nOn 9 held-out questions")
    for part in (
        "| gate | Failed | exact match | +10.0 | +0.0 to +20.0 | +30.0 | 9 | 9 |",
        "| validation | exact match | 9 | 0.0 % (",
        "### validation by type", "| colour | 9 |", "### validation: format against content", "without earlier turns",
        "## Prompts", "- **Who?** (training has seen this picture)", "## Held-out questions", "### Best gains",
        "## How answers ended", "| Epochs | 1 |", "| Model | hf\\://a/b\\@c0ffee |", "| merged | sha256:ab |",
    ):  # fmt: skip
        assert part in text, part
    assert "\n\n\n" not in text
    empty = build_evaluation_markdown(make_content([]))
    assert "No question was scored" in empty


def test_nothing_of_the_data_s_is_markup() -> None:
    answers = [
        make_answer(HOSTILE, text=HOSTILE, expected=HOSTILE, base=HOSTILE, tuned="x", type=HOSTILE, image=HOSTILE),
        make_answer("1", set="prompt", expected=None, text=HOSTILE, base=HOSTILE, tuned=HOSTILE),
    ]
    plain = [
        make_answer("n", text="t", expected="e", base="e", tuned="x", type="y", image="z"),
        make_answer("1", set="prompt", expected=None, text="t"),
    ]
    text = build_evaluation_markdown(make_content(answers, name=HOSTILE))
    clean = build_evaluation_markdown(make_content(plain))
    assert len(text.splitlines()) == len(clean.splitlines())
    # Every mark of the data's has a backslash before it.
    bare = re.sub(r"\\.", "", text)
    for mark in ("<", "&", "`", "@", "](x", "](http", "https://", "www."):
        assert mark not in bare
    assert bare.count("|") == re.sub(r"\\.", "", clean).count("|")


def test_the_sentence_says_what_counts_most() -> None:
    answers = [make_answer(str(n), base="yes" if n < 2 else "no", is_cut=n == 0) for n in range(10)]
    metrics = make_metrics(answers)
    (score,) = metrics.scores
    assert score.gain_low is not None
    assert score.gain_high is not None
    assert summarise(metrics).replace("\u202f", " ") == (
        "On 10 held-out questions the tuned model scores 100.0 % by exact match, the base 20.0 %: +80.0 points, 95 % "
        f"interval {score.gain_low * 100:+.1f} to {score.gain_high * 100:+.1f}; 10.0 % of the tuned model's answers "
        "were cut off at 512 tokens."
    )
    assert share_cut(metrics) == 0.1
    assert summarise(make_metrics([])) == ("No held-out question was scored, so nothing is known of what was gained.")
    instructed = [make_answer(str(n), base="It is no", tuned="no", expected="no", instructed="no") for n in range(9)]
    assert "the base 100.0 % with LLaVA's instruction" in summarise(make_metrics(instructed)).replace("\u202f", " ")
