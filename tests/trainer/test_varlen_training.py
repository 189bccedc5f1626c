"""A whole training with packed rows by the registered kernel, its reference in its place, beside sdpa under masks."""

from pathlib import Path
from typing import Any

import pytest

from llava_api.report import TrainNumbers
from llava_api.run_config import RunConfig
from llava_trainer.data.samples import Sample, write_samples
from llava_trainer.gang.stopping import StopRequest
from llava_trainer.gang.world import World
from llava_trainer.model.attention import VARLEN
from llava_trainer.reporting import Reporter
from llava_trainer.training import model_under_training
from llava_trainer.training.curve import CurvePoint, read_curve
from llava_trainer.training.train import train
from tests.trainer import reference_varlen
from tests.trainer.trainings import change, make_mixed_dataset, make_training

WAYS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "gradientCheckpointing": True},
    "lora, ZeRO-3": {"method": "lora", "zero": {"stage": 3}},
    "qlora": {"method": "qlora", "gradientCheckpointing": True},
    "full": {"method": "full", "learningRate": 1e-3},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    folder = tmp_path_factory.mktemp("dataset")
    return folder, make_mixed_dataset(folder)


def run(config: RunConfig, world: World) -> tuple[TrainNumbers, list[CurvePoint]]:
    with Reporter(config) as reporter:
        numbers = train(config, world, reporter, StopRequest())
    assert numbers is not None
    return numbers, read_curve(config.volume.history_file(config.run.stage, config.run.attempt))


@pytest.mark.parametrize("way", WAYS)
def test_the_kernel_learns_and_judges_what_masks_do(
    way: str, tmp_path: Path, toy_model_dir: Path, world: World, dataset: tuple[Path, list[Sample]],
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    folder, samples = dataset
    (tmp_path / "dataset").symlink_to(folder)
    training = {"packing": True, "epochs": 2, "validation": {"everySteps": 2, "samples": 5}, **WAYS[way]}
    config = make_training(tmp_path, toy_model_dir, samples, training=training)
    # Held-out rows are filled up, and judged by the same model.
    write_samples(config.volume.validation_file, samples[:5])
    masked, expected = run(config, world)
    reference_varlen.install(monkeypatch)
    asked: list[object] = []

    def choose(attention: str, device: object, dtype: object, *, packed: object) -> str:
        asked.append(packed)
        return VARLEN

    monkeypatch.setattr(model_under_training, "resolve_attention", choose)
    kernel, curve = run(change(config, attempt=2), world)
    assert asked
    assert None not in asked, "the model's heads, since rows are packed"
    assert (masked.attention, kernel.attention) == ("sdpa", "varlen_attn")
    assert [point.loss for point in curve] == pytest.approx([point.loss for point in expected], rel=1e-5)
    assert [point.grad_norm for point in curve] == pytest.approx([point.grad_norm for point in expected], rel=1e-3)
    assert kernel.validation_loss == pytest.approx(masked.validation_loss, rel=1e-5)
