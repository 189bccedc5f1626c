"""What one of LLaVA's two phases trains on what, and how: the run configuration as the training stages see it.

Phase 1 (align) and phase 2 (train) run the same loop, and whatever they share has its settings in ``spec.training``.
Nothing below asks again which of the two it is part of.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llava_api.constants import StageName
from llava_api.failures import Reason
from llava_api.run_config import RunConfig
from llava_api.spec import Batch, Checkpoint, Lora, Quantization, Training, Zero
from llava_trainer.errors import StageError

Method = Literal["projector", "lora", "qlora", "full"]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase of training. Fields that are named as in ``spec.training`` mean what they mean there."""

    stage: StageName
    """ALIGN or TRAIN."""
    method: Method
    """``projector`` in phase 1, else that of ``spec.training``."""
    template: Literal["v1", "plain"]
    """How a sample becomes text."""
    samples_file: Path
    """What prepare made of this phase's dataset."""
    images_dir: Path
    """Folder that the samples' pictures are relative to."""
    image_aspect_ratio: Literal["pad", "square"]
    epochs: int
    batch: Batch
    learning_rate: float
    """Peak, of adapter or language model; in phase 1 of the projector."""
    projector_learning_rate: float
    """Peak, of the projector."""
    weight_decay: float
    warmup_ratio: float
    scheduler: Literal["cosine", "linear", "constant"]
    max_length: int
    precision: Literal["auto", "bf16", "fp32"]
    seed: int
    gradient_checkpointing: bool
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"]
    checkpoint: Checkpoint
    zero: Zero
    packing: bool
    grouping: Literal["modality", "length", "none"]
    lora: Lora
    quantization: Quantization


def phase_of(config: RunConfig, stage: StageName | None = None) -> Phase:
    """The phase that the stage of ``config`` is, or ``stage``.

    Raises:
        StageError: InvalidConfig; the run has no such phase.
    """
    if (stage or config.run.stage) is StageName.ALIGN:
        return _alignment(config)
    return _training(config)


def _alignment(config: RunConfig) -> Phase:
    alignment = config.alignment
    if alignment is None or config.alignment_dir is None:
        raise StageError(Reason.INVALID_CONFIG, "run.stage is align, but alignment and alignmentDir are not set")
    return _phase(
        config.training,
        stage=StageName.ALIGN,
        method="projector",
        template="plain",
        samples_file=config.volume.alignment_file,
        images_dir=config.alignment_dir / alignment.dataset.images,
        image_aspect_ratio=alignment.dataset.image_aspect_ratio,
        epochs=alignment.epochs,
        batch=alignment.batch,
        learning_rate=alignment.learning_rate,
        projector_learning_rate=alignment.learning_rate,
    )


def _training(config: RunConfig) -> Phase:
    training = config.training
    if training.method == "none":
        raise StageError(Reason.INVALID_CONFIG, f"run.stage is {config.run.stage}, but training.method is none")
    return _phase(
        training,
        stage=StageName.TRAIN,
        method=training.method,
        template="v1",
        samples_file=config.volume.train_file,
        images_dir=config.dataset_dir / config.dataset.images,
        image_aspect_ratio=config.dataset.image_aspect_ratio,
        epochs=training.epochs,
        batch=training.batch,
        learning_rate=training.peak_learning_rate,
        projector_learning_rate=training.projector_learning_rate,
    )


def _phase(
    training: Training,
    *,
    stage: StageName,
    method: Method,
    template: Literal["v1", "plain"],
    samples_file: Path,
    images_dir: Path,
    image_aspect_ratio: Literal["pad", "square"],
    epochs: int,
    batch: Batch,
    learning_rate: float,
    projector_learning_rate: float,
) -> Phase:
    return Phase(
        stage=stage,
        method=method,
        template=template,
        samples_file=samples_file,
        images_dir=images_dir,
        image_aspect_ratio=image_aspect_ratio,
        epochs=epochs,
        batch=batch,
        learning_rate=learning_rate,
        projector_learning_rate=projector_learning_rate,
        weight_decay=training.weight_decay,
        warmup_ratio=training.warmup_ratio,
        scheduler=training.scheduler,
        max_length=training.max_length,
        precision=training.precision,
        seed=training.seed,
        gradient_checkpointing=training.gradient_checkpointing,
        attention=training.attention,
        checkpoint=training.checkpoint,
        zero=training.zero,
        packing=training.packing,
        grouping=training.grouping,
        lora=training.lora,
        quantization=training.quantization or Quantization(),
    )
