"""The losses of small trainings under a fixed seed, step by step, as they were: no refactoring may change them.

They are in trajectories.json, of fp32 on a CPU. A change that is meant to change what is learned (another order of
samples, another initialisation) renews them, in the same commit and saying why::

    RENEW_TRAJECTORIES=1 pytest tests/trainer/test_trajectory.py
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llava_api.constants import StageName
from llava_api.run_config import RunConfig
from llava_trainer.data.samples import Sample, write_samples
from llava_trainer.gang.stopping import StopRequest
from llava_trainer.gang.world import World
from llava_trainer.reporting import Reporter
from llava_trainer.training.curve import read_curve
from llava_trainer.training.train import train
from tests.trainer.attempts import begin
from tests.trainer.trainings import make_dataset, make_training, text_only

FILE = Path(__file__).with_name("trajectories.json")
TOLERANCE = 2e-5
"""Absolute, of losses around 6: other processors sum in another order. A forgotten detail moves them by more."""
CAPTIONS = {"source": "pvc://captions/", "format": "llava", "file": "export.json", "images": "images"}
ALIGNMENT = {"dataset": CAPTIONS, "freshProjector": True, "epochs": 3, "batch": {"perDevice": 4, "global": 8}}
RUNS: dict[str, dict[str, Any]] = {
    "align": {"gradientCheckpointing": True},
    "lora": {"method": "lora", "lora": {"rank": 4, "alpha": 8, "dropout": 0.1}, "gradientCheckpointing": True},
    "full": {"method": "full", "learningRate": 1e-3, "weightDecay": 0.1},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    """18 samples of which 4 show no image: the last batch of 8 is short."""
    folder = tmp_path_factory.mktemp("dataset")
    samples = make_dataset(folder)[:14]
    return folder, [*samples, *(text_only(sample) for sample in samples[:4])]


def configure(root: Path, model_dir: Path, dataset: tuple[Path, list[Sample]], name: str) -> RunConfig:
    folder, samples = dataset
    for link in ("dataset", "captions"):
        (root / link).symlink_to(folder)
    config = make_training(root, model_dir, samples, training={"epochs": 3, "seed": 7} | RUNS[name])
    if name != "align":
        return config
    write_samples(config.volume.alignment_file, samples[:14])
    fields = config.model_dump(by_alias=True)
    fields["run"]["stage"] = StageName.ALIGN
    return begin(RunConfig.model_validate(fields | {"alignment": ALIGNMENT, "alignmentDir": root / "captions"}))


@pytest.mark.parametrize("name", RUNS)
def test_losses_are_what_they_were(
    tmp_path: Path, toy_model_dir: Path, dataset: tuple[Path, list[Sample]], world: World, name: str
):
    config = configure(tmp_path, toy_model_dir, dataset, name)
    train(config, world, Reporter(config), StopRequest())
    history = config.volume.history_file(config.run.stage, config.run.attempt)
    losses = [round(entry.loss, 6) for entry in read_curve(history)]
    kept = json.loads(FILE.read_text()) if FILE.exists() else {}
    if os.environ.get("RENEW_TRAJECTORIES"):
        FILE.write_text(json.dumps(kept | {name: losses}, indent=2, sort_keys=True) + "\n")
        pytest.skip(f"{FILE.name} holds new losses of {name}")
    assert losses == pytest.approx(kept[name], abs=TOLERANCE)
