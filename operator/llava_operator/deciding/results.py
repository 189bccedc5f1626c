"""From what a stage reports at its end to what the status says about it. Pure."""

from pathlib import Path

from pydantic import BaseModel, FiniteFloat, TypeAdapter

from llava_api.constants import StageName
from llava_api.memory import num_processes
from llava_api.optimizer_steps import choose_global_batch
from llava_api.report import EvaluateNumbers, Judgement, PublishNumbers, Score, StageResult, TrainNumbers
from llava_api.spec import Publish, Spec
from llava_api.status import (
    MAX_SCORES,
    Artifacts,
    Data,
    EvaluationStatus,
    GateStatus,
    Metric,
    PublishedStatus,
    Status,
    Trainer,
)
from llava_api.volume import RunVolume
from llava_operator.deciding.gates import describe_gate
from llava_operator.deciding.publication import check_published, describe_published
from llava_operator.run import stage_of

_FINITE: TypeAdapter[float] = TypeAdapter(FiniteFloat)
_SCORES_TOLD = 6
"""Scores in the line for a person; the status has them all."""


def take_result(status: Status, result: StageResult) -> Status:
    """The status with everything that a stage has reported at its end.

    Raises:
        ValidationError: a number does not fit into the status (negative, not finite, too long).
        UnusableResultError: what was published is not what was to be.
    """
    update: dict[str, object] = {}
    if result.prepare is not None:
        trainer = status.trainer or Trainer()
        update["trainer"] = trainer.model_copy(update={"config_version": result.prepare.config_version})
        status = status.model_copy(update=update)
        update["data"] = Data.model_validate(result.prepare.model_dump())
        update["model"] = result.prepare.model
    if result.evaluate is not None:
        update["evaluation"] = _take_evaluation(result.evaluate)
    update["artifacts"] = _take_artifacts(status, result)
    return status.model_copy(update=update)


def settle_data(data: Data, spec: Spec) -> Data:
    """What prepare found, with a global batch where ``training.batch.global`` is auto, and nowhere else."""
    training = spec.training
    if training.batch.global_ != "auto" or training.method == "none":
        return data.model_copy(update={"global_batch": None})
    chosen = data.global_batch or choose_global_batch(
        training, processes=num_processes(spec), samples=data.samples_epoch
    )
    return data.model_copy(update={"global_batch": chosen})


def _take_evaluation(numbers: EvaluateNumbers) -> EvaluationStatus:
    return EvaluationStatus(
        metrics=tuple(_metric(score) for score in numbers.scores[:MAX_SCORES]),
        gate=numbers.gate and _judged(numbers.gate),
        retention=numbers.retention and _judged(numbers.retention),
    )


def _metric(score: Score) -> Metric:
    _check_finite(score)
    fields = score.model_dump(by_alias=False, exclude={"metric"})
    return Metric(name=score.metric, gain=score.tuned - score.base, **fields)


def _judged(judgement: Judgement) -> GateStatus:
    _check_finite(judgement)
    return GateStatus(**judgement.model_dump(by_alias=False))


def _check_finite(numbers: BaseModel) -> None:
    # JSON has no NaN: the API server would get null and refuse the whole status.
    for value in numbers.model_dump().values():
        if isinstance(value, float):
            _FINITE.validate_python(value)


def _take_artifacts(status: Status, result: StageResult) -> Artifacts:
    known = status.artifacts or Artifacts()
    digests = {**known.digests, **result.digests}
    if result.stage is StageName.PUBLISH:
        numbers, publish = check_published(result.publish, _publish_of(status))
        return _change_artifacts(known, published=_take_published(numbers, publish), digests=digests)
    # They are named by their path on the claim; an older image's results lie in the run's folder itself.
    is_first_version = status.trainer is None or status.trainer.config_version == 1
    attempts = dict.fromkeys(StageName, stage_of(status, result.stage).attempt)
    volume = RunVolume(root=Path(known.volume_folder or ""), results=None if is_first_version else attempts)
    trained = ("adapter", volume.adapter_dir)
    if "weights" in result.digests:
        # With method full there is no adapter.
        trained = ("weights", volume.weights_dir)
    field, path = {
        StageName.PREPARE: ("dataset_report", volume.dataset_report_html),
        StageName.ALIGN: ("projector", volume.projector_dir),
        StageName.TRAIN: trained,
        StageName.MERGE: ("merged", volume.merged_dir),
        StageName.EVALUATE: ("report", volume.report_file),
    }[result.stage]
    return _change_artifacts(known, **{field: str(path)}, digests=digests)


def _change_artifacts(known: Artifacts, **update: object) -> Artifacts:
    """Checked, since an image has said it: the API server would refuse the whole status."""
    return Artifacts.model_validate({**known.model_dump(by_alias=False), **update})


def _publish_of(status: Status) -> Publish | None:
    """What the newest attempt to publish was made with, whatever has become of the spec."""
    newest = stage_of(status, StageName.PUBLISH).newest
    return newest.settings.publish if newest else None


def _take_published(numbers: PublishNumbers, publish: Publish) -> tuple[PublishedStatus, ...]:
    return tuple(
        PublishedStatus(
            address=publish.destinations[one.destination].address,
            **one.model_dump(by_alias=False, exclude={"destination", "sent_bytes"}),
        )
        for one in numbers.published
    )


def describe_result(result: StageResult, publish: Publish | None = None) -> str:
    """What a stage found or made, in one line for a person.

    Args:
        result: the stage's.
        publish: what it was to publish, where it is the one that publishes.

    Raises:
        UnusableResultError: what was published is not what was to be.
    """
    if result.stage is StageName.PUBLISH:
        return describe_published(*check_published(result.publish, publish))
    if (found := result.prepare) is not None:
        overlong = f", {found.overlong_samples} cut off at maxLength" if found.overlong_samples else ""
        shared = ""
        if found.groups_shared:
            shared = (
                f"; {found.groups_shared} of {found.groups_validation} held-out groups are in training, too, with "
                f"{found.pairs_shared} answers"
            )
        selecting = f", {found.samples_selection} more to select a step by" if found.samples_selection else ""
        aligned = f", {found.samples_alignment} to align on" if found.samples_alignment else ""
        mixed = f", {found.samples_mixture} more an epoch from the mixture" if found.samples_mixture else ""
        return (
            f"{found.samples_train} samples ({found.pairs_train} answers) to train on{mixed} and "
            f"{found.samples_validation} ({found.pairs_validation}) held out{selecting}, "
            f"{found.images} pictures{aligned}{overlong}{shared}"
        )
    if (trained := result.align or result.train) is not None:
        attention = f", attention {trained.attention}" if trained.attention else ""
        processes = f"{trained.world_size} processes"
        told = f"{trained.steps} steps over {processes}, final loss {trained.final_loss:.4g}"
        frozen = ", projector frozen" if trained.frozen_projector else ""
        tower = ", vision tower trained" if trained.learned_tower else ""
        return f"{told}{_describe_validation(trained)}{frozen}{tower}{attention}"
    if (merged := result.merge) is not None:
        return f"{merged.tensors_merged} tensors merged, logits differ by at most {merged.max_logit_difference:.2g}"
    if (judged := result.evaluate) is not None:
        scores = ", ".join(_describe_score(score) for score in judged.scores[:_SCORES_TOLD]) or "no scores"
        gates = {"gate": judged.gate, "retention": judged.retention}
        said = [f"{name} {one.outcome}: {describe_gate(_judged(one))}" for name, one in gates.items() if one]
        return "; ".join([scores, *said])
    return "succeeded"


def _describe_validation(trained: TrainNumbers) -> str:
    """What held-out samples have shown of the weights that were taken, and which those are."""
    told = ", stopped early" if trained.stopped_early else ""
    if trained.validation_loss is None:
        return told
    exact = "" if trained.validation_exact is None else f", {trained.validation_exact:.0%} of the answers exact"
    taken = "" if trained.best_step is None else f" of step {trained.best_step}, the best"
    return f"{told}, held-out loss {trained.validation_loss:.4g}{taken}{exact}"


def _describe_score(score: Score) -> str:
    bounds = ""
    if score.gain_low is not None and score.gain_high is not None:
        bounds = f", gain {score.gain_low:+.2f} to {score.gain_high:+.2f}"
    shared = f", {score.samples_shared} of groups that training has, too" if score.samples_shared else ""
    return f"{score.metric} {score.base:.2f}→{score.tuned:.2f} ({score.split}, {score.samples}{bounds}{shared})"
