"""A pod's way through its shard on the volume: going on from what was left, making it whole, and who joins them all."""

import errno
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from llava_api.constants import StageName
from llava_api.run_config import RunConfig
from llava_trainer.attempts.finished import read_digests
from llava_trainer.attempts.pod import pod_index
from llava_trainer.attempts.shards import list_left_files, own_shard_dir, publish_shard, whole_shard_dir
from llava_trainer.data.image_folder import retention_images, training_images
from llava_trainer.data.processor import Processor, load_processor
from llava_trainer.data.questions import Question
from llava_trainer.evaluation.answering_shard import Progress, Prompt, ShardPlan, answer_shard
from llava_trainer.evaluation.asking import Key, key_of, list_askings
from llava_trainer.evaluation.inputs_digest import digest_inputs, identify
from llava_trainer.evaluation.models import load_answerer
from llava_trainer.evaluation.rows import Model, Row
from llava_trainer.evaluation.shard_file import ROWS_FILE, ShardWriter, read_left_rows
from llava_trainer.files import make_folder, sync
from llava_trainer.model.answering import Answerer, KeptPixels, encode_question
from llava_trainer.reporting import Reporter

_JOIN = "join"
_WHOLE = "whole"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where models answer, and in which number format."""

    name: str
    dtype: torch.dtype

    @classmethod
    def of(cls, config: RunConfig) -> "Device":
        """That of the run's evaluation."""
        if config.evaluation.num_gpus > 0:
            return cls(name="cuda", dtype=torch.bfloat16)
        return cls(name="cpu", dtype=torch.float32)


def list_models(config: RunConfig) -> tuple[Model, ...]:
    """The run's models, in the order in which they answer.

    Where training has gone on from an adapter that was given, that is what it is to be compared with; beside it the
    bare base is asked as well.
    """
    goes_on = config.model.adapter is not None and config.training.method != "none"
    return ("bare", "base", "tuned") if goes_on else ("base", "tuned")


def make_whole(config: RunConfig, questions: Sequence[Question], reporter: Reporter) -> None:
    """Answer this pod's questions, unless a pod of its index has; then its shard lies whole in its place.

    Raises:
        StageError: Superseded; a model that cannot be loaded.
        torch.OutOfMemoryError: the GPU's memory does not suffice.
        OSError: the volume cannot be written.
    """
    if _file_of(config, pod_index()).exists():
        logger.info("shard %d has been answered by an earlier pod", pod_index())
        return
    processor = load_processor(config.model_dir, config.dataset.image_aspect_ratio)
    plan = _plan(config, questions, processor)
    inputs = _digest(config, plan)
    left = _read_left(config, inputs, plan.num_answers)
    if left:
        logger.info("%d of %d answers are there from earlier pods", len(left), plan.num_answers)
    under_way, whole = own_shard_dir(config) / ROWS_FILE, own_shard_dir(config) / _WHOLE
    progress = Progress(tell=lambda done: reporter.update(done, plan.num_answers))
    with ShardWriter(under_way, inputs) as writer:
        answer_shard(plan, left, writer, partial(_open_model, config, processor), progress)
    make_folder(whole)
    under_way.rename(whole / ROWS_FILE)
    publish_shard(config, reporter.fence)


def take_join(config: RunConfig) -> bool:
    """Whether this pod is to join the shards: all are whole, and no pod of another index does it.

    A pod looks for the others' shards only when its own is in its place. So the last one sees all of them, also where
    a network file system remembers for a while what was not there.

    Raises:
        OSError: the volume cannot be written.
    """
    num_shards = config.evaluation.workers.replicas
    missing = [index for index in range(num_shards) if not _file_of(config, index).exists()]
    if missing:
        logger.info("%d of %d shards are not whole yet: another pod will join them", len(missing), num_shards)
        return False
    claim = config.volume.attempt_dir(config.run.stage, config.run.attempt) / _JOIN
    own = own_shard_dir(config) / _JOIN
    make_folder(own)
    (own / str(pod_index())).touch()
    sync(own)
    try:
        # With the name in it from the beginning: whoever dies here leaves no claim that is nobody's.
        own.rename(claim)
        sync(claim.parent)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    is_own = (claim / str(pod_index())).exists()
    if not is_own:
        logger.info("the shards are being joined by the pod of another index")
    return is_own


def list_shard_files(config: RunConfig) -> list[Path]:
    """Files of the shards, by index; whole where ``take_join`` has said so."""
    return [_file_of(config, index) for index in range(config.evaluation.workers.replicas)]


def _file_of(config: RunConfig, index: int) -> Path:
    return whole_shard_dir(config, index) / ROWS_FILE


def _plan(config: RunConfig, questions: Sequence[Question], processor: Processor) -> ShardPlan:
    folders = {"retention": retention_images(config)}
    others, generation = training_images(config), config.evaluation.generation
    askings = [asking for question in questions for asking in list_askings(question)]
    is_exact = Device.of(config).name == "cpu" and generation.load == "none"
    kept = KeptPixels()
    return ShardPlan(
        prompts=[
            Prompt(
                asking=one,
                encoded=encode_question(one.put, processor, folders.get(one.question.set) or others, kept),
            )
            for one in askings
        ],
        models=list_models(config),
        generation=generation,
        is_repeated=not is_exact,
    )


def _digest(config: RunConfig, plan: ShardPlan) -> str:
    volume, device = config.volume, Device.of(config)
    models = {"base": identify(config.model_dir), "tuned": [identify(volume.merged_dir), _digest_of_merged(config)]}
    if "bare" in plan.models:
        models["adapter"] = identify(volume.given_adapter_dir)
    parts = {
        "run": config.run.uid,
        "models": models,
        "device": [device.name, str(device.dtype)],
        "images": config.dataset.image_aspect_ratio,
        "generation": plan.generation.model_dump(mode="json"),
    }
    prompts = (
        (f"{one.asking.question.id} {one.asking.variant}", one.encoded.ids, one.encoded.images) for one in plan.prompts
    )
    return digest_inputs(parts, prompts)


def _digest_of_merged(config: RunConfig) -> str | None:
    return read_digests(config, StageName.MERGE).get("merged")


def _read_left(config: RunConfig, inputs: str, most_rows: int) -> dict[Key, Row]:
    """Rows of earlier pods, of the newest that has each."""
    files = list_left_files(config, ROWS_FILE)
    rows = (row for file in reversed(files) for row in read_left_rows(config.volume_root, file, inputs, most_rows))
    return {key_of(row): row for row in rows}


def _open_model(config: RunConfig, processor: Processor, model: Model) -> AbstractContextManager[Answerer]:
    device = Device.of(config)
    has_adapter = model == "base" and "bare" in list_models(config)
    return load_answerer(
        config.volume.merged_dir if model == "tuned" else config.model_dir,
        processor,
        device.name,
        device.dtype,
        adapter_dir=config.volume.given_adapter_dir if has_adapter else None,
        load=config.evaluation.generation.load,
    )
