"""From training to evaluation by every method: what was trained, merged and served are one model, and it has learned.

The toy's weights are random; that training teaches anything worth knowing is for test_learning.
"""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from llava_api.constants import StageName
from llava_api.report import EvaluateNumbers, MergeNumbers
from llava_api.run_config import RunConfig
from llava_trainer.data.samples import Sample, write_samples
from llava_trainer.evaluation.scores import Metrics
from llava_trainer.gang.stopping import StopRequest
from llava_trainer.gang.world import World
from llava_trainer.model.projector import read_projector
from llava_trainer.reporting import Reporter
from llava_trainer.stages import evaluate, merge
from llava_trainer.training.train import train
from tests.trainer.attempts import begin
from tests.trainer.runs import dataset_report
from tests.trainer.trainings import make_dataset, make_training

CAPTIONS = {"source": "pvc://captions/", "format": "llava", "file": "export.json", "images": "images"}
ALIGNMENT = {"dataset": CAPTIONS, "freshProjector": True, "batch": {"perDevice": 4, "global": 8}}
TRAIN, BOTH = [StageName.TRAIN], [StageName.ALIGN, StageName.TRAIN]
FULL = {"method": "full", "learningRate": 1e-3}
FROZEN = {"projector": "frozen"}
TOWER = {"visionTower": {"mode": "full", "learningRate": 1e-3}}
FEW = {"rank": 4, "alpha": 4, "dropout": 0.0, "targets": ["q_proj", "down_proj"], "rsLora": True}
# Stages, settings of training, tensors that differ from the base in the end.
CHAINS: dict[str, tuple[list[StageName], dict[str, Any], int]] = {
    "lora": (TRAIN, {"method": "lora"}, 3 * 7 + 4),
    "qlora": (TRAIN, {"method": "qlora"}, 3 * 7 + 4),
    "full": (TRAIN, FULL, 3 * 9 + 3 + 4),
    "align and lora": (BOTH, {"method": "lora"}, 3 * 7 + 4),
    "align alone": ([StageName.ALIGN], {"method": "none"}, 4),
    "lora, projector frozen": (TRAIN, {"method": "lora", **FROZEN}, 3 * 7),
    "qlora, projector frozen": (TRAIN, {"method": "qlora", **FROZEN}, 3 * 7),
    "full, projector frozen": (TRAIN, FULL | FROZEN, 3 * 9 + 3),
    # What alignment has made of the projector is in the result, though the adapter does not hold it.
    "align and lora, projector frozen": (BOTH, {"method": "lora", **FROZEN}, 3 * 7 + 4),
    "align and full, projector frozen": (BOTH, FULL | FROZEN, 3 * 9 + 3 + 4),
    # The toy's tower has three layers, of which two are seen: 16 tensors each, 3 before them and a norm's 2.
    "lora and vision tower": (TRAIN, {"method": "lora", **TOWER}, 3 * 7 + 4 + 2 * 16 + 5),
    "qlora and vision tower": (TRAIN, {"method": "qlora", **TOWER}, 3 * 7 + 4 + 2 * 16 + 5),
    "full with vision tower": (TRAIN, FULL | TOWER, 3 * 9 + 3 + 4 + 2 * 16 + 5),
    "vision tower, projector frozen": (BOTH, {"method": "lora", **TOWER, **FROZEN}, 3 * 7 + 4 + 2 * 16 + 5),
    "rsLoRA on few layers": (TRAIN, {"method": "lora", "lora": FEW}, 3 * 2 + 4),
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    folder = tmp_path_factory.mktemp("dataset")
    return folder, make_dataset(folder)[:20]


def configure(root: Path, model_dir: Path, dataset: tuple[Path, list[Sample]], chain: str) -> RunConfig:
    folder, samples = dataset
    for link in ("dataset", "captions"):
        (root / link).symlink_to(folder)
    stages, training, _ = CHAINS[chain]
    config = make_training(
        root, model_dir, samples[:16], training=training | {"epochs": 2},
        evaluation={"gpus": 0, "generation": {"maxNewTokens": 4}}, merge={"dtype": "float32"},
    )  # fmt: skip
    volume = config.volume
    write_samples(volume.validation_file, samples[16:])
    write_samples(volume.alignment_file, samples[:16])
    volume.dataset_report_json.write_text(dataset_report(held_out=4, trained_on=16).model_dump_json())
    if StageName.ALIGN not in stages:
        return config
    fields = config.model_dump(by_alias=True) | {"alignment": ALIGNMENT, "alignmentDir": root / "captions"}
    return RunConfig.model_validate(fields)


def as_stage(config: RunConfig, stage: StageName) -> RunConfig:
    return config.model_copy(update={"run": config.run.model_copy(update={"stage": stage})})


@pytest.mark.parametrize("chain", CHAINS)
def test_what_was_trained_is_what_is_merged_and_evaluated(
    tmp_path: Path, toy_model_dir: Path, dataset: tuple[Path, list[Sample]], world: World, chain: str
):
    stages, _, changed = CHAINS[chain]
    config = configure(tmp_path, toy_model_dir, dataset, chain)
    for stage in stages:
        train(as_stage(config, stage), world, Reporter(config), StopRequest())
    merged = merge.run(as_stage(config, StageName.MERGE), Reporter(config)).numbers
    assert isinstance(merged, MergeNumbers)
    assert merged.tensors_merged == changed
    assert merged.max_logit_difference < 1e-4
    base = load_file(toy_model_dir / "model.safetensors")
    made = load_file(config.volume.merged_dir / "model.safetensors")
    assert sum(not made[name].equal(base[name]) for name in base) == changed
    if stages == [StageName.ALIGN] or (StageName.ALIGN in stages and config.training.projector == "frozen"):
        assert all(made[name].equal(tensor) for name, tensor in read_projector(config.volume.projector_dir).items())
    judging = begin(as_stage(config, StageName.EVALUATE))
    numbers = evaluate.run(judging, Reporter(judging)).numbers
    assert isinstance(numbers, EvaluateNumbers)
    assert {score.samples for score in numbers.scores if score.split == "validation"} == {4}
    metrics = Metrics.model_validate_json(config.volume.metrics_file.read_bytes())
    assert metrics.seconds.keys() == {"answers_of_base", "answers_of_tuned"}
