"""What the evaluation's report says of a run's phases and method, and whose curve it draws."""

from pathlib import Path
from typing import Any

import pytest

from llava_api.constants import StageName
from llava_api.run_config import RunConfig
from llava_api.volume import RunVolume
from llava_trainer.evaluation.settings import list_settings
from llava_trainer.training.curve import Curve, CurvePoint, find_curve
from tests.trainer.runs import run_config

CAPTIONS = {"source": "pvc://captions/", "format": "llava", "file": "captions.json"}


def make(root: Path, method: str, *, aligned: bool = False, **training: Any) -> RunConfig:
    config = run_config(root, StageName.EVALUATE, training={"method": method, **training})
    fields = config.model_dump(by_alias=True)
    if aligned:
        fields |= {"alignment": {"dataset": CAPTIONS, "epochs": 2}, "alignmentDir": root / "captions"}
    return RunConfig.model_validate(fields)


@pytest.mark.parametrize(
    ("method", "described"),
    [
        ("lora", "lora, rank 4, alpha 12, dropout 0.05"),
        ("qlora", "qlora, rank 4, alpha 12, dropout 0.05"),
        ("full", "full: language model and projector"),
    ],
)
def test_the_method_is_told_in_its_own_words(tmp_path: Path, method: str, described: str):
    settings = dict(list_settings(make(tmp_path, method)))
    assert settings["Method"] == described
    assert settings["Learning rate"] == ("2e-05" if method == "full" else "0.0002") + ", projector 2e-05"
    assert "Alignment" not in settings


def test_what_is_not_the_recipe_is_told(tmp_path: Path):
    few = {"rank": 4, "alpha": 12, "targets": ["v_proj", "q_proj"], "rsLora": True}
    config = make(
        tmp_path, "lora", projector="frozen", lora=few, maxSteps=1200, minimumLearningRate=1e-5,
        optimizer={"beta2": 0.95},
    )  # fmt: skip
    settings = dict(list_settings(config))
    assert settings["Method"] == (
        "lora, rank 4, scaled by its root (rsLoRA), alpha 12, dropout 0.05, on v_proj, q_proj, projector frozen"
    )
    assert settings["Learning rate"] == "0.0002, down to 1e-05"
    assert settings["AdamW"] == "betas 0.9 and 0.95, epsilon 1e-08"
    assert (settings["Steps"], "Epochs" in settings) == ("1,200", False)
    tower = dict(list_settings(make(tmp_path, "full", visionTower={"mode": "full"})))
    assert tower["Method"] == "full: language model and projector, vision tower too"
    assert tower["Learning rate"] == "2e-05, projector 2e-05, vision tower 2e-06"
    full = dict(list_settings(make(tmp_path, "full", projector="frozen")))
    assert (full["Method"], full["Learning rate"]) == ("full: language model, projector frozen", "2e-05")


def test_a_run_that_only_aligns_tells_nothing_of_a_training(tmp_path: Path):
    settings = dict(list_settings(make(tmp_path, "none", aligned=True)))
    assert settings["Method"] == "the projector alone, by alignment"
    assert settings["Alignment"] == "pvc://captions/ · captions.json (llava)"
    assert settings["Alignment's rate and length"] == "0.001, 2 epochs of batches of 256 samples"
    assert not settings.keys() & {"Epochs", "Learning rate", "Batch"}


def write_curve(file: Path, losses: list[float]) -> None:
    with Curve(file) as history:
        for step, loss in enumerate(losses, start=1):
            history.append(
                CurvePoint(step=step, epoch=1, loss=loss, learning_rate=1, grad_norm=1, tokens=1, samples_per_second=1,
                      tokens_per_second=1)
            )  # fmt: skip


def test_the_curve_is_trainings_and_without_one_alignments(tmp_path: Path):
    def find(**results: int) -> list[float]:
        return [entry.loss for entry in find_curve(RunVolume(root=tmp_path, results=results))]

    assert find() == find(align=1) == []
    volume = RunVolume(root=tmp_path)
    for stage, attempt, losses in (("align", 1, [9.0]), ("align", 2, [8.0]), ("train", 1, [7.0]), ("train", 2, [6.0])):
        volume.attempt_dir(StageName(stage), attempt).mkdir(parents=True)
        write_curve(volume.history_file(StageName(stage), attempt), losses)
    assert find(align=2) == [8.0]
    assert find(align=1, train=1) == [7.0]
    assert find(align=1, train=2) == [6.0]
