"""The two sides of the comparison, each learning from the same samples: the trainer's own parts, and the plain way."""

import io
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from peft import PeftModel
from transformers import LlavaForConditionalGeneration

from llava_api.run_config import RunConfig
from llava_trainer.data.collate import Item, collate, collate_packed
from llava_trainer.gang.world import World
from llava_trainer.training.batch_plan import BatchPlan
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


def make_items(shapes: Sequence[Shape], image_token_id: int) -> list[Item]:
    """Samples of random tokens, and of a few random images."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((8, 1, 3, IMAGE_PX, IMAGE_PX)).astype(np.float32)
    return [
        (
            encode_shape(shape, image_token_id=image_token_id, first_id=600, last_id=VOCABULARY - 1, seed=index),
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

    def run(self, step: int) -> Piece:
        engine = self.model.engine
        began, began_cpu = time.perf_counter(), time.process_time()
        tokens = 0
        for rows in self.plan.rank_batch(step, 0):
            chosen = [[self.items[index] for index in row] for row in rows]
            if self.plan.packing:
                batch = collate_packed(chosen, self.pad_token_id)
            else:
                batch = collate([item for row in chosen for item in row], self.pad_token_id)
            tokens += sum(encoded.num_tokens for row in chosen for encoded, _ in row)
            engine.backward(engine(**batch) * 1e-3, scale_wrt_gas=False)
        engine.step()
        return Piece(seconds=time.perf_counter() - began, cpu_s=time.process_time() - began_cpu, tokens=tokens)


@dataclass(frozen=True, kw_only=True)
class Plain:
    """transformers' Trainer, with the samples of each step in the order of ``plan``'s micro-batches."""

    tuned: PeftModel
    items: Sequence[PlainItem]
    plan: BatchPlan
    pad_token_id: int

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
