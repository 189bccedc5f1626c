"""LLaVA 7B's shape on this machine's GPU: speed against the card's peak, and memory against the plan.

Random weights, the recipe's LoRA (rank 128) and micro-batch (16 x 2,048 tokens, one image a row, a quarter
supervised), gradient checkpointing, bf16. What runs is the trainer's own: model loading, objective, DeepSpeed engine.
"""

import gc
import importlib.util
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from llava_api.memory import Workload, plan_memory
from llava_api.model_facts import ModelFacts
from llava_trainer.data.collate import Batch
from llava_trainer.data.encode import IGNORED
from llava_trainer.data.model_facts import read_model_facts
from llava_trainer.gang.world import World, join
from llava_trainer.model.objective import find_predicting
from llava_trainer.training.flops import count_flops, peak_of, positions_of_rows
from llava_trainer.training.model_under_training import build_model
from llava_trainer.training.phase import phase_of
from tests.trainer.trainings import configure, environment_of_one

ROWS, LENGTH, RANK = 16, 2048, 128
WARM_UP_STEPS, TIMED_STEPS = 3, 10
_IMAGE_TOKEN, _IMAGE_TOKENS, _IMAGE_PX = 32_000, 576, 336


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one way of training reached."""

    seconds_a_step: float
    peak_bytes: int
    """Most that PyTorch's allocator had reserved: what the plan's total, with its allowances, must cover."""


def tables() -> Iterator[str]:
    """One table over methods and attention implementations."""
    device = torch.device("cuda", 0)
    name = torch.cuda.get_device_name(device)
    peak = peak_of(name)
    yield f"{name}, CUDA {torch.version.cuda}; LLaVA 7B's shape, LoRA of rank {RANK}, {ROWS} x {LENGTH:,} tokens in"
    yield "bf16, gradient checkpointing" + (":" if peak else "; the card's peak is not known:")
    yield ""
    yield "| | tokens/s | model FLOPs used | hardware FLOPs used | peak memory | plan |"
    yield "| --- | --- | --- | --- | --- | --- |"
    with tempfile.TemporaryDirectory() as folder, environment_of_one(_free_port()):
        world = join("cuda")
        write_model(Path(folder) / "base", device)
        facts = read_model_facts(Path(folder) / "base")
        for method, attention in ways():
            measured = measure(Path(folder), method, attention, world)
            yield _row(f"{method}, {attention}", facts, _work(method, attention), measured, peak)


def ways() -> list[tuple[str, str]]:
    """Methods with the attention implementations that are there."""
    has_flash = importlib.util.find_spec("flash_attn") is not None
    attentions = ["flash_attention_2", "sdpa"] if has_flash else ["sdpa"]
    return [(method, attention) for method in ("lora", "qlora") for attention in attentions]


def write_model(folder: Path, device: torch.device) -> None:
    """Write a random LLaVA 7B in bf16 (14 GB), made on the device."""
    text = LlamaConfig(
        vocab_size=32_064, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        max_position_embeddings=4096,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=_IMAGE_PX,
        patch_size=14, projection_dim=768,
    )  # fmt: skip
    config = LlavaConfig(
        text_config=text, vision_config=vision, image_token_id=_IMAGE_TOKEN, image_seq_length=_IMAGE_TOKENS,
        tie_word_embeddings=False,
    )  # fmt: skip
    with device:
        model = LlavaForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    del model
    _empty()


def measure(root: Path, method: str, attention: str, world: World) -> Measured:
    """Train on one and the same micro-batch, an optimiser step after each."""
    config = configure(
        root, root / "base",
        training={
            "method": method, "attention": attention, "lora": {"rank": RANK, "alpha": 2 * RANK, "dropout": 0.05},
            "batch": {"perDevice": ROWS, "global": ROWS}, "maxLength": LENGTH, "gradientCheckpointing": True,
        },
        workers={"device": "cuda"},
    )  # fmt: skip
    model = build_model(config, phase_of(config), world)
    batch = make_batch(world.device)
    # Loading and quantising may take more for a moment than training does; the plan has that apart.
    torch.cuda.reset_peak_memory_stats(world.device)
    for step in range(WARM_UP_STEPS + TIMED_STEPS):
        if step == WARM_UP_STEPS:
            torch.cuda.synchronize()
            began = time.perf_counter()
        model.engine.backward(model.engine(**batch) * 1e-4, scale_wrt_gas=False)
        model.engine.step()
    torch.cuda.synchronize()
    measured = Measured(
        seconds_a_step=(time.perf_counter() - began) / TIMED_STEPS,
        peak_bytes=torch.cuda.max_memory_reserved(world.device),
    )
    model.engine.destroy()
    del model
    _empty()
    return measured


def make_batch(device: torch.device) -> Batch:
    """Full rows of random tokens, an image in each, the last quarter supervised."""
    ids = torch.randint(10, _IMAGE_TOKEN, (ROWS, LENGTH))
    ids[:, 35 : 35 + _IMAGE_TOKENS] = _IMAGE_TOKEN
    labels = torch.full_like(ids, IGNORED)
    labels[:, -LENGTH // 4 :] = ids[:, -LENGTH // 4 :]
    batch = {
        "input_ids": ids,
        "labels": labels,
        "attention_mask": torch.ones_like(ids),
        "predicting": find_predicting(labels),
        "pixel_values": torch.randn(ROWS, 3, _IMAGE_PX, _IMAGE_PX, dtype=torch.bfloat16),
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _work(method: Any, attention: str) -> Workload:
    return Workload(
        method=method, rows=ROWS, length=LENGTH, pictures=ROWS, supervised=ROWS * LENGTH // 4, rank=RANK,
        dropout=0.05, number_bytes=2, gradient_checkpointing=True,
        # Rows are full: nothing is masked.
        masked=False,
    )  # fmt: skip


def _row(name: str, facts: ModelFacts, work: Workload, measured: Measured, peak: float | None) -> str:
    positions = positions_of_rows([work.length] * work.rows, images=work.pictures, supervised=work.supervised)
    flops = count_flops(
        facts, work.method, positions, rank=work.rank, gradient_checkpointing=work.gradient_checkpointing
    )
    shares = (
        f"{count / measured.seconds_a_step / peak:.1%}" if peak else "-" for count in (flops.model, flops.hardware)
    )
    cells = (
        name, f"{work.tokens / measured.seconds_a_step:,.0f}", *shares, f"{measured.peak_bytes / 2**30:.1f} GiB",
        f"{plan_memory(facts, work).total / 2**30:.1f} GiB",
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _empty() -> None:
    gc.collect()
    torch.cuda.empty_cache()
