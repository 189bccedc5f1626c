"""What several processes leave on the volume is whole, and what one rank leaves.

Under ZeRO-3 parameters are shared out, and libraries that save such a model as it stands write tensors of size 0. With
qlora, which goes with ZeRO-2, the quantised weights have to reach every rank as they are.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llava_api.constants import StageName
from llava_api.run_config import RunConfig
from llava_trainer.data.samples import Sample, write_samples
from llava_trainer.gang.stopping import StopRequest
from llava_trainer.gang.world import World
from llava_trainer.model.partition import copy_whole, is_sharded, num_elements
from llava_trainer.reporting import Reporter
from llava_trainer.training.model_under_training import build_model
from llava_trainer.training.phase import phase_of
from llava_trainer.training.train import train
from tests.trainer.attempts import begin
from tests.trainer.many import run_in_processes
from tests.trainer.trainings import make_dataset, make_training, text_only

TOWER = {"visionTower": {"mode": "full", "learningRate": 1e-3}}
# Settings of training, ZeRO stage of the two processes, folder of the result, tensors in it.
RUNS: dict[str, tuple[dict[str, Any], int, str, int]] = {
    "align": ({"method": "none"}, 3, "projector", 4),
    "lora": ({"method": "lora"}, 3, "adapter", 2 * 3 * 7 + 4),
    "qlora": ({"method": "qlora"}, 2, "adapter", 2 * 3 * 7 + 4),
    "lora, projector frozen": ({"method": "lora", "projector": "frozen"}, 3, "adapter", 2 * 3 * 7),
    "full, projector frozen": ({"method": "full", "projector": "frozen"}, 3, "weights", 3 * 9 + 3),
    "lora and vision tower": ({"method": "lora", **TOWER}, 3, "adapter", 2 * 3 * 7 + 4 + 2 * 16 + 5),
    "full with vision tower": ({"method": "full", **TOWER}, 3, "weights", 3 * 9 + 3 + 4 + 2 * 16 + 5),
    "full": ({"method": "full"}, 3, "weights", 3 * 9 + 3 + 4),
}
CAPTIONS = {"source": "pvc://captions/", "format": "llava", "file": "export.json", "images": "images"}
ALIGNMENT = {"dataset": CAPTIONS, "freshProjector": True, "batch": {"perDevice": 2, "global": 4}}


def run_all(world: World, configs: list[RunConfig]) -> dict[str, Any]:
    """Train by each of ``configs``; what the last one's model looks like afterwards."""
    for config in configs:
        train(config, world, Reporter(config), StopRequest())
    model = build_model(configs[-1], phase_of(configs[-1]), world)
    projection = model.llava.model.language_model.layers[0].mlp.up_proj.weight
    return {
        "shared out": is_sharded(projection),
        "looks": tuple(projection.shape),
        "whole": tuple(copy_whole(projection).shape),
        "numbers": num_elements(projection),
        "learned": model.num_parameters,
    }


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory, toy_model_dir: Path, world: World) -> dict[int, Path]:
    """Volumes of the same runs by one rank and by two, by the number of ranks."""
    folder = tmp_path_factory.mktemp("data")
    samples = make_dataset(folder)[:8]
    # In a batch of two processes one may see no image; alignment has none without.
    mixed = [*samples[:4], *(text_only(sample) for sample in samples[4:])]
    made = {number: tmp_path_factory.mktemp(f"by-{number}") for number in (1, 2)}
    configs = {
        number: [
            configure(root / name, folder, toy_model_dir, samples if name == "align" else mixed, name, number)
            for name in RUNS
        ]
        for number, root in made.items()
    }
    learned = run_all(world, configs[1])["learned"]
    for seen in run_in_processes(2, run_all, configs[2]):
        assert seen == {
            "shared out": True, "looks": (0,), "whole": (256, 128), "numbers": 256 * 128, "learned": learned
        }  # fmt: skip
    return made


def configure(
    root: Path, folder: Path, model_dir: Path, samples: list[Sample], name: str, num_processes: int
) -> RunConfig:
    root.mkdir()
    for link in ("dataset", "captions"):
        (root / link).symlink_to(folder)
    chosen, zero_stage, _, _ = RUNS[name]
    training = {**chosen, "learningRate": 1e-3, "warmupRatio": 0.0, "batch": {"perDevice": 2, "global": 4},
                "zero": {"stage": zero_stage if num_processes > 1 else 2}}  # fmt: skip
    config = make_training(root, model_dir, samples, training=training)
    if name != "align":
        return config
    write_samples(config.volume.alignment_file, samples)
    fields = config.model_dump(by_alias=True) | {"alignment": ALIGNMENT, "alignmentDir": root / "captions"}
    fields["run"]["stage"] = StageName.ALIGN
    return begin(RunConfig.model_validate(fields))


@pytest.mark.parametrize("name", RUNS)
def test_what_two_processes_leave_is_whole_and_right(roots: dict[int, Path], name: str):
    _, _, artifact, num_tensors = RUNS[name]
    left = {}
    for number, root in roots.items():
        files = sorted((root / name / "volume" / "attempts").glob(f"*/{artifact}/*.safetensors"))
        left[number] = {key: tensor for file in files for key, tensor in load_file(file).items()}
    assert left[1].keys() == left[2].keys()
    assert len(left[2]) == num_tensors
    for key, expected in left[1].items():
        # A tenth of a step's length: sums come in another order.
        torch.testing.assert_close(left[2][key], expected, rtol=0, atol=1e-4, msg=key)
