"""Model FLOPs utilisation: whose peak is known, and that real tokens alone count."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llava_api.run_config import RunConfig
from llava_trainer.data.processor import Processor
from llava_trainer.data.sample_file import SampleSizes
from llava_trainer.gang.world import World
from llava_trainer.model.loading import load_model
from llava_trainer.model.objective import SupervisedLoss
from llava_trainer.training.batch_plan import BatchPlan, make_plan
from llava_trainer.training.batches import RowLoader
from llava_trainer.training.model_under_training import _open
from llava_trainer.training.phase import phase_of
from llava_trainer.training.utilisation import find_utilisation
from tests.trainer.trainings import configure, make_dataset, make_training, plan_of

SIZES = SampleSizes(
    tokens=np.array([40, 80, 60]), images=np.array([1, 0, 1]), supervised=np.array([4, 8, 6])
)  # fmt: skip


@pytest.fixture
def config(tmp_path: Path, toy_model_dir: Path) -> RunConfig:
    return configure(tmp_path, toy_model_dir, training={"batch": {"perDevice": 1, "global": 2}})


@pytest.fixture
def plan(config: RunConfig) -> BatchPlan:
    return make_plan(phase_of(config), SIZES, 2)


def on_gpu(world: World) -> World:
    return replace(world, device=torch.device("cuda", 0), world_size=2)


def test_the_peak_of_all_gpus_is_what_it_is_a_fraction_of(
    config: RunConfig, plan: BatchPlan, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    found = find_utilisation(config, phase_of(config), plan, on_gpu(world), torch.bfloat16)
    assert found is not None
    assert found.peak_flops_per_s == 2 * 989e12
    # Every sample once an epoch, whatever the batches: twice the time, half of it.
    assert found.mfu(1, 1.0) == pytest.approx(found.mfu(1, 0.5) / 2)
    alone = find_utilisation(config, phase_of(config), plan, replace(on_gpu(world), world_size=1), torch.bfloat16)
    assert alone is not None
    assert alone.mfu(1, 0.5) == pytest.approx(2 * found.mfu(1, 0.5))


@pytest.mark.parametrize(
    "training",
    [
        {}, {"lora": {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": ["q_proj", "v_proj"]}},
        {"projector": "frozen"}, {"visionTower": {"mode": "full"}}, {"method": "full"},
        {"method": "full", "projector": "frozen", "visionTower": {"mode": "full"}},
    ],
    ids=str,
)  # fmt: skip
def test_operations_are_those_of_what_learns(
    tmp_path: Path, toy_model_dir: Path, toy_processor: Processor, world: World, monkeypatch: pytest.MonkeyPatch,
    training: dict[str, Any],
) -> None:  # fmt: skip
    """By torch's own counter, over each sample of a step by itself."""
    samples = make_dataset(tmp_path / "dataset")[:3]
    config = make_training(tmp_path, toy_model_dir, samples, training=training)
    phase, plan = phase_of(config), plan_of(config, toy_processor)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    found = find_utilisation(config, phase, plan, on_gpu(world), torch.bfloat16)
    assert found is not None
    llava = load_model(toy_model_dir, torch.float32, "cpu", "eager")
    _open(llava, phase)
    module = SupervisedLoss(llava, gradient_checkpointing=False).train()
    rows = RowLoader(samples=samples, processor=toy_processor, images=phase.images, max_length=256)
    with FlopCounterMode(display=False) as counter:
        for index in plan.batch(0):
            torch.autograd.backward(module(**rows.load(((index,),)).tensors))
    assert found.mfu(0, 0.5) == pytest.approx(counter.get_total_flops() / 0.5 / (2 * 989e12))


@pytest.mark.parametrize("name", ["NVIDIA A100-SXM4-40GB MIG 3g.20gb", "Tesla T4", "NVIDIA RTX A1000", ""])
def test_an_unknown_peak_is_no_utilisation(
    config: RunConfig, plan: BatchPlan, world: World, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert find_utilisation(config, phase_of(config), plan, on_gpu(world), torch.bfloat16) is None


def test_without_a_gpu_or_in_another_format_there_is_none(
    config: RunConfig, plan: BatchPlan, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_utilisation(config, phase_of(config), plan, world, torch.bfloat16) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert find_utilisation(config, phase_of(config), plan, on_gpu(world), torch.float32) is None
