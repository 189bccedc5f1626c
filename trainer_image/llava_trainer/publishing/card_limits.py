"""What a model card has to admit: what was not measured, and what flatters. Pure."""

from collections.abc import Iterator

from llava_api.constants import GateOutcome
from llava_api.judging import needed_groups
from llava_api.report import Judgement
from llava_api.run_config import RunConfig
from llava_trainer.data.dataset_report import DatasetReport
from llava_trainer.evaluation.scores import Metrics
from llava_trainer.evaluation.summary import METRIC_TITLES, share_cut
from llava_trainer.pages.rendering import count, percent, points


def list_limits(dataset: DatasetReport, metrics: Metrics, config: RunConfig) -> list[str]:
    """Sentences, those that weigh most first; never empty."""
    return [
        *_limits_of_judging(dataset, metrics, config),
        *_limits_of_forgetting(dataset, metrics),
        *_limits_of_answers(metrics, config),
        *_limits_of_learning(dataset),
        "Nothing but what these questions ask was measured: not other languages or kinds of images, not safety, not "
        "bias. What the base gets wrong there, this model may get wrong as well.",
    ]


def _limits_of_judging(dataset: DatasetReport, metrics: Metrics, config: RunConfig) -> Iterator[str]:
    if not any(score.split == "validation" for score in metrics.scores):
        yield "No held-out question was scored, so nothing is known of what was gained."
    elif dataset.can_decide is False:
        least = needed_groups(is_gated=config.evaluation.gate is not None)
        yield (
            f"Scores are of {count(dataset.validation.groups, 'group')} and cannot tell the model from its base: that "
            f"takes {least}."
        )
    if metrics.gate is None:
        yield "No least gain was asked for (evaluation.gate): whether it is better than its base, the intervals tell."
    elif metrics.gate.outcome is not GateOutcome.PASSED:
        yield _tell_verdict("gate", metrics.gate)
    if dataset.shared.pairs:
        yield (
            f"{count(dataset.shared.pairs, 'held-out question')} of {count(dataset.shared.groups, 'group')} that "
            "training has samples of, too: their score flatters."
        )
    for metric in metrics.unscored:
        yield f"{METRIC_TITLES.get(metric, metric)} was asked for, and has no say about any held-out question."


def _limits_of_forgetting(dataset: DatasetReport, metrics: Metrics) -> Iterator[str]:
    if metrics.retention is None:
        yield "What it has forgotten of what its base could do was not measured (evaluation.retention)."
    elif metrics.retention.outcome is not GateOutcome.PASSED:
        yield _tell_verdict("retention", metrics.retention)
    if dataset.relearned:
        yield (
            f"{count(dataset.relearned, 'sample')} of the retention set show, ask or belong to what training learned "
            "from: they say nothing of what was forgotten."
        )


def _tell_verdict(name: str, judged: Judgement) -> str:
    if judged.outcome is GateOutcome.FAILED:
        return f"The {name} has failed: {points(judged.gain)} points, {points(judged.limit)} were asked for."
    return (
        f"The {name} is undecided: {count(judged.samples, 'question')} do not suffice for its limit of "
        f"{points(judged.limit)} points."
    )


def _limits_of_answers(metrics: Metrics, config: RunConfig) -> Iterator[str]:
    if share := share_cut(metrics):
        yield (
            f"{percent(share)} of its answers were cut off at {count(metrics.generation.max_new_tokens, 'token')}, and "
            "are rarely right by any metric."
        )
    for repeats in metrics.repeats:
        if repeats.changed and repeats.model == "tuned":
            yield (
                f"{repeats.changed:,} of {count(repeats.asked, 'answer')} came out otherwise when asked one by one: "
                "smaller differences mean nothing."
            )
    if metrics.generation.load != "none":
        yield (
            f"Its answers were scored with the language model in {metrics.generation.load}; the weights here are in "
            f"{config.merge.dtype}."
        )
    elif metrics.dtype != config.merge.dtype:
        yield f"Its answers were scored in {metrics.dtype}; the weights here are in {config.merge.dtype}."


def _limits_of_learning(dataset: DatasetReport) -> Iterator[str]:
    if dataset.lengths.overlong:
        yield (
            f"{count(dataset.lengths.overlong, 'sample')} longer than {count(dataset.lengths.max_length, 'token')} "
            "were learned from in part."
        )
    if dataset.left_out:
        yield f"{count(dataset.left_out, 'sample')} of the data could not be learned from."
    if side := dataset.pictures.side_px:
        yield f"It sees images at {side} x {side} pixels: what is too small to be read there, it cannot read."
