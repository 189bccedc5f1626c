"""One and the same full micro-batch, step after step: tokens a second, the share of the card's peak, and memory."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from llava_api.memory import Method, Workload, plan_memory
from llava_api.model_facts import ModelFacts
from llava_trainer.data.collate import Item
from llava_trainer.data.encode import IGNORED, Encoded
from llava_trainer.gang.world import World
from llava_trainer.model.attention import attention_of
from llava_trainer.training.batches import MicroBatch, lay_out
from llava_trainer.training.flops import Positions, count_flops, positions_of_rows
from tests.benchmarks.gpu_model import FIRST_TEXT_ID, Bench, configure_training, synchronize, training_model

SAMPLES_A_PACKED_ROW = 3
"""Each with an image of 576 tokens: what goes into 2,048."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to train."""

    method: Method = "lora"
    checkpointing: bool = True
    packing: bool = False
    attention: str = "auto"

    def __str__(self) -> str:
        rows = "packed" if self.packing else "one sample a row"
        return f"{self.method}, {rows}, {'' if self.checkpointing else 'no '}checkpointing"


WAYS = (
    Way(), Way(packing=True), Way(checkpointing=False), Way(checkpointing=False, packing=True), Way(method="qlora"),
    Way(packing=True, attention="sdpa"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one way of training reached."""

    seconds_a_step: float
    peak_bytes: int
    """Most that PyTorch's allocator had reserved: what the plan's total, with its allowances, must cover."""
    attention: str


def rows_table(root: Path, bench: Bench, world: World, facts: ModelFacts, peak: float | None) -> Iterator[str]:
    """Lines of the table over all ways."""
    yield f"Rows of {bench.length:,} tokens, a quarter supervised, {bench.image_tokens} of each sample its image's:"
    yield "| | attention | batch | tokens/s | MFU | HFU | peak memory | plan |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for way in WAYS:
        work = largest_that_fits(bench, way, facts)
        try:
            measured = measure(root, bench, way, work.rows, world)
        except torch.OutOfMemoryError as error:
            yield f"| {way} | | {work.rows} x {bench.length:,} | out of memory: {str(error)[:80]} | | | | |"
            continue
        yield _row(bench, way, work, facts, measured, peak)


def largest_that_fits(bench: Bench, way: Way, facts: ModelFacts) -> Workload:
    """The recipe's rows, or half as many until the plan says that they fit the GPU."""
    work = Workload(
        method=way.method, rows=bench.rows, length=bench.length, pictures=bench.rows * _samples_a_row(way),
        supervised=bench.rows * bench.length // 4, rank=bench.rank, dropout=0.05,
        number_bytes=2 if bench.dtype == torch.bfloat16 else 4, gradient_checkpointing=way.checkpointing,
        masked=way.packing and way.attention == "sdpa",
    )  # fmt: skip
    if bench.device.type != "cuda":
        return work
    available = torch.cuda.get_device_properties(bench.device).total_memory
    while work.rows > 1 and plan_memory(facts, work).total > available:
        halves = {name: getattr(work, name) // 2 for name in ("rows", "pictures", "supervised")}
        work = replace(work, **halves)
    return work


def measure(root: Path, bench: Bench, way: Way, rows: int, world: World) -> Measured:
    """Train on one micro-batch, an optimiser step after each."""
    config = configure_training(
        root, bench, rows=rows, method=way.method, attention=way.attention, packing=way.packing,
        gradientCheckpointing=way.checkpointing,
    )  # fmt: skip
    with training_model(config, world) as model:
        batch = make_batch(bench, way, rows).to(bench.device)
        if bench.device.type == "cuda":
            # Loading and quantising may take more for a moment than training does; the plan has that apart.
            torch.cuda.reset_peak_memory_stats(bench.device)
        for step in range(bench.warm_up_steps + bench.timed_steps):
            if step == bench.warm_up_steps:
                synchronize(bench.device)
                began = time.perf_counter()
            model.engine.backward(model.engine(**batch) * 1e-4, scale_wrt_gas=False)
            model.engine.step()
        synchronize(bench.device)
        return Measured(
            seconds_a_step=(time.perf_counter() - began) / bench.timed_steps,
            peak_bytes=world.peak_gpu_memory_bytes,
            attention=attention_of(model.llava.config),
        )


def make_batch(bench: Bench, way: Way, rows: int) -> MicroBatch:
    """Full rows of random tokens, an image in each sample, the last quarter of it supervised."""
    number = _samples_a_row(way)
    lengths = [bench.length // number] * (number - 1) + [bench.length - bench.length // number * (number - 1)]
    rng = np.random.default_rng(0)
    return lay_out(
        [[_make_item(bench, length, rng) for length in lengths] for _ in range(rows)],
        pad_token_id=0, image_token_id=bench.image_token, packing=way.packing, dtype=bench.dtype,
        pinned=bench.device.type == "cuda",
    )  # fmt: skip


def _make_item(bench: Bench, length: int, rng: np.random.Generator) -> Item:
    ids = [int(token) for token in rng.integers(FIRST_TEXT_ID, bench.image_token, length)]
    ids[5 : 5 + bench.image_tokens] = [bench.image_token] * bench.image_tokens
    labels = [IGNORED] * (length - length // 4) + ids[length - length // 4 :]
    encoded = Encoded(
        input_ids=tuple(ids), labels=tuple(labels), images=("-",), full_length=length, first_answer_length=length,
        num_characters=0,
    )  # fmt: skip
    return encoded, rng.standard_normal((1, 3, bench.image_px, bench.image_px)).astype(np.float32)


def _samples_a_row(way: Way) -> int:
    return SAMPLES_A_PACKED_ROW if way.packing else 1


def _row(
    bench: Bench, way: Way, work: Workload, facts: ModelFacts, measured: Measured, peak: float | None
) -> str:  # fmt: skip
    samples = [bench.length // _samples_a_row(way)] * (work.rows * _samples_a_row(way))
    # Under a mask all pairs of a row are computed, whosoever they are.
    computed = [bench.length] * work.rows if work.masked else samples

    def positions(lengths: list[int]) -> Positions:
        return positions_of_rows(lengths, images=work.pictures, supervised=work.supervised)

    model = count_flops(facts, way.method, positions(samples), rank=bench.rank).model
    hardware = count_flops(
        facts, way.method, positions(computed), rank=bench.rank, gradient_checkpointing=way.checkpointing
    ).hardware
    shares = (f"{count / measured.seconds_a_step / peak:.1%}" if peak else "-" for count in (model, hardware))
    cells = (
        str(way), measured.attention, f"{work.rows} x {bench.length:,}",
        f"{work.tokens / measured.seconds_a_step:,.0f}", *shares, f"{measured.peak_bytes / 2**30:.1f} GiB",
        f"{plan_memory(facts, work).total / 2**30:.1f} GiB",
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"
