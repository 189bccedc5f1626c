"""What a run reads, and from where: one role a source of the spec."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llava_api.constants import SecretRole
from llava_api.run_config import RunConfig
from llava_api.spec import Dataset, Validation

MODEL = "model"
BASE = "base"
LANGUAGE_MODEL = "language-model"
VISION_TOWER = "vision-tower"
PROJECTOR = "projector"
DATASET = "dataset"
ALIGNMENT_DATASET = "alignment-dataset"


@dataclass(frozen=True, kw_only=True)
class Role:
    """One source of a run."""

    name: str
    """Also its folder on the run's volume (``RunVolume.download_dir``)."""
    field: str
    """Where it stands in the spec."""
    source: str
    secret: SecretRole
    mounted: Path | None = None
    """Where the operator has mounted it, where it said so; None: below INPUTS_PATH."""
    dataset: Dataset | None = None
    """None for models."""
    pictures: tuple[str, ...] = ()
    """Pictures that are needed besides those that the dataset's files name, below its folder of pictures."""


def list_roles(config: RunConfig) -> Iterator[Role]:
    """The sources of a run, in the order of the spec."""
    model = config.model
    for name, field, source, mounted in (
        (MODEL, "source", model.source, config.model_dir),
        (BASE, "base", model.base, None),
        (LANGUAGE_MODEL, "languageModel", model.language_model, None),
        (VISION_TOWER, "visionTower", model.vision_tower, None),
        (PROJECTOR, "projector", model.projector, None),
    ):
        if source is not None:
            yield Role(name=name, field=f"spec.model.{field}", source=source, secret=SecretRole.MODEL, mounted=mounted)
    prompts = tuple(prompt.image for prompt in config.evaluation.prompts if prompt.image is not None)
    yield Role(
        name=DATASET, field="spec.dataset.source", source=config.dataset.source, secret=SecretRole.DATASET,
        mounted=config.dataset_dir, dataset=config.dataset, pictures=prompts,
    )  # fmt: skip
    if config.alignment is not None:
        yield Role(
            name=ALIGNMENT_DATASET, field="spec.alignment.dataset.source", source=config.alignment.dataset.source,
            secret=SecretRole.ALIGNMENT_DATASET, mounted=config.alignment_dir,
            dataset=_all_of(config.alignment.dataset),
        )  # fmt: skip


def _all_of(dataset: Dataset) -> Dataset:
    """Of alignment's dataset nothing is held out: a file with held-out samples is not needed."""
    return dataset.model_copy(update={"validation": Validation()})
