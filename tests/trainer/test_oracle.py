"""The loop goes the way of transformers' Trainer, in both phases, on the same batches from the same beginning.

The loss in fp32 agrees within 1e-6, over three epochs with a short last batch, accumulation, and micro-batches of text
alone. (Of a whole global batch of text they would not: PyTorch's AdamW passes over a projector without gradient, while
ours, whose gradient is then zero, moves on by its momentum.)
"""

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from transformers import LlavaForConditionalGeneration

from llava_api.constants import StageName
from llava_api.run_config import RunConfig
from llava_trainer.data.encode import encode
from llava_trainer.data.images import open_image, pixel_values
from llava_trainer.data.processor import Processor
from llava_trainer.data.samples import Sample, write_samples
from llava_trainer.data.template import Template
from llava_trainer.gang.stopping import StopRequest
from llava_trainer.gang.world import World
from llava_trainer.model.loading import load_model
from llava_trainer.model.lora import add_adapter
from llava_trainer.reporting import Reporter
from llava_trainer.training.curve import CurvePoint, read_curve
from llava_trainer.training.phase import Phase, phase_of
from llava_trainer.training.train import train
from tests.benchmarks.plain import PlainItem, PlainSettings, PlainStep, add_plain_adapter, pad, train_plainly
from tests.trainer.attempts import begin
from tests.trainer.trainings import configure, make_dataset, make_training, plan_of, text_only

EPOCHS = 3


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    """Images, and the samples that show them."""
    folder = tmp_path_factory.mktemp("dataset")
    return folder, make_dataset(folder)


CHOICES = {
    "projector": "frozen", "lora": {"rank": 4, "alpha": 4, "dropout": 0.0, "targets": ["q_proj", "v_proj", "up_proj"],
                                    "rsLora": True},
    "optimizer": {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-6}, "minimumLearningRate": 1e-3, "maxSteps": 7,
}  # fmt: skip
"""All that is not LLaVA's recipe: it ends after the first step of the third epoch."""


TOWER = {"visionTower": {"mode": "full", "learningRate": 1e-3}, "gradientCheckpointing": True}
WITH_TOWER = {"lora and tower": {"method": "lora", **TOWER}, "full with tower": {"method": "full", **TOWER}}


@pytest.fixture(params=["projector", "lora", "full", "choices", *WITH_TOWER])
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def samples(dataset: tuple[Path, list[Sample]], method: str) -> list[Sample]:
    """21 samples, so that the last batch of 8 is short; in phase 2 five of them show no image."""
    made = dataset[1]
    return made[:21] if method == "projector" else [*made[:16], *(text_only(sample) for sample in made[:5])]


@pytest.fixture(scope="module")
def model_dir(
    tmp_path_factory: pytest.TempPathFactory,
    toy_model_dir: Path,
    dataset: tuple[Path, list[Sample]],
    toy_processor: Processor,
) -> Path:
    """The toy after a few steps on questions and captions: at a loss of 6, fp32 could not tell 1e-6 from nothing."""
    folder = shutil.copytree(toy_model_dir, tmp_path_factory.mktemp("model") / "base")
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    load = partial(load_item, dataset[0] / "images", toy_processor, 256)
    pad_token_id = toy_processor.pad_token_id
    questions = pad([load("v1", text_only(sample)) for sample in dataset[1][:21]], pad_token_id)
    captions = pad([load("plain", sample) for sample in dataset[1][:21]], pad_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(15):
        torch.autograd.backward(model(**questions, use_cache=False).loss + model(**captions, use_cache=False).loss)
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def config(
    tmp_path: Path, model_dir: Path, dataset: tuple[Path, list[Sample]], samples: list[Sample], method: str
) -> RunConfig:
    (tmp_path / "dataset").symlink_to(dataset[0])
    batch = {"perDevice": 2, "global": 8}
    shared = {"weightDecay": 0.01, "grouping": "none", "batch": batch, "epochs": EPOCHS}
    if method != "projector":
        rate = 3e-4 if method.startswith("full") else 5e-3
        chosen = {"choices": CHOICES, **WITH_TOWER}.get(method, {"method": method})
        return make_training(tmp_path, model_dir, samples, training={**shared, **chosen, "learningRate": rate})
    fields = configure(tmp_path, model_dir, training=shared).model_dump(by_alias=True)
    fields["run"]["stage"] = StageName.ALIGN
    fields["alignmentDir"] = fields["datasetDir"]
    fields["alignment"] = {"dataset": fields["dataset"], "batch": batch, "epochs": EPOCHS, "learningRate": 1e-2}
    config = begin(RunConfig.model_validate(fields))
    write_samples(config.volume.alignment_file, samples)
    return config


def load_item(images: Path, processor: Processor, max_length: int, template: Template, sample: Sample) -> PlainItem:
    encoded = encode(sample, processor, max_length, template)
    pixels = [pixel_values(open_image(images / name), processor) for name in sample.images]
    return {
        "input_ids": list(encoded.input_ids),
        "labels": list(encoded.labels),
        "pixel_values": torch.from_numpy(pixels[0].copy()) if pixels else None,
    }


def orders(config: RunConfig, processor: Processor) -> list[list[int]]:
    plan = plan_of(config, processor)
    steps = plan.steps_per_epoch
    return [
        [index for step in range(epoch * steps, (epoch + 1) * steps) for index in plan.batch(step)]
        for epoch in range(plan.epochs)
    ]


def learn_plainly(model: LlavaForConditionalGeneration, *, with_tower: bool) -> None:
    """Have the tower learn as in LLaVA-NeXT, all of it: what has no gradient stays as it is."""
    model.model.vision_tower.requires_grad_(with_tower)


def plain_model(config: RunConfig, phase: Phase) -> nn.Module:
    """What Trainer trains, as ours begins: with the same adapter, or with as much learning."""
    model = LlavaForConditionalGeneration.from_pretrained(config.model_dir, dtype=torch.float32)
    if phase.method == "projector":
        model.requires_grad_(False)
        model.model.multi_modal_projector.requires_grad_(True)
        return model
    if phase.method == "full":
        learn_plainly(model, with_tower=phase.learns_tower)
        return model
    lora, base = phase.training.lora, load_model(config.model_dir, torch.float32, "cpu")
    if phase.learns_projector:
        tuned = add_plain_adapter(model, rank=lora.rank, alpha=lora.alpha)
        if phase.learns_tower:
            learn_plainly(tuned.get_base_model(), with_tower=True)
    else:
        tuned = get_peft_model(
            model,
            LoraConfig(
                r=4, lora_alpha=4, use_rslora=True, target_modules=r"model\.language_model.*\.(q|v|up)_proj"
            ),
        )  # fmt: skip
    torch.manual_seed(phase.training.seed)
    ours = add_adapter(base, lora, learns_projector=phase.learns_projector)
    # A tower that learns begins as it is in the base, for both.
    set_peft_model_state_dict(tuned, get_peft_model_state_dict(ours))
    return tuned


def plain_trajectory(config: RunConfig, samples: list[Sample], processor: Processor) -> list[PlainStep]:
    phase = phase_of(config)

    adam, floor = phase.training.optimizer, phase.training.minimum_learning_rate
    settings = PlainSettings(
        tower_learning_rate=phase.training.vision_tower.learning_rate,
        betas=(adam.beta1, adam.beta2),
        epsilon=adam.epsilon,
        scheduler="cosine_with_min_lr" if floor else "cosine",
        extra={"lr_scheduler_kwargs": {"min_lr_rate": floor / phase.training.peak_learning_rate}} if floor else {},
        max_steps=phase.training.max_steps or -1,
        learning_rate=phase.training.peak_learning_rate,
        projector_learning_rate=phase.training.projector_learning_rate,
        weight_decay=phase.training.weight_decay,
        per_device_batch=phase.training.batch.per_device,
        accumulation=phase.training.batch.global_ // phase.training.batch.per_device,
        pad_token_id=processor.pad_token_id,
        seed=phase.training.seed,
    )
    load = partial(load_item, phase.images.find("."), processor, phase.training.max_length, phase.template)
    return train_plainly(
        plain_model(config, phase), lambda index: load(samples[index]), orders(config, processor), settings
    )


def pairs(order: list[int]) -> list[list[int]]:
    return [order[at : at + 2] for at in range(0, len(order), 2)]


def is_text(samples: list[Sample], numbers: list[int]) -> bool:
    return not any(samples[number].images for number in numbers)


def our_trajectory(config: RunConfig, world: World) -> list[CurvePoint]:
    with Reporter(config) as reporter:
        train(config, world, reporter, StopRequest())
    return read_curve(config.volume.history_file(config.run.stage, config.run.attempt))


def test_the_loop_and_trainer_go_the_same_way(
    config: RunConfig, world: World, samples: list[Sample], method: str, toy_processor: Processor
):
    assert method == "projector" or any(
        is_text(samples, pair) for order in orders(config, toy_processor) for pair in pairs(order)
    )
    ours = our_trajectory(config, world)
    theirs = plain_trajectory(config, samples, toy_processor)
    assert len(ours) == len(theirs) == (7 if method == "choices" else EPOCHS * 3)
    learned = sum(step.loss for step in ours[:3]) - sum(step.loss for step in ours[-3:])
    assert learned > 0.01, "ten thousand times what they may differ by"
    for mine, its in zip(ours, theirs, strict=True):
        assert mine.loss == pytest.approx(its.loss, abs=1e-6)
        assert mine.learning_rate == pytest.approx(its.learning_rate, rel=1e-9)
        assert mine.grad_norm == pytest.approx(its.grad_norm, rel=1e-4)
