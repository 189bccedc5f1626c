"""The proof that training teaches: a tiny LLaVA learns the tray codes of images that it has never seen.

Images are held out, their pairs of question and answer are not: each stands on other images in training too.
"""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from llava_api.run_config import RunConfig
from llava_trainer.data.encode import encode_prompt
from llava_trainer.data.images import open_image, pixel_values
from llava_trainer.data.processor import load_processor
from llava_trainer.data.samples import Sample
from llava_trainer.gang.stopping import StopRequest
from llava_trainer.gang.world import World
from llava_trainer.model.loading import load_model, load_tuned
from llava_trainer.reporting import Reporter
from llava_trainer.training.train import train
from tests.demo.inputs import cached_base
from tests.trainer.trainings import make_dataset, make_training

NUM_HELD_OUT = 64
# What manifests/samples/tiny-cpu.yaml asks for.
TRAINING = {
    "lora": {"rank": 16, "alpha": 32, "dropout": 0.05},
    "epochs": 8,
    "learningRate": 3.0e-3,
    "projectorLearningRate": 1.0e-3,
    "batch": {"perDevice": 8, "global": 16},
}


@pytest.fixture(scope="module")
def base_dir() -> Path:
    """The demo's base: half a minute to make, once for each version of its code."""
    return cached_base()


def learn(root: Path, base_dir: Path, world: World, *, shuffled: bool) -> tuple[RunConfig, list[Sample]]:
    """Train; returns the configuration and the samples that were held out."""
    samples = make_dataset(root / "dataset", images_per_scene=10, shuffled=shuffled)
    config = make_training(root, base_dir, samples[NUM_HELD_OUT:], training=TRAINING)
    with Reporter(config) as reporter:
        train(config, world, reporter, StopRequest())
    return config, samples[:NUM_HELD_OUT]


@torch.no_grad()
def score(model: PreTrainedModel, config: RunConfig, samples: list[Sample]) -> float:
    """Share of the samples whose answer is generated exactly."""
    processor = load_processor(config.model_dir, "pad")
    images = config.dataset_dir / config.dataset.images
    prompts = [encode_prompt(sample.turns[:1], (0,), processor) for sample in samples]
    # One question for all, so that nothing has to be padded.
    ids = torch.tensor(prompts)
    pixels = [torch.from_numpy(pixel_values(open_image(images / s.images[0]), processor)) for s in samples]
    answers = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=torch.stack(pixels), do_sample=False,
        max_new_tokens=16,
    )  # fmt: skip
    texts = processor.tokenizer.batch_decode(answers[:, ids.shape[1] :], skip_special_tokens=True)
    right = [text.strip() == sample.turns[1].text for text, sample in zip(texts, samples, strict=True)]
    return sum(right) / len(right)


def test_codes_are_learned(base_dir: Path, world: World, tmp_path: Path):
    config, held_out = learn(tmp_path, base_dir, world, shuffled=False)
    tuned = load_tuned(base_dir, config.volume.adapter_dir, torch.float32, "cpu")
    assert score(load_model(base_dir, torch.float32, "cpu"), config, held_out) <= 0.02
    assert score(tuned, config, held_out) >= 0.8


def test_with_shuffled_answers_there_is_nothing_to_learn(base_dir: Path, world: World, tmp_path: Path):
    config, held_out = learn(tmp_path, base_dir, world, shuffled=True)
    tuned = load_tuned(base_dir, config.volume.adapter_dir, torch.float32, "cpu")
    assert score(tuned, config, held_out) <= 0.1
