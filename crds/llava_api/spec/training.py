"""How to train, in both phases."""

from typing import Annotated, Literal, get_args

from pydantic import Field, WithJsonSchema

from llava_api.base import Strict
from llava_api.schema import DESCRIBED_AS
from llava_api.spec.dataset import Dataset
from llava_api.spec.tracking import Tracking
from llava_api.spec.validation import EarlyStopping, KeepBest, TrainingValidation

LoraTarget = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""A linear layer of each of the language model's layers, as transformers and PEFT name it."""
LORA_TARGETS: tuple[LoraTarget, ...] = get_args(LoraTarget)


class Lora(Strict):
    """Low-rank adaptation of the language model's linear layers."""

    rank: Annotated[int, Field(ge=1, le=1024, description="Rank of the update matrices.")] = 128
    alpha: Annotated[int, Field(ge=1, le=4096, description="Scale: the update is multiplied by alpha / rank.")] = 256
    dropout: Annotated[
        float, Field(ge=0, lt=1, description="Share of the adapter's inputs that is dropped in training; 0 = off.")
    ] = 0.05
    targets: Annotated[
        tuple[LoraTarget, ...],
        Field(
            min_length=1,
            max_length=len(LORA_TARGETS),
            description="Which linear layers of each of the language model's layers get an adapter. Fewer take less "
            "memory and learn less.",
            json_schema_extra={"x-kubernetes-list-type": "set"},
        ),
    ] = LORA_TARGETS
    rs_lora: Annotated[
        bool,
        Field(
            description="Scale the update by alpha / sqrt(rank) instead (rank-stabilised LoRA), so that a large rank "
            "is not scaled to nothing. With it alpha is chosen smaller: at rank 128, 22 scales as 256 does without."
        ),
    ] = False


_PerDevice = Annotated[int, Field(ge=1, le=1024, description="Samples that one training process holds at a time.")]
MAX_GLOBAL_BATCH = 65536
AUTO_PATTERN = "^auto$"
_NumSamples = Annotated[int, Field(ge=1, le=MAX_GLOBAL_BATCH)]
_GLOBAL = (
    "Samples of one optimiser step over all processes; gradient accumulation follows from it. Must be a multiple of "
    "perDevice x workers.replicas x max(workers.gpus, 1)."
)


class Batch(Strict):
    """Batch sizes, in samples."""

    per_device: _PerDevice = 8
    global_: Annotated[
        _NumSamples | Literal["auto"],
        Field(
            alias="global",
            description=f"{_GLOBAL} `auto`: prepare chooses it by the data, once and for the whole run: the largest "
            "with which training takes 100 optimiser steps, never above LLaVA's 128, and one that the processes share "
            "out evenly; status.plan.globalBatch says which, and why.",
        ),
        WithJsonSchema(
            {
                "x-kubernetes-int-or-string": True, "minimum": 1, "maximum": MAX_GLOBAL_BATCH,
                "pattern": AUTO_PATTERN, "maxLength": 4,
            }
        ),
    ] = 128  # fmt: skip

    @property
    def num_samples(self) -> int:
        """``global`` as a number.

        Raises:
            ValueError: it is still auto; ``llava_api.optimizer_steps`` puts in what has been chosen.
        """
        if self.global_ == "auto":
            raise ValueError("batch.global is auto, and nothing has been chosen for it yet: prepare does")
        return self.global_


class AlignmentBatch(Batch):
    """The same, with the recipe of phase 1 for what is left out."""

    per_device: _PerDevice = 32
    global_: Annotated[_NumSamples, Field(alias="global", description=_GLOBAL)] = 256


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


class Optimizer(Strict):
    """AdamW's constants. The defaults are PyTorch's, with which LLaVA trains."""

    beta1: Annotated[float, Field(ge=0, lt=1, description="Decay of the running mean of gradients.")] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1, description="Decay of the running mean of their squares.")] = 0.999
    epsilon: Annotated[
        float, Field(gt=0, le=1, description="Added to the root of the latter, by which the former is divided.")
    ] = 1.0e-8


class TowerTraining(Strict):
    """Whether and how the vision tower learns."""

    mode: Annotated[
        Literal["frozen", "full"],
        Field(
            description="`frozen`: it stays as it is, as in LLaVA v1.5; `full`: its weights learn, as in LLaVA-NeXT, "
            "up to the layer whose features are taken. That needs more memory and more time, and the result is served "
            "merged: an adapter that brings a tower is PEFT's alone."
        ),
    ] = "frozen"
    learning_rate: Annotated[
        float, Field(gt=0, le=1, description="Peak learning rate of the tower. Not read where it is frozen.")
    ] = 2.0e-6


class Training(Strict):
    """How to train. The defaults are LLaVA v1.5's LoRA recipe."""

    method: Annotated[
        Literal["lora", "qlora", "full", "none"],
        Field(
            description="`lora`: adapters on the language model; `qlora`: the same on a language model quantised to 4 "
            "bits; `full`: every weight of the language model; `none`: nothing after alignment. The projector is "
            "trained whole with the first three unless it is frozen; the vision tower is where visionTower says so."
        ),
    ] = "lora"
    lora: Annotated[Lora, Field(description="The adapter's shape.")] = Lora()
    quantization: Annotated[
        Quantization | None, Field(description="How the language model is quantised. Only with method qlora.")
    ] = None
    projector: Annotated[
        Literal["train", "frozen"],
        Field(
            description="Whether the projector learns beside the language model. With `frozen` the adapter holds "
            "nothing but LoRA, as vLLM loads it; it refuses one that brings a projector. Alignment trains it in any "
            "case."
        ),
    ] = "train"
    vision_tower: Annotated[
        TowerTraining,
        Field(description="Whether and how the vision tower learns beside the language model; never in alignment."),
    ] = TowerTraining()
    epochs: Annotated[int, Field(ge=1, le=1000, description="Times that training goes through the dataset.")] = 1
    max_steps: Annotated[
        int | None,
        Field(
            ge=1,
            le=10_000_000,
            description="Optimiser steps that training takes, in place of epochs, which is not read then: it ends "
            "within an epoch, or goes through the dataset as often as it takes. Left out: epochs. Alignment goes by "
            "its own epochs.",
        ),
    ] = None
    learning_rate: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            description="Peak learning rate of adapter or language model. Left out: 2e-4 with lora and qlora, 2e-5 "
            "with full.",
        ),
    ] = None
    projector_learning_rate: Annotated[
        float, Field(gt=0, le=1, description="Peak learning rate of the projector. Not read where it is frozen.")
    ] = 2.0e-5
    minimum_learning_rate: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Where a cosine or a line ends, instead of at 0; at most learningRate. The projector's rate "
            "falls by the same share. Alignment's falls to 0.",
        ),
    ] = 0.0
    optimizer: Annotated[Optimizer, Field(description="AdamW's constants, in alignment too.")] = Optimizer()
    weight_decay: Annotated[float, Field(ge=0, le=1, description="AdamW's decoupled weight decay; 0 = off.")] = 0.0
    warmup_ratio: Annotated[
        float, Field(ge=0, le=1, description="Share of the steps over which the learning rate rises from 0; 0 = off.")
    ] = 0.03
    scheduler: Annotated[
        Literal["cosine", "linear", "constant"],
        Field(
            description="Course of the learning rate after warm-up: down to minimumLearningRate by a cosine or a line, "
            "or constant."
        ),
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
        Field(description="Attention implementation. `auto` is, on GPUs in bf16, flash_attention_2 where it is "
                          "installed, else PyTorch's own: sdpa, and for packed rows varlen_attn; elsewhere sdpa. "
                          "`sdpa` gives packed rows a mask of length x length bytes each. `eager` takes much more "
                          "memory: 12 bytes for each head and pair of tokens in a row."),
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
            "caption as the answer. Nothing of it is held out: validation.fraction is not read.",
            json_schema_extra={DESCRIBED_AS: "spec.dataset"},
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
