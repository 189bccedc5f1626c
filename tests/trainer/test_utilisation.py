"""Model FLOPs utilisation: whose peak is known, and that real tokens alone count."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llava_api.run_config import RunConfig
from llava_trainer.data.model_facts import read_model_facts
from llava_trainer.data.sample_file import SampleSizes
from llava_trainer.gang.world import World
from llava_trainer.training.batch_plan import BatchPlan, make_plan
from llava_trainer.training.flops import count_flops, positions_of_samples
from llava_trainer.training.phase import phase_of
from llava_trainer.training.utilisation import find_utilisation
from tests.trainer.trainings import configure

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
    facts = read_model_facts(config.model_dir)
    needed = count_flops(facts, "lora", positions_of_samples(SIZES, plan.batch(1)), rank=4).model
    assert found.mfu(1, 0.5) == pytest.approx(needed / 0.5 / found.peak_flops_per_s)
    # Every sample once an epoch, whatever the batches: twice the time, half of it.
    assert found.mfu(1, 1.0) == pytest.approx(found.mfu(1, 0.5) / 2)


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
