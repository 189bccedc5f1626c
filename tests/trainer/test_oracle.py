"""The loop goes the way of transformers' Trainer, with LoRA and in full, on the same batches from the same beginning.

The loss in fp32 agrees within 1e-6, over three epochs with a short last batch, accumulation, and micro-batches of text
alone. (Of a whole global batch of text they would not: PyTorch's AdamW passes over a projector without gradient, while
ours, whose gradient is then zero, moves on by its momentum.)
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from transformers import LlavaForConditionalGeneration

from llava_api.run_config import RunConfig
from llava_trainer.data.collate import collate
from llava_trainer.data.encode import encode
from llava_trainer.data.images import open_image, pixel_values
from llava_trainer.data.processing import Processing
from llava_trainer.data.sample_file import SampleFile
from llava_trainer.data.samples import Sample
from llava_trainer.model.loading import load_model
from llava_trainer.model.lora import add_adapter
from llava_trainer.reporting import Reporter
from llava_trainer.training.history import Entry, read_entries
from llava_trainer.training.loop import train
from llava_trainer.training.phase import phase_of
from llava_trainer.training.plan import make_plan
from llava_trainer.training.processes import Processes
from llava_trainer.training.stopping import StopRequest
from tests.benchmarks.plain import PlainSettings, PlainStep, add_plain_adapter, train_plainly
from tests.trainer.trainings import make_dataset, make_training, text_only

EPOCHS = 3


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    """21 samples of which 5 show no picture: the last batch of 8 is short, and micro-batches of 2 may be all text."""
    folder = tmp_path_factory.mktemp("dataset")
    made = make_dataset(folder)[:16]
    return folder, [*made, *(text_only(sample) for sample in made[:5])]


@pytest.fixture(scope="module")
def model_dir(
    tmp_path_factory: pytest.TempPathFactory,
    toy_model_dir: Path,
    samples: tuple[Path, list[Sample]],
    toy_processing: Processing,
) -> Path:
    """The toy after a few steps on the text: at a loss of 6, fp32 could not tell 1e-6 from nothing."""
    folder = shutil.copytree(toy_model_dir, tmp_path_factory.mktemp("model") / "base")
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    items = [encode(text_only(sample), toy_processing, 256) for sample in samples[1]]
    collated = collate([(item, None) for item in items], toy_processing.pad_token_id)
    batch = {name: collated[name] for name in ("input_ids", "attention_mask", "labels")}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(15):
        torch.autograd.backward(model(**batch, use_cache=False).loss)
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(params=["lora", "full"])
def config(
    request: pytest.FixtureRequest, tmp_path: Path, model_dir: Path, samples: tuple[Path, list[Sample]]
) -> RunConfig:
    (tmp_path / "dataset").symlink_to(samples[0])
    return make_training(
        tmp_path, model_dir, samples[1],
        training={
            "method": request.param, "learningRate": {"lora": 5e-3, "full": 3e-4}[request.param], "weightDecay": 0.01,
            "epochs": EPOCHS, "batch": {"perDevice": 2, "global": 8}, "grouping": "none",
        },
    )  # fmt: skip


def orders(config: RunConfig, processing: Processing) -> list[list[int]]:
    phase = phase_of(config)
    with SampleFile(phase.samples_file) as samples:
        plan = make_plan(phase, samples.measure(processing, phase.template, phase.max_length), world_size=1)
    steps = plan.steps_per_epoch
    return [
        [index for step in range(epoch * steps, (epoch + 1) * steps) for index in plan.batch(step)]
        for epoch in range(plan.epochs)
    ]


def plain_model(config: RunConfig) -> nn.Module:
    """What Trainer trains, as ours begins: with the same adapter, or with everything but the tower learning."""
    training = config.training
    model = LlavaForConditionalGeneration.from_pretrained(config.model_dir, dtype=torch.float32)
    if training.method == "full":
        model.model.vision_tower.requires_grad_(False)
        return model
    tuned = add_plain_adapter(model, rank=training.lora.rank, alpha=training.lora.alpha)
    torch.manual_seed(training.seed)
    ours = add_adapter(load_model(config.model_dir, torch.float32, "cpu"), training.lora)
    set_peft_model_state_dict(tuned, get_peft_model_state_dict(ours))
    return tuned


def plain_trajectory(config: RunConfig, samples: list[Sample], processing: Processing) -> list[PlainStep]:
    training, images = config.training, config.dataset_dir / config.dataset.images
    tuned = plain_model(config)

    def load(index: int) -> dict[str, Any]:
        sample = samples[index]
        pixels = [pixel_values(open_image(images / name), processing) for name in sample.images]
        encoded = encode(sample, processing, training.max_length)
        return {
            "input_ids": list(encoded.input_ids),
            "labels": list(encoded.labels),
            "pixel_values": torch.from_numpy(pixels[0].copy()) if pixels else None,
        }

    settings = PlainSettings(
        learning_rate=training.peak_learning_rate,
        projector_learning_rate=training.projector_learning_rate,
        weight_decay=training.weight_decay,
        per_device_batch=training.batch.per_device,
        accumulation=training.batch.global_ // training.batch.per_device,
        pad_token_id=processing.pad_token_id,
        seed=training.seed,
    )
    return train_plainly(tuned, load, orders(config, processing), settings)


def pairs(order: list[int]) -> list[list[int]]:
    return [order[at : at + 2] for at in range(0, len(order), 2)]


def is_text(samples: list[Sample], numbers: list[int]) -> bool:
    return not any(samples[number].images for number in numbers)


def our_trajectory(config: RunConfig, processes: Processes) -> list[Entry]:
    with Reporter(config) as reporter:
        train(config, processes, reporter, StopRequest())
    return read_entries(config.volume.history_file(config.run.stage, config.run.attempt))


def test_the_loop_and_trainer_go_the_same_way(
    config: RunConfig, processes: Processes, samples: tuple[Path, list[Sample]], toy_processing: Processing
):
    assert any(is_text(samples[1], pair) for order in orders(config, toy_processing) for pair in pairs(order))
    ours = our_trajectory(config, processes)
    theirs = plain_trajectory(config, samples[1], toy_processing)
    assert len(ours) == len(theirs) == EPOCHS * 3
    assert sum(step.loss for step in ours[6:]) < 0.97 * sum(step.loss for step in ours[:3])
    for mine, its in zip(ours, theirs, strict=True):
        assert mine.loss == pytest.approx(its.loss, abs=1e-6)
        assert mine.learning_rate == pytest.approx(its.learning_rate, rel=1e-9)
        assert mine.grad_norm == pytest.approx(its.grad_norm, rel=1e-4)
