"""``make bench-trainer``: the trainer against the plain way, side by side in one run; ``--gpu`` for LLaVA 7B's shape.

The sides take turns a step at a time, so that whatever else the machine does holds both up alike; what is compared is
the ratio within a turn. Reading images is left out of the comparison, where it would speak for the trainer, and
measured by itself.
"""

import argparse
import dataclasses
import logging
import platform
import random
import statistics
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version

import torch
import transformers

from llava_api.run_config import RunConfig
from llava_trainer.data.processor import load_processor
from llava_trainer.gang.world import World
from llava_trainer.training.batch_plan import BatchPlan
from llava_trainer.training.epoch_order import Grouping
from tests.benchmarks import head
from tests.benchmarks.loading import loading_table
from tests.benchmarks.mixture import Shape, draw_shapes, max_length, sizes_of
from tests.benchmarks.model import IMAGE_TOKENS
from tests.benchmarks.sides import (
    Ours,
    Piece,
    Plain,
    Side,
    build_ours,
    build_plain,
    make_items,
    plain_items,
)
from tests.benchmarks.workplace import PER_DEVICE, workplace

RECIPE_BATCH = 128
PLAIN = "plain"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="LLaVA 7B's shape on this machine's GPU instead")
    parser.add_argument("--rounds", type=int, default=8, help="turns that each side gets")
    parser.add_argument("--batch", type=int, default=64, help="samples of a turn")
    parser.add_argument("--only", choices=("filling", "speed", "head", "loading"), help="one table alone")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    print(describe_machine())
    if arguments.gpu:
        if not torch.cuda.is_available():
            parser.error("--gpu needs an NVIDIA GPU that torch can use; there is none here")
        from tests.benchmarks import gpu

        for line in gpu.tables():
            print(line, flush=True)
        return
    tables = {
        "filling": filling_table,
        "head": head_table,
        "speed": lambda: speed_table(arguments.rounds, arguments.batch),
        "loading": loading_table,
    }
    for name, table in tables.items():
        if arguments.only in (None, name):
            print()
            for line in table():
                print(line, flush=True)


def describe_machine() -> str:
    """Versions and processors, for the figures' caption."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "deepspeed"))
    return f"Python {platform.python_version()}, {packages}; {torch.get_num_threads()} threads"


def make_plan(
    shapes: Sequence[Shape],
    *,
    limit: int,
    global_batch: int,
    grouping: Grouping,
    packing: bool = False,
    world_size: int = 1,
) -> BatchPlan:
    """Batches of an epoch."""
    return BatchPlan(
        sizes=sizes_of(shapes), global_batch=global_batch, per_device_batch=PER_DEVICE, max_length=limit,
        world_size=world_size, epochs=1, seed=0, grouping=grouping, packing=packing,
    )  # fmt: skip


def real_fraction(plan: BatchPlan) -> float:
    """Share of computed positions that hold a token; processes that wait for the slowest count as computing."""
    real = computed = 0
    for step in range(plan.total_steps):
        rank_batches = [plan.rank_batch(step, rank) for rank in range(plan.world_size)]
        for side_by_side in zip(*rank_batches, strict=True):
            lengths = [[sum(int(plan.sizes.tokens[index]) for index in row) for row in rows] for rows in side_by_side]
            real += sum(sum(rows) for rows in lengths)
            computed += plan.world_size * max(len(rows) * max(rows, default=0) for rows in lengths)
    return real / computed


def filling_table() -> Iterator[str]:
    """How much of what is computed are tokens, at LLaVA's own lengths."""
    shapes = draw_shapes(8192, seed=0)
    yield f"Share of real tokens, batches of {RECIPE_BATCH} in micro-batches of {PER_DEVICE}, 8,192 samples:"
    yield "| batches | one process | eight, waiting for the slowest counted in |"
    yield "| --- | --- | --- |"
    ways: tuple[tuple[str, Grouping, bool], ...] = (
        ("at random", "none", False), ("by modality", "modality", False), ("by length", "length", False),
        ("packed, at random", "none", True), ("packed, by modality", "modality", True),
    )  # fmt: skip
    for name, grouping, packing in ways:
        fractions = [
            real_fraction(
                make_plan(
                    shapes,
                    limit=max_length(),
                    global_batch=RECIPE_BATCH,
                    grouping=grouping,
                    packing=packing,
                    world_size=world_size,
                )
            )
            for world_size in (1, 8)
        ]
        yield f"| {name} | {fractions[0]:.1%} | {fractions[1]:.1%} |"


def head_table() -> Iterator[str]:
    """Memory of the head."""
    yield f"Peak memory of the head, {head.TOKENS:,} tokens, vocabulary of {head.VOCABULARY:,}:"
    yield "| | plain way | all supervised | 25 % supervised |"
    yield "| --- | --- | --- | --- |"
    for dtype in (torch.float32, torch.bfloat16):
        plain = head.peak_bytes(dtype, fraction=None)
        fractions = [head.peak_bytes(dtype, fraction=fraction) for fraction in (1.0, 0.25)]
        cells = " | ".join(f"{peak / 2**20:,.0f} MiB, {peak / plain:.1%}" for peak in fractions)
        yield f"| {str(dtype).removeprefix('torch.')} | {plain / 2**20:,.0f} MiB | {cells} |"


def speed_table(rounds: int, batch: int) -> Iterator[str]:
    """Real tokens a second of both sides."""
    with workplace() as (config, world):
        pieces = run_rounds(make_sides(config, world, rounds, batch), rounds)
    yield f"Real tokens a second, {rounds} turns of {batch} samples in micro-batches of {PER_DEVICE}:"
    yield "| | tokens/s | against the plain way | by processor time | turn by turn, by processor time: median |"
    yield "| --- | --- | --- | --- | --- |"
    plain = pieces[PLAIN]
    for name, timed in pieces.items():
        turns = [
            speed([ours], by_cpu=True) / speed([theirs], by_cpu=True) for ours, theirs in zip(timed, plain, strict=True)
        ]
        yield (
            f"| {name} | {speed(timed):,.0f} | {speed(timed) / speed(plain):.2f} | "
            f"{speed(timed, by_cpu=True) / speed(plain, by_cpu=True):.2f} | "
            f"{statistics.median(turns):.2f} ({min(turns):.2f} to {max(turns):.2f}) |"
        )


def speed(pieces: Sequence[Piece], *, by_cpu: bool = False) -> float:
    """Real tokens a second over all of them."""
    seconds = sum(piece.cpu_s if by_cpu else piece.seconds for piece in pieces)
    return sum(piece.tokens for piece in pieces) / seconds


def make_sides(config: RunConfig, world: World, rounds: int, batch: int) -> dict[str, Side]:
    """Both sides with batches made in all ways, so that what each change gives is seen by itself."""
    # One turn more than is timed, since the first warms up; and enough to draw groups from.
    shapes = draw_shapes(max(1024, (rounds + 1) * batch), seed=1, image_tokens=IMAGE_TOKENS)
    processor = load_processor(config.model_dir, "pad")
    items = make_items(shapes, processor.image_token_id)
    model, tuned = build_ours(config, world), build_plain(config.model_dir)
    limit = max_length(IMAGE_TOKENS)
    random_order = make_plan(shapes, limit=limit, global_batch=batch, grouping="none")
    grouped = dataclasses.replace(random_order, grouping="modality")
    packed = dataclasses.replace(grouped, packing=True)

    def plain(plan: BatchPlan) -> Plain:
        return Plain(tuned=tuned, items=plain_items(items), plan=plan, pad_token_id=processor.pad_token_id)

    def ours(plan: BatchPlan) -> Ours:
        return Ours(
            model=model, items=items, plan=plan, pad_token_id=processor.pad_token_id,
            image_token_id=processor.image_token_id,
        )  # fmt: skip

    return {
        PLAIN: plain(random_order),
        "plain, grouped: what padding gives": plain(grouped),
        "ours, at random: what the head gives": ours(random_order),
        "ours, grouped": ours(grouped),
        "ours, packed": ours(packed),
    }


def run_rounds(sides: dict[str, Side], rounds: int) -> dict[str, list[Piece]]:
    """Let every side take its turn, in another order each round."""
    pieces: dict[str, list[Piece]] = {name: [] for name in sides}
    order = random.Random(0)
    for step in range(rounds + 1):
        for name in order.sample(list(sides), len(sides)):
            piece = sides[name].run(step)
            if step > 0:
                pieces[name].append(piece)
    return pieces


if __name__ == "__main__":
    main()
