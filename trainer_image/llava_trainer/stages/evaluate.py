"""The evaluate stage: base and tuned answer the same questions; scores and a report are left on the volume.

Its pods share the questions and wait for none of each other: the last one to have answered joins what all have left,
and tells what came out.
"""

import logging
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version

import torch

from llava_api.failures import Reason
from llava_api.report import EvaluateNumbers
from llava_api.run_config import RunConfig
from llava_trainer.attempts.pod import pod_index
from llava_trainer.attempts.shards import own_shard_dir
from llava_trainer.data.dataset_report import DatasetReport, summarise
from llava_trainer.data.image_folder import retention_images, training_images
from llava_trainer.data.images import open_image
from llava_trainer.errors import StageError
from llava_trainer.evaluation.course import find_asked, find_hardest
from llava_trainer.evaluation.dealing import deal, list_questions
from llava_trainer.evaluation.gate import judge_gate, judge_retention
from llava_trainer.evaluation.joining import Joined, count_answers, join_shards
from llava_trainer.evaluation.manifest import read_manifest
from llava_trainer.evaluation.metrics import Metric, select_metrics
from llava_trainer.evaluation.page import (
    AskedPrompt,
    PageContent,
    build_evaluation_markdown,
    build_evaluation_page,
    find_primary,
)
from llava_trainer.evaluation.pairs import pair_rows
from llava_trainer.evaluation.prompts import PictureSides
from llava_trainer.evaluation.rows import Row
from llava_trainer.evaluation.scores import Metrics
from llava_trainer.evaluation.scoring import judge_row, score_rows
from llava_trainer.evaluation.serving import list_served
from llava_trainer.evaluation.settings import list_settings
from llava_trainer.evaluation.shards import Device, list_models, list_shard_files, make_whole, take_join
from llava_trainer.evaluation.summary import summarise as summarise_metrics
from llava_trainer.files import begin_folder, publish_folder, sha256_file, sync, write_whole
from llava_trainer.outcome import StageOutput
from llava_trainer.reporting import Reporter
from llava_trainer.training.curve import find_curve

_SPOKEN = {"bare": "bare_base", "base": "base", "tuned": "tuned"}
_LIBRARIES = ("torch", "transformers", "peft", "deepspeed")

logger = logging.getLogger(__name__)


def run(config: RunConfig, reporter: Reporter) -> StageOutput:
    """Compare the run's merged model with what it began with: the base, or the base with the adapter that was given.

    Beside the latter the bare base is asked as well. Progress counts every answer of each model in this pod.

    Raises:
        StageError: a prompt's image cannot be opened, the GPU's memory does not suffice, or a shard is damaged.
    """
    questions = list_questions(config)
    shard = deal(questions, config.evaluation.workers.replicas)[pod_index()]
    try:
        make_whole(config, shard, reporter)
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(config, error) from error
    if not take_join(config):
        return StageOutput(numbers=None)
    joined = join_shards(config.volume_root, list_shard_files(config), questions, list_models(config))
    dataset = DatasetReport.model_validate_json(config.volume.dataset_report_json.read_bytes())
    metrics = _measure(config, dataset, joined)
    content = _gather(config, dataset, joined.rows, metrics)
    _publish(config, reporter, {
        config.volume.answers_file.name: "".join(f"{row.model_dump_json()}\n" for row in joined.rows),
        config.volume.metrics_file.name: metrics.model_dump_json(indent=2) + "\n",
        config.volume.report_file.name: build_evaluation_page(content),
        config.volume.report_file.with_suffix(".md").name: build_evaluation_markdown(content),
    })  # fmt: skip
    for score in metrics.scores:
        logger.info(
            "%s on %s: base %.3f, tuned %.3f (%d questions, %d of groups that training has, too)",
            score.metric, score.split, score.base.value, score.tuned.value, score.samples, score.samples_shared,
        )  # fmt: skip
    return StageOutput(
        numbers=EvaluateNumbers(
            scores=tuple(score.to_score() for score in metrics.scores),
            prompts=len(config.evaluation.prompts),
            gate=metrics.gate,
            retention=metrics.retention,
        ),
        digests={
            "report": sha256_file(config.volume.report_file),
            "metrics": sha256_file(config.volume.metrics_file),
        },
    )


def _out_of_memory(config: RunConfig, error: torch.OutOfMemoryError) -> StageError:
    generation = config.evaluation.generation
    smaller = (
        "" if generation.load == "4bit" else f", set spec.evaluation.generation.load (is {generation.load}) to 4bit"
    )
    return StageError(
        Reason.OUT_OF_DEVICE_MEMORY,
        "answering needs more memory than the GPU has: lower spec.evaluation.generation.maxNewTokens (is "
        f"{generation.max_new_tokens}){smaller} or schedule evaluation on a larger GPU ({error})",
    )


def _publish(config: RunConfig, reporter: Reporter, files: dict[str, str]) -> None:
    """Leave the stage's files: made whole in this pod's own folder, so that one whose place was taken leaves none."""
    folder, place = own_shard_dir(config) / config.volume.evaluation_dir.name, config.volume.evaluation_dir
    aside = begin_folder(folder)
    for name, text in files.items():
        write_whole(aside / name, text)
    publish_folder(folder)
    reporter.fence.check()
    if place.exists():
        # An earlier pod of this index has ended before it could say so.
        place.rename(own_shard_dir(config) / f"{place.name}-before")
    folder.rename(place)
    sync(place.parent)


def _measure(config: RunConfig, dataset: DatasetReport, joined: Joined) -> Metrics:
    device, evaluation = Device.of(config), config.evaluation
    scores = score_rows(joined.rows, _metrics_of(config), num_shared=dataset.shared.pairs)
    held_out = {score.metric for score in scores if score.split == "validation"}
    manifest = read_manifest(config)
    metrics = Metrics(
        run=config.run,
        finished_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        device=torch.cuda.get_device_name() if device.name == "cuda" else f"CPU ({platform.machine()})",
        dtype=str(device.dtype).removeprefix("torch."),
        workers=config.evaluation.workers.replicas,
        scores=scores,
        unscored=tuple(metric for metric in evaluation.metrics if metric not in held_out),
        gate=judge_gate(scores, evaluation),
        retention=judge_retention(scores, evaluation),
        answers=count_answers(joined.rows),
        repeats=joined.repeats,
        prompts=len(config.evaluation.prompts),
        generation=config.evaluation.generation,
        dataset=summarise(dataset),
        seconds={f"answers_of_{_SPOKEN[model]}": taken for model, taken in joined.seconds.items()},
        versions={name: version(name) for name in _LIBRARIES},
        origins=manifest.origins,
        digests=manifest.digests,
    )
    return metrics.model_copy(update={"summary": summarise_metrics(metrics)})


def _metrics_of(config: RunConfig) -> tuple[Metric, ...]:
    evaluation = config.evaluation
    return select_metrics(evaluation.metrics, number_tolerance=evaluation.number_tolerance)


def _gather(config: RunConfig, dataset: DatasetReport, rows: Sequence[Row], metrics: Metrics) -> PageContent:
    folder, second = training_images(config), retention_images(config)
    paired = pair_rows(rows)
    by_name = {metric.name: metric for metric in _metrics_of(config)}
    sides = PictureSides.of_run(config)
    return PageContent(
        metrics=metrics,
        dataset=dataset,
        questions=[question for question in paired if question.set != "prompt"],
        prompts=[
            AskedPrompt(answers=question, picture_side=None if sides is None else sides.tell(question.images))
            for question in paired
            if question.set == "prompt"
        ],
        curve=find_curve(config.volume),
        asked=find_asked(config),
        hardest=find_hardest(config),
        settings=list_settings(config),
        served=list_served(config),
        load_image=lambda path: open_image(folder.find(path)),
        load_retention_image=None if second is None else lambda path: open_image(second.find(path)),
        judges={score.split: partial(judge_row, by_name[score.metric]) for score in find_primary(metrics)},
    )
