"""The spec of a LlavaFineTune: its parts, and the rules between them."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from llava_api.base import Strict
from llava_api.rules import fixed, fixed_presence, fixed_unless_suspended, rule, rules
from llava_api.spec.dataset import Dataset
from llava_api.spec.evaluation import Evaluation
from llava_api.spec.mixture import MAX_MIXTURE, MAX_SHARE, MixturePart
from llava_api.spec.notifications import MAX_NOTIFICATIONS, Notification
from llava_api.spec.pods import Image, ImagePullSecret, Merge, Prepare, Scheduling, Storage, Workers
from llava_api.spec.sources import Download, Model
from llava_api.spec.training import Alignment, AlignmentBatch, Batch, Training

_PROCESSES = "self.workers.replicas * (self.workers.gpus > 0 ? self.workers.gpus : 1)"
_BATCH_UNIT = f"self.training.batch.perDevice * {_PROCESSES}"
_CAPABILITY_UNKNOWN = "self.workers.gpus == 0 || !has(self.workers.computeCapability)"
_PEAK_LEARNING_RATE = (
    "(has(self.training.learningRate) ? self.training.learningRate : self.training.method == 'full' ? 2.0e-5 : 2.0e-4)"
)
_ALIGNMENT_UNIT = f"self.alignment.batch.perDevice * {_PROCESSES}"

_NO_MIXTURE = "!has(self.mixture) || self.mixture.size() == 0"


_CONSISTENT: tuple[dict[str, Any], ...] = (
    rule(
        f"type(self.training.batch.global) != int || self.training.batch.global % ({_BATCH_UNIT}) == 0",
        "spec.training.batch.global must be a multiple of perDevice x workers.replicas x max(workers.gpus, 1), or auto",
        message_expression=(
            "'spec.training.batch.global is %d but must be a multiple of %d, which is perDevice x workers.replicas x "
            f"max(workers.gpus, 1)'.format([self.training.batch.global, {_BATCH_UNIT}])"
        ),
        field=".training.batch.global",
    ),
    rule(
        "self.workers.replicas == 1 || !has(self.storage.accessModes) || "
        "self.storage.accessModes.exists(mode, mode == 'ReadWriteMany')",
        "spec.storage.accessModes must contain ReadWriteMany when spec.workers.replicas is greater than 1: every "
        "training pod writes to the volume",
        field=".storage.accessModes",
    ),
    rule(
        "!has(self.ttlSecondsAfterFinished) || has(self.storage.existingClaim) || self.storage.retain != 'Never'",
        "spec.ttlSecondsAfterFinished needs spec.storage.retain Always or OnSuccess, or spec.storage.existingClaim: "
        "with Never the timer would delete the only copy of the model",
        field=".ttlSecondsAfterFinished",
    ),
    rule(
        "self.workers.gpus > 0 || self.training.precision != 'bf16'",
        "spec.training.precision bf16 needs spec.workers.gpus of at least 1: use auto or fp32 on a CPU",
        field=".training.precision",
    ),
    rule(
        "self.workers.gpus > 0 || self.training.attention != 'flash_attention_2'",
        "spec.training.attention flash_attention_2 needs spec.workers.gpus of at least 1: use auto or sdpa on a CPU",
        field=".training.attention",
    ),
    rule(
        f"{_CAPABILITY_UNKNOWN} || double(self.workers.computeCapability) >= 7.5",
        "spec.workers.computeCapability must be at least 7.5 (Turing): PyTorch in the trainer image is built for none "
        "that is older",
        field=".workers.computeCapability",
    ),
    rule(
        f"{_CAPABILITY_UNKNOWN} || double(self.workers.computeCapability) >= 8.0 || self.training.precision == 'fp32'",
        "spec.training.precision must be fp32 with spec.workers.computeCapability below 8.0: bf16, which auto means on "
        "GPUs, needs 8.0",
        field=".training.precision",
    ),
    rule(
        f"{_CAPABILITY_UNKNOWN} || double(self.workers.computeCapability) >= 8.0 || "
        "self.training.attention != 'flash_attention_2'",
        "spec.training.attention flash_attention_2 needs spec.workers.computeCapability 8.0 or more: use auto or sdpa",
        field=".training.attention",
    ),
    rule(
        "self.training.method != 'qlora' || self.training.zero.stage != 3",
        "spec.training.method qlora does not go with spec.training.zero.stage 3: quantised weights cannot be "
        "partitioned; use stage 2",
        field=".training.zero.stage",
    ),
    rule(
        "self.training.method == 'qlora' || !has(self.training.quantization)",
        "spec.training.quantization is only read with method qlora: remove it or set method to qlora",
        field=".training.quantization",
    ),
    rule(
        "has(self.training.validation) || !has(self.training.keepBest)",
        "spec.training.keepBest needs spec.training.validation: set validation.everySteps to say how often is looked",
        field=".training.keepBest",
    ),
    rule(
        "has(self.training.validation) || !has(self.training.earlyStopping)",
        "spec.training.earlyStopping needs spec.training.validation: set validation.everySteps to say how often is "
        "looked",
        field=".training.earlyStopping",
    ),
    rule(
        "self.training.method != 'none' || !has(self.training.validation)",
        "spec.training.validation is only read where something is trained after alignment: remove it or set method",
        field=".training.validation",
    ),
    rule(
        "self.training.method != 'none' || self.training.projector == 'train'",
        "spec.training.projector frozen is only read where something is trained after alignment, which trains the "
        "projector: remove it or set method",
        field=".training.projector",
    ),
    rule(
        "self.training.method != 'none' || self.training.visionTower.mode == 'frozen'",
        "spec.training.visionTower.mode full is only read where something is trained after alignment, in which the "
        "tower stays frozen: remove it or set method",
        field=".training.visionTower",
    ),
    rule(
        "self.training.method != 'none' || !has(self.training.maxSteps)",
        "spec.training.maxSteps is only read where something is trained after alignment, which goes by "
        "alignment.epochs: remove it or set method",
        field=".training.maxSteps",
    ),
    rule(
        "self.training.minimumLearningRate == 0.0 || self.training.scheduler != 'constant'",
        "spec.training.minimumLearningRate is not read with scheduler constant, which never falls: remove it or set "
        "scheduler to cosine or linear",
        field=".training.minimumLearningRate",
    ),
    rule(
        f"self.training.minimumLearningRate <= {_PEAK_LEARNING_RATE}",
        "spec.training.minimumLearningRate must be at most spec.training.learningRate, which is 2e-4 where it is left "
        "out, and 2e-5 with method full",
        field=".training.minimumLearningRate",
    ),
    rule(
        "!has(self.training.validation) || !has(self.training.validation.answers) || self.training.zero.stage != 3",
        "spec.training.validation.answers does not go with spec.training.zero.stage 3: use stage 2 or remove answers",
        field=".training.validation.answers",
    ),
    rule(
        "!self.training.zero.offload.optimizer || self.training.zero.stage >= 1",
        "spec.training.zero.offload.optimizer needs spec.training.zero.stage 1 or more: set stage to 2",
        field=".training.zero.offload.optimizer",
    ),
    rule(
        "!self.training.zero.offload.parameters || self.training.zero.stage == 3",
        "spec.training.zero.offload.parameters needs spec.training.zero.stage 3",
        field=".training.zero.offload.parameters",
    ),
    rule(
        "!has(self.model.languageModel) || has(self.model.projector) || has(self.alignment)",
        "spec.model.languageModel needs spec.alignment, or spec.model.projector with one that is aligned: a fresh "
        "projector must be aligned before anything else",
        field=".alignment",
    ),
    rule(
        "!has(self.alignment) || self.alignment.freshProjector || "
        "!(has(self.model.source) || has(self.model.projector))",
        "spec.alignment would damage the projector that spec.model brings: set spec.alignment.freshProjector to throw "
        "it away and begin with a new one, or leave spec.alignment out",
        field=".alignment.freshProjector",
    ),
    rule(
        "self.training.method != 'none' || has(self.alignment) || has(self.model.adapter)",
        "spec.training.method none needs spec.alignment, or spec.model.adapter to merge: there would be nothing to do",
        field=".training.method",
    ),
    rule(
        "!has(self.model.adapter) || self.training.method != 'full'",
        "spec.model.adapter does not go with spec.training.method full, which trains no adapter: merge it first (with "
        "method none), and name what that has made in spec.model.source",
        field=".model.adapter",
    ),
    rule(
        "!has(self.model.adapter) || !has(self.alignment)",
        "spec.model.adapter does not go with spec.alignment: the adapter was trained with a projector that is aligned, "
        "and another one would not fit it; remove one of them",
        field=".model.adapter",
    ),
    rule(
        "!has(self.alignment) || !has(self.alignment.dataset.validation.file)",
        "spec.alignment.dataset.validation.file is not read: alignment holds nothing out, since no stage scores "
        "captions; remove it",
        field=".alignment.dataset.validation.file",
    ),
    rule(
        f"!has(self.alignment) || self.alignment.batch.global % ({_ALIGNMENT_UNIT}) == 0",
        "spec.alignment.batch.global must be a multiple of perDevice x workers.replicas x max(workers.gpus, 1)",
        message_expression=(
            "'spec.alignment.batch.global is %d but must be a multiple of %d, which is perDevice x workers.replicas x "
            f"max(workers.gpus, 1)'.format([self.alignment.batch.global, {_ALIGNMENT_UNIT}])"
        ),
        field=".alignment.batch.global",
    ),
    rule(
        # What 0.33 + 0.33 + 0.33 comes to depends on rounding.
        f"{_NO_MIXTURE} || self.mixture.map(part, part.share).sum() <= {MAX_SHARE} + 0.000001",
        f"the shares of spec.mixture must come to at most {MAX_SHARE} together: the rest of an epoch is spec.dataset",
        field=".mixture",
    ),
    rule(
        f"{_NO_MIXTURE} || self.training.method != 'none'",
        "spec.mixture is only read where something is trained after alignment: remove it or set spec.training.method",
        field=".mixture",
    ),
    rule(
        f"{_NO_MIXTURE} || self.mixture.all(part, !has(part.dataset.validation.file))",
        "spec.mixture[].dataset.validation.file is not read: only spec.dataset is held out and scored; remove it",
        field=".mixture",
    ),
    rule(
        f"{_NO_MIXTURE} || self.mixture.all(part, part.dataset.imageAspectRatio == self.dataset.imageAspectRatio)",
        "spec.mixture[].dataset.imageAspectRatio must be that of spec.dataset: a model is to see all pictures made "
        "square in the same way",
        field=".mixture",
    ),
)


MAY_CHANGE = (
    "suspend", "retry", "activeDeadlineSeconds", "ttlSecondsAfterFinished", "training.maxRestarts", "notifications",
)  # fmt: skip
"""Fields that may always change."""
MAY_CHANGE_SUSPENDED = (
    "workers.replicas", "workers.gpus", "workers.resources", "training.batch.perDevice", "alignment.batch.perDevice",
    "scheduling",
)  # fmt: skip
"""Fields that may change while the run is suspended: what the next attempts run with."""
MAY_BE_NAMED = ("storage.existingClaim",)
"""Fields about which the status has a say: their rule is that of the whole resource."""
_PARTS = ("training", "training.batch", "alignment", "alignment.batch", "workers", "storage")
"""Fields of which some parts may change."""


def _list_fixed() -> tuple[str, ...]:
    """Paths of everything that never changes."""
    free = {*MAY_CHANGE, *MAY_CHANGE_SUSPENDED, *MAY_BE_NAMED, *_PARTS}
    models: tuple[tuple[str, type[BaseModel]], ...] = (
        ("", Spec), ("training.", Training), ("training.batch.", Batch), ("alignment.", Alignment),
        ("alignment.batch.", AlignmentBatch), ("workers.", Workers), ("storage.", Storage),
    )  # fmt: skip
    paths = (f"{prefix}{field.alias or name}" for prefix, model in models for name, field in model.model_fields.items())
    return tuple(path for path in paths if path not in free)


def _add_rules(schema: JsonDict) -> None:
    """Called when the schema is made, since the rules follow from the fields."""
    schema |= rules(
        rule(
            "self.retry >= oldSelf.retry",
            "spec.retry only grows: raise it by one to try a failed run again",
            field=".retry",
        ),
        *_CONSISTENT,
        fixed_presence("alignment"),
        *fixed(*_list_fixed()),
        *fixed_unless_suspended(*MAY_CHANGE_SUSPENDED),
    )


class Spec(Strict):
    """What to train, on what, and how. Fixed from creation, but for what can be changed while it is suspended."""

    model_config = ConfigDict(json_schema_extra=_add_rules)

    model: Annotated[Model, Field(description="The model to start from.")]
    dataset: Annotated[Dataset, Field(description="The pictures, questions and answers to learn from.")]
    mixture: Annotated[
        tuple[MixturePart, ...],
        Field(
            max_length=MAX_MIXTURE,
            description="Further datasets that training learns from beside dataset, so that the model does not forget "
            "what they show: general instructions, say. Alignment does not see them. Left out: none.",
        ),
    ] = ()
    prepare: Annotated[Prepare, Field(description="The stage that checks the data, before a GPU is taken.")] = Prepare()
    alignment: Annotated[
        Alignment | None,
        Field(
            description="Phase 1: align the projector before training, with precision, maximum length, seed, ZeRO and "
            "checkpoints as in training; nothing is quantised. Left out: no alignment."
        ),
    ] = None
    training: Annotated[Training, Field(description="How to train. Defaults: LLaVA v1.5's LoRA recipe.")] = Training()
    workers: Annotated[Workers, Field(description="The pods that train.")] = Workers()
    merge: Annotated[Merge, Field(description="The stage that merges the adapter into the model.")] = Merge()
    evaluation: Annotated[Evaluation, Field(description="The stage that compares the tuned model with its base.")] = (
        Evaluation()
    )
    storage: Annotated[
        Storage, Field(description="The volume that holds everything a run makes, and what becomes of it.")
    ] = Storage()
    scheduling: Annotated[Scheduling, Field(description="Where pods may run.")] = Scheduling()
    download: Annotated[Download, Field(description="How models and datasets are fetched.")] = Download()
    image: Annotated[Image, Field(description="The trainer image.")] = Image()
    suspend: Annotated[
        bool,
        Field(
            description="Stop the run, with a checkpoint where one can be saved, and free its GPUs; false goes on from "
            "there. While it is true the size of the run may change: workers.replicas, gpus and resources, "
            "batch.perDevice, scheduling."
        ),
    ] = False
    retry: Annotated[
        int,
        Field(
            ge=0,
            le=1_000_000,
            description="Reopens a run that has failed, at the stage that failed and with every try left, when it is "
            "raised.",
        ),
    ] = 0
    active_deadline_seconds: Annotated[
        int | None,
        Field(
            ge=1,
            le=31_536_000,
            description="Seconds after which the run fails with DeadlineExceeded, without the time that it was "
            "suspended or queued. Left out: none.",
        ),
    ] = None
    ttl_seconds_after_finished: Annotated[
        int | None,
        Field(
            ge=0,
            le=31_536_000,
            description="Seconds after its end when the operator deletes the run. It needs storage.retain Always or "
            "OnSuccess, or storage.existingClaim: no timer takes a model along. With OnSuccess a run that has failed "
            "is not deleted. Notifications that are under way are waited for. Left out: runs stay until somebody "
            "deletes them.",
        ),
    ] = None
    notifications: Annotated[
        tuple[Notification, ...],
        Field(
            max_length=MAX_NOTIFICATIONS,
            description="Who is told of what becomes of the run; they may change at any time, and hold for what "
            "happens from then on. Each message is sent by a pod of its own in the run's namespace, by the proxies and "
            "authorities of download. None of them holds the run up.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = ()
    image_pull_secrets: Annotated[
        tuple[ImagePullSecret, ...], Field(max_length=8, description="Secrets with registry credentials.")
    ] = ()
