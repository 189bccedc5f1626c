"""What one of LLaVA's two phases trains on what, and how: the run configuration as the training stages see it.

Phase 1 (align) and phase 2 (train) run the same loop, and whatever they share has its settings in ``spec.training``.
Nothing below asks again which of the two it is part of.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llava_api.constants import StageName
from llava_api.failures import Reason
from llava_api.run_config import RunConfig
from llava_api.spec import TowerTraining, Training
from llava_trainer.data.image_folder import ImageFolder, folder_of, training_images
from llava_trainer.data.mixed_samples import MixedFile, MixedSamples
from llava_trainer.data.sample_file import SampleFile
from llava_trainer.errors import StageError

Method = Literal["projector", "lora", "qlora", "full"]


@dataclass(frozen=True, kw_only=True)
class MixedIn:
    """A further dataset of a phase."""

    samples_file: Path
    images: ImageFolder
    share: float
    """Of an epoch's samples."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase of training."""

    stage: StageName
    """ALIGN or TRAIN."""
    method: Method
    """``projector`` in phase 1, else that of ``spec.training``."""
    template: Literal["v1", "plain"]
    """How a sample becomes text."""
    samples_file: Path
    """What prepare made of this phase's dataset."""
    held_out_file: Path | None
    """What is looked at while it trains; None in phase 1, which holds nothing out."""
    images: ImageFolder
    """Where the samples' images lie."""
    image_aspect_ratio: Literal["pad", "square"]
    training: Training
    """Settings as in ``spec.training``; in phase 1 with those of ``spec.alignment`` in place of what it has itself."""
    mixture: tuple[MixedIn, ...] = ()
    """What is learned from beside ``samples_file``; nothing in phase 1."""

    @property
    def learns_projector(self) -> bool:
        """Whether the projector is trained."""
        return self.training.projector == "train"

    @property
    def learns_tower(self) -> bool:
        """Whether the vision tower is trained."""
        return self.training.vision_tower.mode == "full"


def phase_of(config: RunConfig, stage: StageName | None = None) -> Phase:
    """The phase that the stage of ``config`` is, or ``stage``.

    Raises:
        StageError: InvalidConfig; the run has no such phase.
    """
    if (stage or config.run.stage) is StageName.ALIGN:
        return _alignment(config)
    return _training(config)


@contextmanager
def open_samples(phase: Phase) -> Iterator[MixedSamples]:
    """All that a phase learns from, the mixture included.

    Raises:
        FileNotFoundError: prepare has not written it.
    """
    with ExitStack() as stack:
        main = stack.enter_context(SampleFile(phase.samples_file))
        mixed = [
            MixedFile(samples=stack.enter_context(SampleFile(part.samples_file)), images=part.images)
            for part in phase.mixture
        ]
        yield MixedSamples(main, mixed)


def _alignment(config: RunConfig) -> Phase:
    alignment = config.alignment
    if alignment is None or config.alignment_dir is None:
        raise StageError(Reason.INVALID_CONFIG, "run.stage is align, but alignment and alignmentDir are not set")
    own = {
        "epochs": alignment.epochs,
        "max_steps": None,
        "minimum_learning_rate": 0.0,
        "projector": "train",
        "vision_tower": TowerTraining(),
        "batch": alignment.batch,
        "learning_rate": alignment.learning_rate,
        "projector_learning_rate": alignment.learning_rate,
        # Nothing is held out of captions.
        "validation": None,
        "keep_best": None,
        "early_stopping": None,
    }
    return Phase(
        stage=StageName.ALIGN,
        method="projector",
        template="plain",
        samples_file=config.volume.alignment_file,
        held_out_file=None,
        images=folder_of(config, alignment.dataset, config.alignment_dir),
        image_aspect_ratio=alignment.dataset.image_aspect_ratio,
        training=config.training.model_copy(update=own),
    )


def _training(config: RunConfig) -> Phase:
    training = config.training
    if training.method == "none":
        raise StageError(Reason.INVALID_CONFIG, f"run.stage is {config.run.stage}, but training.method is none")
    return Phase(
        stage=StageName.TRAIN,
        method=training.method,
        template="v1",
        samples_file=config.volume.train_file,
        held_out_file=config.volume.selection_file if training.selects else config.volume.validation_file,
        images=training_images(config),
        image_aspect_ratio=config.dataset.image_aspect_ratio,
        training=training,
        mixture=tuple(
            MixedIn(
                samples_file=config.volume.mixture_file(index),
                images=folder_of(config, part.dataset, root),
                share=part.share,
            )
            for index, (part, root) in enumerate(zip(config.mixture, config.mixture_dirs, strict=True))
        ),
    )
