"""From what a stage reports at its end to what the status says about it. Pure."""

from pathlib import Path

from pydantic import FiniteFloat, TypeAdapter

from llava_api.constants import StageName
from llava_api.memory import num_processes
from llava_api.optimizer_steps import choose_global_batch
from llava_api.report import Score, StageResult, TrainNumbers
from llava_api.spec import Spec
from llava_api.status import Artifacts, Data, EvaluationStatus, Metric, Status, Trainer
from llava_api.volume import RunVolume
from llava_operator.run import stage_of

_FINITE: TypeAdapter[float] = TypeAdapter(FiniteFloat)


def take_result(status: Status, result: StageResult) -> Status:
    """The status with everything that a stage has reported at its end.

    Raises:
        ValidationError: a number does not fit into the status (negative, not finite, too long).
    """
    update: dict[str, object] = {}
    if result.prepare is not None:
        trainer = status.trainer or Trainer()
        update["trainer"] = trainer.model_copy(update={"config_version": result.prepare.config_version})
        status = status.model_copy(update=update)
        update["data"] = Data.model_validate(result.prepare.model_dump())
        update["model"] = result.prepare.model
    if result.evaluate is not None:
        update["evaluation"] = EvaluationStatus(metrics=tuple(_metric(score) for score in result.evaluate.scores))
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


def _metric(score: Score) -> Metric:
    # JSON has no NaN: the API server would get null and refuse the whole status.
    base, tuned = (_FINITE.validate_python(value) for value in (score.base, score.tuned))
    return Metric(
        name=score.metric, split=score.split, base=base, tuned=tuned, gain=tuned - base, samples=score.samples,
        samples_shared=score.samples_shared,
    )  # fmt: skip


def _take_artifacts(status: Status, result: StageResult) -> Artifacts:
    known = status.artifacts or Artifacts()
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
    update = {field: str(path), "digests": {**known.digests, **result.digests}}
    return Artifacts.model_validate({**known.model_dump(by_alias=False), **update})


def describe_result(result: StageResult) -> str:
    """What a stage found or made, in one line for a person."""
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
        return ", ".join(_describe_score(score) for score in judged.scores) or "no scores"
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
    shared = f", {score.samples_shared} of groups that training has, too" if score.samples_shared else ""
    return f"{score.metric} {score.base:.2f}→{score.tuned:.2f} ({score.split}, {score.samples}{shared})"
