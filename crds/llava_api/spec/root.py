"""The spec of a LlavaFineTune: its parts, and the rules between them."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from llava_api.base import Strict
from llava_api.rules import fixed, fixed_presence, fixed_unless_suspended, rule, rules
from llava_api.spec.consistency import CONSISTENT
from llava_api.spec.dataset import Dataset
from llava_api.spec.evaluation import Evaluation
from llava_api.spec.mixture import MAX_MIXTURE, MixturePart
from llava_api.spec.notifications import MAX_NOTIFICATIONS, Notification
from llava_api.spec.pods import Image, ImagePullSecret, Merge, Prepare, Scheduling, Storage, Workers
from llava_api.spec.publish import Publish
from llava_api.spec.sources import Download, Model
from llava_api.spec.training import Alignment, AlignmentBatch, Batch, Training

MAY_CHANGE = (
    "suspend", "retry", "activeDeadlineSeconds", "ttlSecondsAfterFinished", "training.maxRestarts", "notifications",
    "publish",
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
        *CONSISTENT,
        fixed_presence("alignment"),
        fixed_presence("publish"),
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
    publish: Annotated[
        Publish | None,
        Field(
            description="Where the result goes, once evaluation.gate and retention have passed, or at once where "
            "neither is set. It may change at any time and holds for attempts that begin from then on: a "
            "run that failed because of a destination is corrected here and tried again by retry; one "
            "that waits for a Secret or claim goes on with what it says once it has been suspended and "
            "resumed. Left out: it stays on the run's volume.",
        ),
    ] = None
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

    @property
    def most_writers(self) -> int:
        """Most pods that write to the run's volume at a time."""
        return max(self.workers.replicas, self.evaluation.workers.replicas)
