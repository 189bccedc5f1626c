"""What is to be read of a dataset, and how it will be used: by training, its mixture, alignment, or to judge by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llava_api.run_config import RunConfig
from llava_api.spec import Dataset, Prompt
from llava_trainer.data.image_folder import ImageFolder
from llava_trainer.data.template import Template


@dataclass(frozen=True, kw_only=True)
class DatasetRequest:
    """What to read, and how it will be used.

    Attributes:
        dataset: its part of the spec.
        root: where it lies.
        template: layout in which its samples are trained on.
        max_length: training.maxLength.
        seed: of the split.
        hold_out: whether any samples are held out at all.
        validates: whether held-out samples are looked at while it trains.
        selects: whether some of those select a step, so that others must give the scores.
        is_gated: whether a gate goes by what gives the scores.
        embedded: folder on the run's volume for images that the dataset's files hold.
        prompts: evaluation's prompts, whose images lie in the same folder.
        unfetched: why images that are named by address were not fetched.
        place: where it stands in the manifest.
    """

    dataset: Dataset
    root: Path
    template: Template
    max_length: int
    seed: int
    embedded: Path
    hold_out: bool = True
    validates: bool = False
    selects: bool = False
    is_gated: bool = False
    prompts: Sequence[Prompt] = ()
    unfetched: Mapping[str, str] = field(default_factory=dict)
    place: str = "spec.dataset"

    @property
    def folder(self) -> ImageFolder:
        """Where its images lie."""
        return ImageFolder(root=self.root, name=self.dataset.images, embedded=self.embedded, unfetched=self.unfetched)

    @property
    def files(self) -> tuple[tuple[str, str], ...]:
        """The fields that name files, and the files or patterns: training's, and held-out samples' if there are any."""
        held_out = self.dataset.validation.file if self.hold_out else None
        training = ("dataset.file", self.dataset.file)
        return (training,) if held_out is None else (training, ("dataset.validation.file", held_out))


def training_request(config: RunConfig) -> DatasetRequest:
    """The dataset that training learns from."""
    return DatasetRequest(
        dataset=config.dataset,
        root=config.dataset_dir,
        template="v1",
        max_length=config.training.max_length,
        seed=config.training.seed,
        validates=config.training.validation is not None,
        selects=config.training.selects,
        is_gated=config.evaluation.gate is not None,
        prompts=config.evaluation.prompts,
        embedded=config.volume.embedded_images_dir,
    )


def mixture_requests(config: RunConfig) -> list[DatasetRequest]:
    """The datasets that training learns from beside its own. Nothing of them is held out."""
    return [
        DatasetRequest(
            dataset=part.dataset,
            root=root,
            template="v1",
            max_length=config.training.max_length,
            seed=config.training.seed,
            embedded=config.volume.embedded_images_dir,
            hold_out=False,
            place=f"spec.mixture[{index}].dataset",
        )
        for index, (part, root) in enumerate(zip(config.mixture, config.mixture_dirs, strict=True))
    ]


def retention_request(config: RunConfig) -> DatasetRequest | None:
    """The dataset that tells what was forgotten, if there is one. Nothing of it is learned, and all of it is asked."""
    if config.evaluation.retention is None or config.retention_dir is None:
        return None
    return DatasetRequest(
        dataset=config.evaluation.retention.dataset,
        root=config.retention_dir,
        template="v1",
        max_length=config.training.max_length,
        seed=config.training.seed,
        embedded=config.volume.embedded_images_dir,
        hold_out=False,
        place="spec.evaluation.retention.dataset",
    )


def alignment_request(config: RunConfig) -> DatasetRequest | None:
    """The dataset that alignment learns from, if there is an alignment.

    Nothing of it is held out: what alignment has learned shows in training, and no stage scores captions.
    """
    if config.alignment is None or config.alignment_dir is None:
        return None
    return DatasetRequest(
        dataset=config.alignment.dataset,
        root=config.alignment_dir,
        template="plain",
        max_length=config.training.max_length,
        seed=config.training.seed,
        embedded=config.volume.embedded_images_dir,
        hold_out=False,
        place="spec.alignment.dataset",
    )
