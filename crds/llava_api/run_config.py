"""The run configuration: all that a stage is told, in one versioned file written by the operator.

It is made from the resource's own types, so that a field has one definition. The trainer reads it once. An image
refuses fields that it does not know, so the operator writes the version that the run's image understands: prepare
reports it (``PrepareNumbers.config_version``), and gets version 1 itself, because nobody knows the image then.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from llava_api.base import Strict
from llava_api.constants import RENDEZVOUS_PORT, StageName
from llava_api.spec import Alignment, Dataset, Download, Evaluation, Merge, MixturePart, Model, Publish, Training
from llava_api.stages import select_stages
from llava_api.volume import RunVolume

RUN_CONFIG_VERSION: Final = 2
"""The newest. 1: results at the volume's root. 2: results in attempts' folders, ``results`` says of which."""
RunConfigVersion = Literal[1, 2]
_SINCE_VERSION_2: Final = ("results", "training.maxRestarts")
"""Paths of fields that an image of version 1 would refuse."""
_OPTIONAL_SINCE: Final = (
    "training.validation.answers", "training.validation", "training.keepBest", "training.earlyStopping",
    "training.projector", "training.lora.targets", "training.lora.rsLora", "training.maxSteps",
    "training.minimumLearningRate", "training.optimizer", "training.visionTower", "training.tracking.wandb",
    "training.tracking", "mixture", "mixtureDirs", "model.adapter", "evaluation.metrics", "evaluation.numberTolerance",
    "evaluation.gate", "evaluation.workers", "evaluation.generation.load",
    "evaluation.retention", "retentionDir", "publish", "image",
)  # fmt: skip
"""Paths of fields that are written only where they are set to something else than their default: an image that does
not know one then refuses the run that asks for it, and no other."""
_OF_FORMATS: Final = ("messages", "table")
"""Fields of a dataset that go with one format. Written where they are set: an image that does not know them does not
know the format either."""


class RunIdentity(Strict):
    """Which run, stage and attempt this is."""

    namespace: str
    name: str
    uid: str
    stage: StageName
    attempt: Annotated[int, Field(ge=1)]


class WorkerLayout(Strict):
    """How many processes train, and where they meet."""

    num_nodes: Annotated[int, Field(ge=1)] = 1
    """Pods of the training Job."""
    processes_per_node: Annotated[int, Field(ge=1)] = 1
    """One a GPU, or one a pod on a CPU."""
    device: Literal["cuda", "cpu"] = "cpu"
    rendezvous_host: str = "127.0.0.1"
    """DNS name of the first training pod."""
    rendezvous_port: int = RENDEZVOUS_PORT
    grace_period_seconds: int = 30
    stall_limit_seconds: Annotated[float, Field(gt=0)] = 300
    """How long a training process may stand still at most before it says where and ends: half of what the others'
    operations wait for it. Where its steps are quick it may only as long as the trainer's watchdog makes of them."""

    @property
    def world_size(self) -> int:
        """Number of training processes over all pods."""
        return self.num_nodes * self.processes_per_node


class Reporting(Strict):
    """Where rank 0 pushes progress. None of it is needed for training to succeed."""

    url: str
    ca_file: Path
    token_file: Path


class RunConfig(Strict):
    """Everything that a stage is told."""

    version: RunConfigVersion = RUN_CONFIG_VERSION
    run: RunIdentity
    volume_root: Path
    results: dict[StageName, Annotated[int, Field(ge=1)]] = {}
    """Number of the attempt whose result counts, of every stage before this one. Since version 2."""
    model_dir: Path
    """The model in hub layout. Where prepare has to fetch or convert it first, what ``inputs.json`` on the volume says
    takes its place in the stages after."""
    dataset_dir: Path
    """Folder of the dataset; the same holds."""
    alignment_dir: Path | None = None
    """Folder of phase 1's dataset; the same holds. None without alignment."""
    mixture_dirs: tuple[Path, ...] = ()
    """Folders of the mixture's datasets, in its order; the same holds."""
    retention_dir: Path | None = None
    """Folder of the retention set; the same holds. None without one."""
    model: Model = Model()
    dataset: Dataset
    mixture: tuple[MixturePart, ...] = ()
    alignment: Alignment | None = None
    training: Training
    download: Download = Download()
    workers: WorkerLayout
    merge: Merge
    evaluation: Evaluation
    publish: Publish | None = None
    """Where the result goes. In the publish stage, and in evaluation, whose report says how to serve it from there."""
    image: str | None = None
    """The trainer image that this stage runs in, by digest where that is known. In the publish stage alone."""
    reporting: Reporting | None = None

    @model_validator(mode="after")
    def _check_mixture(self) -> Self:
        if len(self.mixture_dirs) != len(self.mixture):
            raise ValueError(f"mixtureDirs names {len(self.mixture_dirs)} folders of {len(self.mixture)} datasets")
        if sum(part.share for part in self.mixture) >= 1:
            raise ValueError("mixture: the shares must come to less than 1 together")
        return self

    @model_serializer(mode="wrap")
    def _leave_out_what_is_newer(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        for path in (*_OPTIONAL_SINCE, *(_SINCE_VERSION_2 if self.version == 1 else ())):
            *parents, name = path.split(".")
            parent = fields
            for step in parents:
                # A part that is not set has no fields.
                parent = parent.get(step) or {}
            if path not in _OPTIONAL_SINCE or _has_default(self, path):
                parent.pop(name, None)
        mixed = (part["dataset"] for part in fields.get("mixture", ()))
        second = (fields["evaluation"].get("retention") or {}).get("dataset", {})
        for dataset in (fields["dataset"], (fields["alignment"] or {}).get("dataset", {}), *mixed, second):
            for name in _OF_FORMATS:
                if dataset.get(name, name) is None:
                    del dataset[name]
        return fields

    @property
    def volume(self) -> RunVolume:
        """Layout of the run's volume: earlier stages' results where ``results`` says, this one's in its own folder."""
        return RunVolume(root=self.volume_root, results={**self.results, self.run.stage: self.run.attempt})

    @property
    def stages_before(self) -> tuple[StageName, ...]:
        """The run's stages before this one, whose results it may read."""
        stages = select_stages(self.alignment, self.training, self.publish)
        return stages[: stages.index(self.run.stage)] if self.run.stage in stages else ()

    @property
    def gradient_accumulation(self) -> int:
        """Micro-batches a process runs for one optimiser step: global / (perDevice x processes), rounded up."""
        batch = self.training.batch
        return math.ceil(batch.num_samples / (batch.per_device * self.workers.world_size))


def _has_default(config: RunConfig, path: str) -> bool:
    """Whether the field at ``path`` (like training.lora.rsLora) is as it is where nobody sets it."""
    *parents, last = path.split(".")
    part: BaseModel = config
    for step in parents:
        part = getattr(part, _name_of(type(part), step))
        if part is None:
            # A part that is not set has no fields.
            return True
    name = _name_of(type(part), last)
    return bool(getattr(part, name) == type(part).model_fields[name].get_default())


def _name_of(model: type[BaseModel], alias: str) -> str:
    return next(name for name, field in model.model_fields.items() if (field.alias or name) == alias)
