"""One sentence that says what evaluation found. Pure."""

from llava_api.constants import GateOutcome
from llava_trainer.evaluation.scores import Metrics, SplitScore
from llava_trainer.pages.rendering import count, percent, points

METRIC_TITLES = {
    "exact_match": "exact match", "vqa_accuracy": "VQA accuracy", "anls": "ANLS", "token_f1": "token F1",
    "rouge_l": "ROUGE-L", "yes_no": "yes/no accuracy", "yes_no_precision": "precision of yes",
    "yes_no_recall": "recall of yes", "yes_no_f1": "F1 of yes", "number": "numbers",
}  # fmt: skip
_VERDICTS = {GateOutcome.PASSED: "passed", GateOutcome.FAILED: "failed", GateOutcome.UNDECIDED: "undecided"}
_OFTEN = 0.05
"""Share of answers that are cut off from which on it belongs into the sentence."""


def summarise(metrics: Metrics) -> str:
    """The sentence."""
    first = next((score for score in metrics.scores if score.split == "validation"), None)
    told = (
        [_tell_score(first)] if first else ["No held-out question was scored, so nothing is known of what was gained"]
    )
    if metrics.gate is not None:
        told.append(f"the gate (limit {points(metrics.gate.limit)}) is {_VERDICTS[metrics.gate.outcome]}")
    if metrics.retention is not None:
        told.append(
            f"retention (limit {points(metrics.retention.limit)}) is {_VERDICTS[metrics.retention.outcome]} with "
            f"{points(metrics.retention.gain)}"
        )
    cut = share_cut(metrics)
    if cut >= _OFTEN:
        told.append(
            f"{percent(cut)} of the tuned model's answers were cut off at {metrics.generation.max_new_tokens:,} tokens"
        )
    return "; ".join(told) + "."


def share_cut(metrics: Metrics, model: str = "tuned") -> float:
    """Share of a model's answers, prompts apart, that were cut off instead of ended by it."""
    counts = [one for one in metrics.answers if one.model == model and one.set != "prompt"]
    answers = sum(one.answers for one in counts)
    return sum(one.cut for one in counts) / answers if answers else 0.0


def _tell_score(score: SplitScore) -> str:
    told = (
        f"On {count(score.samples, 'held-out question')} the tuned model scores {percent(score.tuned.value)} by "
        f"{METRIC_TITLES.get(score.metric, score.metric)}, the base {percent(score.base.value)}"
    )
    if score.base_variant == "instructed":
        told += " with LLaVA's instruction for short answers"
    told += f": {points(score.gain)} points"
    if score.gain_low is not None and score.gain_high is not None:
        told += f", 95\u202f% interval {points(score.gain_low)} to {points(score.gain_high)}"
    return told
