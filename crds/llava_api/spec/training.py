"""How to train, in both phases."""

from typing import Annotated, Literal

from pydantic import Field

from llava_api.base import Strict
from llava_api.spec.dataset import Dataset
from llava_api.spec.tracking import Tracking
from llava_api.spec.validation import EarlyStopping, KeepBest, TrainingValidation


class Lora(Strict):
    """Low-rank adaptation of the language model's q, k, v, o, gate, up and down projections."""

    rank: Annotated[int, Field(ge=1, le=1024, description="Rank of the update matrices.")] = 128
    alpha: Annotated[int, Field(ge=1, le=4096, description="Scale: the update is multiplied by alpha / rank.")] = 256
    dropout: Annotated[
        float, Field(ge=0, lt=1, description="Share of the adapter's inputs that is dropped in training; 0 = off.")
    ] = 0.05


_PerDevice = Annotated[int, Field(ge=1, le=1024, description="Samples that one training process holds at a time.")]
_Global = Annotated[
    int,
    Field(
        alias="global",
        ge=1,
        le=65536,
        description="Samples of one optimiser step over all processes; gradient accumulation follows from it. "
        "Must be a multiple of perDevice x workers.replicas x max(workers.gpus, 1).",
    ),
]


class Batch(Strict):
    """Batch sizes, in samples."""

    per_device: _PerDevice = 8
    global_: _Global = 128


class AlignmentBatch(Batch):
    """The same, with the recipe of phase 1 for what is left out."""

    per_device: _PerDevice = 32
    global_: _Global = 256


class Checkpoint(Strict):
    """When training saves its state."""

    every_steps: Annotated[int, Field(ge=1, le=1_000_000, description="Optimiser steps between two checkpoints.")] = 200
    keep: Annotated[int, Field(ge=1, le=100, description="Newest checkpoints kept; older ones are deleted.")] = 2


class Quantization(Strict):
    """NF4 quantisation of the frozen language model (QLoRA). Tower, projector and lm_head are not quantised."""

    double: Annotated[bool, Field(description="Quantise the scales, too: 0.4 bits less a weight.")] = True
    compute_dtype: Annotated[
        Literal["auto", "bf16", "fp32"],
        Field(description="Number format that weights are multiplied in; `auto` is that of training."),
    ] = "auto"


class Offload(Strict):
    """What is kept in the node's memory instead of the GPU's: slower, but less GPU memory."""

    optimizer: Annotated[bool, Field(description="Optimiser state. Needs stage 1 or more.")] = False
    parameters: Annotated[bool, Field(description="Weights. Needs stage 3.")] = False


class Zero(Strict):
    """DeepSpeed's ZeRO: what is partitioned over the training processes instead of held by each."""

    stage: Annotated[
        int,
        Field(
            ge=0,
            le=3,
            description="0: nothing; 1: optimiser state; 2: gradients, too; 3: weights, too.",
        ),
    ] = 2
    offload: Annotated[Offload, Field(description="What is kept in the node's memory.")] = Offload()


class Training(Strict):
    """How to train. The defaults are LLaVA v1.5's LoRA recipe."""

    method: Annotated[
        Literal["lora", "qlora", "full", "none"],
        Field(
            description="`lora`: adapters on the language model; `qlora`: the same on a language model quantised to 4 "
            "bits; `full`: every weight of the language model; `none`: nothing after alignment. The projector is "
            "trained whole with the first three, and the vision tower stays frozen always."
        ),
    ] = "lora"
    lora: Annotated[Lora, Field(description="The adapter's shape.")] = Lora()
    quantization: Annotated[
        Quantization | None, Field(description="How the language model is quantised. Only with method qlora.")
    ] = None
    epochs: Annotated[int, Field(ge=1, le=1000, description="Times that training goes through the dataset.")] = 1
    learning_rate: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            description="Peak learning rate of adapter or language model. Left out: 2e-4 with lora and qlora, 2e-5 "
            "with full.",
        ),
    ] = None
    projector_learning_rate: Annotated[float, Field(gt=0, le=1, description="Peak learning rate of the projector.")] = (
        2.0e-5
    )
    weight_decay: Annotated[float, Field(ge=0, le=1, description="AdamW's decoupled weight decay; 0 = off.")] = 0.0
    warmup_ratio: Annotated[
        float, Field(ge=0, le=1, description="Share of the steps over which the learning rate rises from 0; 0 = off.")
    ] = 0.03
    scheduler: Annotated[
        Literal["cosine", "linear", "constant"],
        Field(description="Course of the learning rate after warm-up: down to 0 by a cosine or a line, or constant."),
    ] = "cosine"
    max_length: Annotated[
        int,
        Field(
            ge=64,
            le=131072,
            description="Longest sample in tokens, image tokens included; longer ones lose their end and are counted "
            "in the dataset report.",
        ),
    ] = 2048
    precision: Annotated[
        Literal["auto", "bf16", "fp32"],
        Field(description="Number format of training; `auto` is bf16 on GPUs and fp32 on a CPU."),
    ] = "auto"
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, description="Seed of every random choice.")] = 42
    batch: Annotated[Batch, Field(description="Batch sizes.")] = Batch()
    gradient_checkpointing: Annotated[
        bool,
        Field(description="Compute activations again in the backward pass instead of keeping them: much less memory "
                          "for about a third more time."),
    ] = True  # fmt: skip
    attention: Annotated[
        Literal["auto", "flash_attention_2", "sdpa", "eager"],
        Field(description="Attention implementation; `auto` is flash_attention_2 where it is installed, else sdpa. "
                          "`eager` takes much more memory: 12 bytes for each head and pair of tokens in a row."),
    ] = "auto"  # fmt: skip
    checkpoint: Annotated[Checkpoint, Field(description="When training saves its state.")] = Checkpoint()
    validation: Annotated[
        TrainingValidation | None,
        Field(description="How held-out samples are looked at while it trains. Left out: only when it has ended."),
    ] = None
    keep_best: Annotated[
        KeepBest | None,
        Field(description="Take the best checkpoint by validation instead of the last step. What selects must not "
                          "judge: half of the held-out groups then select, and the other half gives the scores."),
    ] = None  # fmt: skip
    early_stopping: Annotated[
        EarlyStopping | None,
        Field(description="End training when validation does not improve any more. Held-out groups are divided as "
                          "with keepBest."),
    ] = None  # fmt: skip
    tracking: Annotated[
        Tracking | None,
        Field(description="Who is told the curve besides."),
    ] = None
    max_restarts: Annotated[
        int,
        Field(
            ge=0,
            le=100,
            description="How often alignment, and how often training, goes on from its newest checkpoint after a "
            "failure of its own. Preemption, drains and lost nodes do not count.",
        ),
    ] = 3
    zero: Annotated[Zero, Field(description="What processes share out among each other (DeepSpeed ZeRO).")] = Zero()
    packing: Annotated[
        bool,
        Field(description="Lay several samples end to end instead of filling short ones up; they do not see each "
                          "other. The global batch stays the same."),
    ] = False  # fmt: skip
    grouping: Annotated[
        Literal["modality", "length", "none"],
        Field(
            description="Which samples stand side by side in a batch: `modality`: of similar length, and all with a "
            "picture or all without (LLaVA's recipe); `length`: of similar length; `none`: at random."
        ),
    ] = "modality"

    @property
    def selects(self) -> bool:
        """Whether held-out samples decide which weights are taken; those must not give the scores."""
        return self.keep_best is not None or self.early_stopping is not None

    @property
    def peak_learning_rate(self) -> float:
        """``learning_rate``, or the method's own."""
        return self.learning_rate or (2.0e-5 if self.method == "full" else 2.0e-4)


class Alignment(Strict):
    """Phase 1: the projector alone learns from pictures and captions. The rest is as in training."""

    dataset: Annotated[
        Dataset,
        Field(
            description="Pictures and captions: each sample has one picture, one question (which is not read) and its "
            "caption as the answer. Nothing of it is held out: validation.fraction is not read."
        ),
    ]
    fresh_projector: Annotated[
        bool,
        Field(description="Throw an existing projector away and begin with a new one. Aligning a model that has one is "
                          "refused otherwise: the learning rate of phase 1 would damage it."),
    ] = False  # fmt: skip
    epochs: Annotated[int, Field(ge=1, le=1000, description="Times that alignment goes through its dataset.")] = 1
    learning_rate: Annotated[float, Field(gt=0, le=1, description="Peak learning rate of the projector.")] = 1.0e-3
    batch: Annotated[AlignmentBatch, Field(description="Batch sizes.")] = AlignmentBatch()
