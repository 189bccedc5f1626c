"""How long steps wait for their data, and what it costs to find out how long samples are."""

import dataclasses
import random
import time
from collections.abc import Iterator

import numpy as np
from PIL import Image

from llava_api.run_config import RunConfig
from llava_trainer.data.image_folder import ImageFolder
from llava_trainer.data.processor import load_processor
from llava_trainer.data.sample_file import SampleFile
from llava_trainer.data.samples import Sample, Source, Turn, write_samples
from llava_trainer.gang.world import World
from llava_trainer.training.batches import BatchLoader
from tests.benchmarks.mixture import draw_shapes
from tests.benchmarks.model import IMAGE_TOKENS
from tests.benchmarks.sides import build_ours
from tests.benchmarks.workplace import workplace
from tests.tiny.tasks import corpus
from tests.trainer.trainings import plan_of


def loading_table() -> Iterator[str]:
    """How long steps wait for JPEGs of 336 px, and what it costs to find out how long samples are."""
    with workplace() as (config, world):
        samples = write_images(config, count=192)
        write_samples(config.volume.train_file, samples)
        waited_s, total_s, steps = run_loading(config, world)
        yield f"Waiting for data, {steps} steps of 64 samples with JPEGs of 336 px: {waited_s / total_s:.2%} of them"
        processor = load_processor(config.model_dir, "pad")
        counted = [dataclasses.replace(sample, num_tokens=1) for sample in samples]
        for name, file, repeated in (("counted by prepare", counted, 521), ("not counted", samples, 10)):
            write_samples(config.volume.train_file, (sample for _ in range(repeated) for sample in file))
            began = time.perf_counter()
            with SampleFile(config.volume.train_file) as stored:
                stored.measure(processor, "v1", config.training.max_length)
                seconds = (time.perf_counter() - began) * 100_000 / len(stored)
            yield f"Lengths of 100,000 samples, {name}: {seconds:.1f} s"


def run_loading(config: RunConfig, world: World) -> tuple[float, float, int]:
    """Seconds waited, seconds in all, and steps, from the second step on."""
    model = build_ours(config, world)
    processor = load_processor(config.model_dir, "pad")
    plan = plan_of(config, processor)
    with (
        SampleFile(config.volume.train_file) as stored,
        BatchLoader(
            stored,
            processor,
            images=ImageFolder(root=config.dataset_dir, name="images"),
            max_length=plan.max_length,
            plan=plan,
            rank=0,
        ) as loader,
    ):
        for step in range(plan.total_steps):
            if step == 1:
                began, before = time.perf_counter(), loader.waited_s
            for micro_batch in loader.load(step):
                loss = model.engine(**micro_batch.to(world.device))
                model.engine.backward(loss * 1e-3, scale_wrt_gas=False)
            model.engine.step()
        return loader.waited_s - before, time.perf_counter() - began, plan.total_steps - 1


def write_images(config: RunConfig, count: int) -> list[Sample]:
    """JPEGs of 336 px into the dataset's folder, and a conversation about each, as long as the mixture's."""
    folder = config.dataset_dir / "images"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    words = " ".join(corpus(random.Random(0))[-500:]).split()
    samples = []
    for index, shape in enumerate(draw_shapes(count, seed=2, image_tokens=IMAGE_TOKENS)):
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
