"""The two sides of the comparison, each learning from the same samples: the trainer's own parts, and the plain way."""

import io
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from peft import PeftModel
from transformers import LlavaForConditionalGeneration

from llava_api.run_config import RunConfig
from llava_trainer.data.collate import Item
from llava_trainer.gang.world import World
from llava_trainer.training.batch_plan import BatchPlan
from llava_trainer.training.batches import lay_out
from llava_trainer.training.model_under_training import ModelUnderTraining, build_model
from llava_trainer.training.phase import phase_of
from tests.benchmarks.mixture import Shape, encode_shape
from tests.benchmarks.model import IMAGE_PX, LORA_RANK, VOCABULARY
from tests.benchmarks.plain import PlainItem, PlainSettings, add_plain_adapter, train_plainly

LEARNING_RATE = 2e-4


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one step took."""

    seconds: float
    cpu_s: float
    """Processor time of all threads: what others do on the machine hardly changes it."""
    tokens: int
    """Real ones."""


class Side(Protocol):
    """Something that can be timed a step at a time."""

    def run(self, step: int) -> Piece:
        """Learn from the global batch of ``step``; collating it is part of it, reading images is not."""


def make_items(
    shapes: Sequence[Shape], image_token_id: int, *, image_px: int = IMAGE_PX, last_id: int = VOCABULARY - 1
) -> list[Item]:
    """Samples of random tokens, and of a few random images."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((8, 1, 3, image_px, image_px)).astype(np.float32)
    return [
        (
            encode_shape(shape, image_token_id=image_token_id, first_id=600, last_id=last_id, seed=index),
            images[index % len(images)] if shape.image_tokens else None,
        )
        for index, shape in enumerate(shapes)
    ]


@dataclass(frozen=True, kw_only=True)
class Ours:
    """The trainer's objective under DeepSpeed, with batches by ``plan``."""

    model: ModelUnderTraining
    items: Sequence[Item]
    plan: BatchPlan
    pad_token_id: int
    image_token_id: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def run(self, step: int) -> Piece:
        engine = self.model.engine
        began, began_cpu = time.perf_counter(), time.process_time()
        tokens = 0
        for rows in self.plan.rank_batch(step, 0):
            micro_batch = lay_out(
                [[self.items[index] for index in row] for row in rows], pad_token_id=self.pad_token_id,
                image_token_id=self.image_token_id, packing=self.plan.packing, dtype=self.model.dtype,
                pinned=self.device.type == "cuda",
            )  # fmt: skip
            tokens += micro_batch.num_tokens
            engine.backward(engine(**micro_batch.to(self.device)) * 1e-3, scale_wrt_gas=False)
        engine.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return Piece(seconds=time.perf_counter() - began, cpu_s=time.process_time() - began_cpu, tokens=tokens)


@dataclass(frozen=True, kw_only=True)
class Plain:
    """transformers' Trainer, with the samples of each step in the order of ``plan``'s micro-batches."""

    tuned: PeftModel
    items: Sequence[PlainItem]
    plan: BatchPlan
    pad_token_id: int
    gradient_checkpointing: bool = False
    on_gpu: bool = False

    def run(self, step: int) -> Piece:
        order = [index for rows in self.plan.rank_batch(step, 0) for row in rows for index in row]
        settings = PlainSettings(
            learning_rate=LEARNING_RATE,
            projector_learning_rate=LEARNING_RATE,
            per_device_batch=self.plan.per_device_batch,
            accumulation=self.plan.global_batch // self.plan.per_device_batch,
            pad_token_id=self.pad_token_id,
            scheduler="constant",
            warmup_ratio=0.0,
            gradient_checkpointing=self.gradient_checkpointing,
            bf16=self.on_gpu,
            extra={"use_cpu": False, "dataloader_pin_memory": True} if self.on_gpu else {},
        )
        # Trainer prints what it logs.
        with redirect_stdout(io.StringIO()):
            (done,) = train_plainly(self.tuned, self.items.__getitem__, [order], settings)
        tokens = sum(len(self.items[index]["input_ids"]) for index in order)
        return Piece(seconds=done.ended_s - done.began_s, cpu_s=done.cpu_s, tokens=tokens)


def build_ours(config: RunConfig, world: World) -> ModelUnderTraining:
    """the 27 M model with its adapter, under DeepSpeed."""
    return build_model(config, phase_of(config), world)


def build_plain(model_dir: Path) -> PeftModel:
    """The same for the plain way."""
    model = LlavaForConditionalGeneration.from_pretrained(model_dir, dtype=torch.float32)
    return add_plain_adapter(model, rank=LORA_RANK, alpha=2 * LORA_RANK, dropout=0.05)


def plain_items(items: Sequence[Item]) -> list[PlainItem]:
    """The same samples as the plain way takes them."""
    return [
        {
            "input_ids": list(encoded.input_ids),
            "labels": list(encoded.labels),
            "pixel_values": None if pixels is None else torch.from_numpy(pixels[0]),
        }
        for encoded, pixels in items
    ]
