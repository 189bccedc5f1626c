"""Samples as long as LLaVA's own, tower included: real tokens a second of the trainer beside the plain way."""

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration

from llava_api.model_facts import ModelFacts
from llava_trainer.data.collate import Item
from llava_trainer.gang.world import World
from llava_trainer.training.batch_plan import BatchPlan
from llava_trainer.training.flops import Positions, count_flops, positions_of_rows, positions_of_samples
from tests.benchmarks.gpu_model import Bench, configure_training, empty_cache, training_model
from tests.benchmarks.mixture import draw_shapes, max_length, sizes_of
from tests.benchmarks.plain import add_plain_adapter
from tests.benchmarks.sides import Ours, Piece, Plain, Side, make_items, plain_items

GOAL = 2.0
"""Real tokens a second of the best way without recomputation or with it, in those of the plain way."""
_ROWS_A_TURN = 4
"""Micro-batches of a turn."""


def mixture_table(root: Path, bench: Bench, world: World, facts: ModelFacts, peak: float | None) -> Iterator[str]:
    """Lines of the table: the plain way first, then ours, each with a warm-up turn that does not count."""
    limit = max_length(bench.image_tokens)
    turn = bench.rows * _ROWS_A_TURN
    shapes = draw_shapes(max(256, (bench.rounds + 1) * turn), seed=1, image_tokens=bench.image_tokens)
    items = make_items(shapes, bench.image_token, image_px=bench.image_px, last_id=bench.image_token - 1)
    random_order = BatchPlan(
        sizes=sizes_of(shapes), global_batch=turn, per_device_batch=bench.rows, max_length=limit, world_size=1,
        epochs=1, seed=0, grouping="none", packing=False,
    )  # fmt: skip
    grouped = dataclasses.replace(random_order, grouping="modality")
    yield f"LLaVA's mixture of lengths, {bench.rounds} turns of {turn} samples, micro-batches of {bench.rows}:"
    yield "| | real tokens/s | against the plain way | MFU | HFU |"
    yield "| --- | --- | --- | --- | --- |"
    plain_speed = None
    for name, plan, checkpointing, pieces in _run_all(root, bench, world, items, random_order, grouped):
        if isinstance(pieces, str):
            yield f"| {name} | {pieces} | | | |"
            continue
        seconds = sum(piece.seconds for piece in pieces)
        speed = sum(piece.tokens for piece in pieces) / seconds
        plain_speed = plain_speed or speed
        steps = range(1, bench.rounds + 1)
        real = [positions_of_samples(plan.sizes, plan.batch(step)) for step in steps]
        model = sum(count_flops(facts, "lora", one, rank=bench.rank).model for one in real)
        hardware = sum(
            count_flops(facts, "lora", one, rank=bench.rank, gradient_checkpointing=checkpointing).hardware
            for step in steps
            for one in computed_positions(plan, step)
        )
        shares = " | ".join(f"{count / seconds / peak:.1%}" if peak else "-" for count in (model, hardware))
        yield f"| {name} | {speed:,.0f} | {speed / plain_speed:.2f} | {shares} |"
    yield f"The goal is {GOAL:g} times the plain way's."


def computed_positions(plan: BatchPlan, step: int) -> Iterator[Positions]:
    """What is computed in each micro-batch of ``step``: rows filled up to the longest, packed ones sample by sample."""
    for rows in plan.rank_batch(step, 0):
        samples = [index for row in rows for index in row]
        lengths = [[int(plan.sizes.tokens[index]) for index in row] for row in rows]
        longest = max(sum(row) for row in lengths)
        if plan.packing:
            computed = [length for row in lengths for length in (*row, longest - sum(row))]
        else:
            computed = [longest] * len(rows)
        yield positions_of_rows(
            computed, images=int(plan.sizes.images[samples].sum()),
            supervised=int(plan.sizes.supervised[samples].sum()),
        )  # fmt: skip


def _run_all(
    root: Path, bench: Bench, world: World, items: list[Item], random_order: BatchPlan, grouped: BatchPlan
) -> Iterator[tuple[str, BatchPlan, bool, list[Piece] | str]]:
    """Name, plan, whether layers are computed again, and what each turn took, or why there is nothing."""
    yield "the plain way", random_order, True, _run_plain(root, bench, items, random_order)
    for plan, checkpointing in ((grouped, True), (dataclasses.replace(grouped, packing=True), True), (grouped, False)):
        name = f"ours, {'packed' if plan.packing else 'grouped'}, {'' if checkpointing else 'no '}checkpointing"
        config = configure_training(
            root, bench, rows=bench.rows, packing=plan.packing, gradientCheckpointing=checkpointing
        )
        with training_model(config, world) as model:
            side = Ours(
                model=model, items=items, plan=plan, pad_token_id=0, image_token_id=bench.image_token,
                device=bench.device,
            )  # fmt: skip
            yield name, plan, checkpointing, _run(side, bench)


def _run_plain(root: Path, bench: Bench, items: list[Item], plan: BatchPlan) -> list[Piece] | str:
    model = LlavaForConditionalGeneration.from_pretrained(root / "base", dtype=bench.dtype)
    tuned = add_plain_adapter(model, rank=bench.rank, alpha=2 * bench.rank, dropout=0.05)
    side = Plain(
        tuned=tuned, items=plain_items(items), plan=plan, pad_token_id=0, gradient_checkpointing=True,
        on_gpu=bench.device.type == "cuda",
    )  # fmt: skip
    try:
        return _run(side, bench)
    finally:
        del model, tuned, side
        empty_cache()


def _run(side: Side, bench: Bench) -> list[Piece] | str:
    """Turns after the first, which warms up; or what stands against it."""
    random.seed(0)
    try:
        return [side.run(step) for step in range(bench.rounds + 1)][1:]
    except torch.OutOfMemoryError:
        return "out of memory"
