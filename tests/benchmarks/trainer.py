"""``make bench-trainer``: the trainer against the plain way, side by side in one run; ``--gpu`` for LLaVA 7B's shape.

The sides take turns a step at a time, so that whatever else the machine does holds both up alike; what is compared is
the ratio within a turn. Reading pictures is left out of the comparison, where it would speak for the trainer, and
measured by itself.
"""

import argparse
import dataclasses
import logging
import platform
import random
import socket
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image

from llava_api.run_config import RunConfig
from llava_trainer.data.processing import load_processing
from llava_trainer.data.sample_file import SampleFile
from llava_trainer.data.samples import Sample, Source, Turn, write_samples
from llava_trainer.training.batches import BatchLoader
from llava_trainer.training.grouping import Grouping
from llava_trainer.training.plan import Plan
from llava_trainer.training.processes import Processes, join
from tests.benchmarks import head
from tests.benchmarks.mixture import Shape, draw_shapes, max_length, sizes_of
from tests.benchmarks.model import LORA_RANK, PICTURE_TOKENS, write_model
from tests.benchmarks.sides import (
    LEARNING_RATE,
    Ours,
    Piece,
    Plain,
    Side,
    build_ours,
    build_plain,
    make_items,
    plain_items,
)
from tests.tiny.tasks import corpus
from tests.trainer.trainings import configure, environment_of_one, plan_of

PER_DEVICE = 16
RECIPE_BATCH = 128
PLAIN = "plain"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="LLaVA 7B's shape on this machine's GPU instead")
    parser.add_argument("--rounds", type=int, default=8, help="turns that each side gets")
    parser.add_argument("--batch", type=int, default=16, help="samples of a turn")
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

        print("\n".join(gpu.tables()))
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
            print("\n".join(table()), flush=True)


def describe_machine() -> str:
    """Versions and processors, for the figures' caption."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "deepspeed"))
    return f"Python {platform.python_version()}, {packages}; {torch.get_num_threads()} threads"


def make_plan(
    shapes: Sequence[Shape], *, limit: int, global_batch: int, grouping: Grouping, packing: bool = False
) -> Plan:
    """Batches of one process."""
    return Plan(
        sizes=sizes_of(shapes), global_batch=global_batch, per_device_batch=PER_DEVICE, max_length=limit, world_size=1,
        epochs=1, seed=0, grouping=grouping, packing=packing,
    )  # fmt: skip


def real_share(plan: Plan, steps: Iterable[int]) -> float:
    """Share of computed positions that hold a token."""
    real = computed = 0
    for step in steps:
        for rows in plan.share(step, 0):
            lengths = [sum(int(plan.sizes.tokens[index]) for index in row) for row in rows]
            real += sum(lengths)
            computed += len(rows) * max(lengths)
    return real / computed


def filling_table() -> Iterator[str]:
    """How much of what is computed are tokens, at LLaVA's own lengths."""
    shapes = draw_shapes(8192, seed=0)
    yield f"Share of real tokens, batches of {RECIPE_BATCH} in micro-batches of {PER_DEVICE}, 8,192 samples:"
    yield "| batches | share |"
    yield "| --- | --- |"
    ways: tuple[tuple[str, Grouping, bool], ...] = (
        ("at random", "none", False), ("by modality", "modality", False), ("by length", "length", False),
        ("packed, at random", "none", True), ("packed, by modality", "modality", True),
    )  # fmt: skip
    for name, grouping, packing in ways:
        plan = make_plan(shapes, limit=max_length(), global_batch=RECIPE_BATCH, grouping=grouping, packing=packing)
        yield f"| {name} | {real_share(plan, range(plan.total_steps)):.1%} |"


def head_table() -> Iterator[str]:
    """Memory of the head."""
    yield f"Peak memory of the head, {head.TOKENS:,} tokens, vocabulary of {head.VOCABULARY:,}:"
    yield "| | plain way | all supervised | 25 % supervised |"
    yield "| --- | --- | --- | --- |"
    for dtype in (torch.float32, torch.bfloat16):
        plain = head.peak_bytes(dtype, share=None)
        shares = [head.peak_bytes(dtype, share=share) for share in (1.0, 0.25)]
        cells = " | ".join(f"{peak / 2**20:,.0f} MiB, {peak / plain:.1%}" for peak in shares)
        yield f"| {str(dtype).removeprefix('torch.')} | {plain / 2**20:,.0f} MiB | {cells} |"


def speed_table(rounds: int, batch: int) -> Iterator[str]:
    """Real tokens a second of both sides."""
    with workplace() as (config, processes):
        pieces = run_rounds(make_sides(config, processes, rounds, batch), rounds)
    yield f"Real tokens a second, {rounds} turns of {batch} samples in micro-batches of {PER_DEVICE}:"
    yield "| | tokens/s | against the plain way | by processor time | turn by turn, lowest to highest |"
    yield "| --- | --- | --- | --- | --- |"
    plain = pieces[PLAIN]
    for name, timed in pieces.items():
        turns = [speed([ours]) / speed([theirs]) for ours, theirs in zip(timed, plain, strict=True)]
        yield (
            f"| {name} | {speed(timed):,.0f} | {speed(timed) / speed(plain):.2f} | "
            f"{speed(timed, by_cpu=True) / speed(plain, by_cpu=True):.2f} | {min(turns):.2f} to {max(turns):.2f} |"
        )


def speed(pieces: Sequence[Piece], *, by_cpu: bool = False) -> float:
    """Real tokens a second over all of them."""
    seconds = sum(piece.cpu_s if by_cpu else piece.seconds for piece in pieces)
    return sum(piece.tokens for piece in pieces) / seconds


def make_sides(config: RunConfig, processes: Processes, rounds: int, batch: int) -> dict[str, Side]:
    """Both sides with batches made in all ways, so that what each change gives is seen by itself."""
    # One turn more than is timed, since the first warms up; and enough to draw groups from.
    shapes = draw_shapes(max(1024, (rounds + 1) * batch), seed=1, picture_tokens=PICTURE_TOKENS)
    processing = load_processing(config.model_dir, "pad")
    items = make_items(shapes, processing.image_token_id)
    trainee, tuned = build_ours(config, processes), build_plain(config.model_dir)
    limit = max_length(PICTURE_TOKENS)
    random_order = make_plan(shapes, limit=limit, global_batch=batch, grouping="none")
    grouped = dataclasses.replace(random_order, grouping="modality")
    packed = dataclasses.replace(grouped, packing=True)

    def plain(plan: Plan) -> Plain:
        return Plain(tuned=tuned, items=plain_items(items), plan=plan, pad_token_id=processing.pad_token_id)

    def ours(plan: Plan) -> Ours:
        return Ours(trainee=trainee, items=items, plan=plan, pad_token_id=processing.pad_token_id)

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


def loading_table() -> Iterator[str]:
    """How long steps wait for JPEGs of 336 px, and what it costs to find out how long samples are."""
    with workplace() as (config, processes):
        samples = write_pictures(config, count=192)
        write_samples(config.volume.train_file, samples)
        waited_s, total_s, steps = run_loading(config, processes)
        yield f"Waiting for data, {steps} steps of 64 samples with JPEGs of 336 px: {waited_s / total_s:.2%} of them"
        processing = load_processing(config.model_dir, "pad")
        counted = [dataclasses.replace(sample, num_tokens=1) for sample in samples]
        for name, file, repeated in (("counted by prepare", counted, 521), ("not counted", samples, 10)):
            write_samples(config.volume.train_file, (sample for _ in range(repeated) for sample in file))
            began = time.perf_counter()
            with SampleFile(config.volume.train_file) as stored:
                stored.measure(processing, "v1", config.training.max_length)
                seconds = (time.perf_counter() - began) * 100_000 / len(stored)
            yield f"Lengths of 100,000 samples, {name}: {seconds:.1f} s"


def run_loading(config: RunConfig, processes: Processes) -> tuple[float, float, int]:
    """Seconds waited, seconds in all, and steps, from the second step on."""
    trainee = build_ours(config, processes)
    processing = load_processing(config.model_dir, "pad")
    plan = plan_of(config, processing)
    with (
        SampleFile(config.volume.train_file) as stored,
        BatchLoader(
            stored, processing, images=config.dataset_dir / "images", max_length=plan.max_length, plan=plan, rank=0
        ) as loader,
    ):
        for step in range(plan.total_steps):
            if step == 1:
                began, before = time.perf_counter(), loader.waited_s
            for micro_batch in loader.load(step):
                loss = trainee.engine(**micro_batch.to(processes.device, trainee.dtype))
                trainee.engine.backward(loss * 1e-3, scale_wrt_gas=False)
            trainee.engine.step()
        return loader.waited_s - before, time.perf_counter() - began, plan.total_steps - 1


def write_pictures(config: RunConfig, count: int) -> list[Sample]:
    """JPEGs of 336 px into the dataset's folder, and a conversation about each, as long as the mixture's."""
    folder = config.dataset_dir / "images"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    words = " ".join(corpus(random.Random(0))[-500:]).split()
    samples = []
    for index, shape in enumerate(draw_shapes(count, seed=2, picture_tokens=PICTURE_TOKENS)):
        noise = Image.fromarray(rng.integers(0, 256, (42, 42, 3), dtype=np.uint8))
        noise.resize((336, 336), Image.Resampling.BICUBIC).save(folder / f"{index}.jpg", quality=90)
        text = [words[int(word)] for word in rng.integers(0, len(words), max(2, shape.text_tokens // 3))]
        question, answer = " ".join(text[: len(text) // 2]), " ".join(text[len(text) // 2 :])
        samples.append(
            Sample(
                id=str(index),
                images=(f"{index}.jpg",),
                image_turns=(0,),
                turns=(Turn(role="user", text=question), Turn(role="assistant", text=answer)),
                source=Source(file="-", index=index),
            )
        )
    return samples


@contextmanager
def workplace() -> Iterator[tuple[RunConfig, Processes]]:
    """The 28 M model in a folder, and this process as the only one of a training."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as listener:
        root = Path(folder)
        write_model(root / "base", corpus(random.Random(0)))
        config = configure(
            root, root / "base",
            training={
                "lora": {"rank": LORA_RANK, "alpha": 2 * LORA_RANK, "dropout": 0.05}, "learningRate": LEARNING_RATE,
                "batch": {"perDevice": PER_DEVICE, "global": 64}, "maxLength": 256, "gradientCheckpointing": False,
            },
        )  # fmt: skip
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        listener.close()
        with environment_of_one(port):
            yield config, joined()


def joined() -> Processes:
    """Join once: DeepSpeed keeps the first process group that it sees."""
    if torch.distributed.is_initialized():
        return Processes(rank=0, world_size=1, device=torch.device("cpu"))
    return join("cpu")


if __name__ == "__main__":
    main()
