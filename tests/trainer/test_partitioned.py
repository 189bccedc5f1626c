"""What is left on the volume where ZeRO-3 has shared parameters out: whole tensors, those that ZeRO-2 leaves.

Libraries that save such a model as it stands write tensors of size 0.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llava_api.constants import StageName
from llava_api.run_config import RunConfig
from llava_trainer.data.samples import Sample, write_samples
from llava_trainer.model.partition import copy_whole, is_shared_out, num_elements
from llava_trainer.reporting import Reporter
from llava_trainer.training.loop import train
from llava_trainer.training.phase import phase_of
from llava_trainer.training.processes import Processes
from llava_trainer.training.stopping import StopRequest
from llava_trainer.training.trainee import build_trainee
from tests.trainer.many import run_in_processes
from tests.trainer.trainings import make_dataset, make_training

RUNS = {
    "projector": (StageName.ALIGN, "lora"),
    "adapter": (StageName.TRAIN, "lora"),
    "weights": (StageName.TRAIN, "full"),
}
CAPTIONS = {"source": "pvc://captions/", "format": "llava", "file": "export.json", "images": "images"}


def run_all(processes: Processes, configs: list[RunConfig]) -> dict[str, Any]:
    for config in configs:
        train(config, processes, Reporter(config), StopRequest())
    trainee = build_trainee(configs[-1], phase_of(configs[-1]), processes)
    projection = trainee.llava.model.language_model.layers[0].mlp.up_proj.weight
    return {
        "shared out": is_shared_out(projection),
        "looks": tuple(projection.shape),
        "whole": tuple(copy_whole(projection).shape),
        "numbers": num_elements(projection),
        "learned": trainee.num_parameters,
    }


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory, toy_model_dir: Path, processes: Processes) -> dict[int, Path]:
    """Volumes of the same three runs: by one process under ZeRO-2, and by two under ZeRO-3, which say what they saw."""
    folder = tmp_path_factory.mktemp("data")
    samples = make_dataset(folder)[:8]
    made = {stage: tmp_path_factory.mktemp(f"zero-{stage}") for stage in (2, 3)}
    configs = {stage: [configure(root, folder, toy_model_dir, samples, stage, name) for name in RUNS]
               for stage, root in made.items()}  # fmt: skip
    run_all(processes, configs[2])
    for seen in run_in_processes(2, run_all, configs[3]):
        assert seen == {
            "shared out": True, "looks": (0,), "whole": (256, 128), "numbers": 256 * 128, "learned": seen["learned"],
        }  # fmt: skip
        assert seen["learned"] > 500_000
    return made


def configure(
    root: Path, folder: Path, model_dir: Path, samples: list[Sample], zero_stage: int, name: str
) -> RunConfig:
    for link in ("dataset", "captions"):
        if not (root / link).exists():
            (root / link).symlink_to(folder)
    stage, method = RUNS[name]
    training = {"method": method, "learningRate": 1e-3, "zero": {"stage": zero_stage}, "warmupRatio": 0.0,
                "batch": {"perDevice": 2, "global": 4}}  # fmt: skip
    config = make_training(root, model_dir, samples, training=training, attempt=list(RUNS).index(name) + 1)
    write_samples(config.volume.alignment_file, samples)
    fields = config.model_dump(by_alias=True)
    fields["run"]["stage"] = stage
    if stage is StageName.ALIGN:
        alignment = {"dataset": CAPTIONS, "freshProjector": True, "batch": {"perDevice": 2, "global": 4}}
        fields |= {"alignment": alignment, "alignmentDir": root / "captions"}
    return RunConfig.model_validate(fields)


@pytest.mark.parametrize("artifact", RUNS)
def test_what_two_processes_under_zero_3_leave_is_whole_and_right(roots: dict[int, Path], artifact: str):
    left = {}
    for stage, root in roots.items():
        files = sorted((root / "volume" / artifact).glob("*.safetensors"))
        left[stage] = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert left[2].keys() == left[3].keys()
    assert len(left[3]) == {"projector": 4, "adapter": 2 * 3 * 7 + 4, "weights": 3 * 9 + 3 + 4}[artifact]
    for name, expected in left[2].items():
        # Adam divides by tiny gradients' own size: sums in another order may move a number by a step's length.
        torch.testing.assert_close(left[3][name], expected, rtol=1e-3, atol=2e-4, msg=name)
