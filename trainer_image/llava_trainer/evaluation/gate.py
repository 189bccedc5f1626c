"""Whether a tuned model is good enough to go on with: one judgement for what it gained and for what it forgot. Pure."""

from collections.abc import Iterable
from typing import Literal

from llava_api.constants import GateOutcome
from llava_api.judging import LEAST_GATE_GROUPS
from llava_api.report import Judgement
from llava_api.spec import Evaluation
from llava_trainer.evaluation.scores import SplitScore

Use = Literal["lowerBound", "pointValue"]


def judge_gate(scores: Iterable[SplitScore], evaluation: Evaluation) -> Judgement | None:
    """What ``evaluation.gate`` says of held-out questions; None where none is asked for."""
    gate = evaluation.gate
    if gate is None:
        return None
    metric = gate.metric or evaluation.metrics[0]
    return _judge(scores, "validation", metric, limit=gate.minimum_gain, use=gate.use)


def judge_retention(scores: Iterable[SplitScore], evaluation: Evaluation) -> Judgement | None:
    """Whether the tuned model has lost less than ``evaluation.retention`` allows; None where none is asked for.

    A loss is a gain below 0: passed where the gain's whole interval is above -``maximumLoss``.
    """
    retention = evaluation.retention
    if retention is None:
        return None
    metric = retention.metric or evaluation.metrics[0]
    return _judge(scores, "retention", metric, limit=0.0 - retention.maximum_loss, use="lowerBound")


def _judge(scores: Iterable[SplitScore], split: str, metric: str, *, limit: float, use: Use) -> Judgement:
    score = next((one for one in scores if (one.split, one.metric) == (split, metric)), None)
    if score is None or score.gain_low is None or score.gain_high is None:
        # Nothing was judged: any gain is possible.
        return Judgement(
            outcome=GateOutcome.UNDECIDED, metric=metric, gain=0.0, low=-1.0, high=1.0, limit=limit, samples=0, groups=0
        )
    is_enough = score.groups >= LEAST_GATE_GROUPS
    decided = _decide(score.gain, score.gain_low, score.gain_high, limit, use)
    return Judgement(
        outcome=decided if is_enough else GateOutcome.UNDECIDED,
        metric=metric,
        gain=_told(score.gain),
        low=_told(score.gain_low),
        high=_told(score.gain_high),
        limit=limit,
        samples=score.samples,
        groups=score.groups,
        smallest_difference=_told((score.gain_high - score.gain_low) / 2) if is_enough else None,
    )


def _decide(gain: float, low: float, high: float, limit: float, use: Use) -> GateOutcome:
    if use == "pointValue":
        return GateOutcome.PASSED if gain > limit else GateOutcome.FAILED
    if low > limit:
        return GateOutcome.PASSED
    return GateOutcome.FAILED if high < limit else GateOutcome.UNDECIDED


def _told(value: float) -> float:
    """Without digits that say nothing, since a termination message has little room."""
    return round(value, 6)
