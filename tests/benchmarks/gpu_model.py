"""What is measured on a GPU: LLaVA 7B's shape with random weights. Another shape only tries the benchmark out."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from llava_api.run_config import RunConfig
from llava_trainer.gang.world import World
from llava_trainer.training.model_under_training import ModelUnderTraining, build_model
from llava_trainer.training.phase import phase_of
from tests.trainer.trainings import configure

FIRST_TEXT_ID = 10


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Model, batch and how long is measured."""

    device: torch.device = field(default_factory=lambda: torch.device("cuda", 0))
    layers: int = 32
    hidden: int = 4096
    intermediate: int = 11008
    heads: int = 32
    vocabulary: int = 32_064
    tower_layers: int = 24
    tower_hidden: int = 1024
    image_px: int = 336
    patch_px: int = 14
    rank: int = 128
    rows: int = 16
    """The recipe's micro-batch; fewer where that many do not fit."""
    length: int = 2048
    warm_up_steps: int = 3
    timed_steps: int = 10
    rounds: int = 6
    """Turns of each side over LLaVA's mixture of lengths."""

    @property
    def image_token(self) -> int:
        return self.vocabulary - 64

    @property
    def image_tokens(self) -> int:
        return (self.image_px // self.patch_px) ** 2

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32


def write_model(folder: Path, bench: Bench) -> None:
    """Write the random model (14 GB in bf16 at 7B), made on the device."""
    text = LlamaConfig(
        vocab_size=bench.vocabulary, hidden_size=bench.hidden, intermediate_size=bench.intermediate,
        num_hidden_layers=bench.layers, num_attention_heads=bench.heads, max_position_embeddings=2 * bench.length,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=bench.tower_hidden, intermediate_size=4 * bench.tower_hidden, num_hidden_layers=bench.tower_layers,
        num_attention_heads=max(1, bench.tower_hidden // 64), image_size=bench.image_px, patch_size=bench.patch_px,
        projection_dim=768,
    )  # fmt: skip
    config = LlavaConfig(
        text_config=text, vision_config=vision, image_token_id=bench.image_token, image_seq_length=bench.image_tokens,
        tie_word_embeddings=False,
    )  # fmt: skip
    with bench.device:
        model = LlavaForConditionalGeneration._from_config(config, dtype=bench.dtype)
    model.save_pretrained(folder)
    del model
    empty_cache()


def configure_training(root: Path, bench: Bench, *, rows: int, **training: Any) -> RunConfig:
    """A run of the recipe's LoRA on the model in ``root``/base; ``training`` changes it."""
    lora = {"rank": bench.rank, "alpha": 2 * bench.rank, "dropout": 0.05}
    batch = {"perDevice": rows, "global": rows}
    return configure(
        root, root / "base", training={"lora": lora, "batch": batch, "maxLength": bench.length, **training},
        workers={"device": bench.device.type},
    )  # fmt: skip


@contextmanager
def training_model(config: RunConfig, world: World, **settings: Any) -> Iterator[ModelUnderTraining]:
    """The trainer's own model and engine, and their memory back when the context is left."""
    model = build_model(config, phase_of(config), world, **settings)
    try:
        yield model
    finally:
        model.engine.destroy()
        del model
        empty_cache()


def empty_cache() -> None:
    """Give PyTorch's memory back to the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def synchronize(device: torch.device) -> None:
    """Wait for what the device has been given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
