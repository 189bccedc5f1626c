"""How often a step waits for the GPU, as CUDA's runtime is asked to tell (``torch.cuda.set_sync_debug_mode``)."""

import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch

from llava_trainer.data.processor import load_processor
from llava_trainer.gang.stopping import StopAgreement, StopRequest
from llava_trainer.gang.world import World, join
from llava_trainer.training.batches import BatchLoader
from llava_trainer.training.model_under_training import build_model
from llava_trainer.training.phase import phase_of
from llava_trainer.training.step import count_batch, run_step
from tests.ports import free_port
from tests.tiny.base import make_untrained_base
from tests.trainer.trainings import environment_of_one, make_mixed_dataset, make_training, plan_of

pytestmark = pytest.mark.gpu
WARM_UP_STEPS = 2


@pytest.fixture(scope="module")
def world():
    with environment_of_one(free_port()):
        yield join("cuda")
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("packing", [False, True])
def test_a_step_waits_once_for_the_gpu(tmp_path: Path, world: World, packing: bool):
    make_untrained_base(tmp_path / "base")
    samples = make_mixed_dataset(tmp_path / "dataset")
    training = {"packing": packing, "batch": {"perDevice": 2, "global": 8}, "zero": {"stage": 2}, "epochs": 2}
    config = make_training(tmp_path, tmp_path / "base", samples, training=training, workers={"device": "cuda"})
    phase, processor = phase_of(config), load_processor(tmp_path / "base", "pad")
    plan = plan_of(config, processor)
    model = build_model(config, phase, world)
    stop = StopRequest()
    stop.received = False
    seen: Counter[str] = Counter()
    with BatchLoader(
        samples, processor, images=phase.images, max_length=256, plan=plan, rank=0, dtype=model.dtype, pinned=True
    ) as loader:
        for step in range(WARM_UP_STEPS + 1):
            micro_batches = loader.load(step)
            assert micro_batches[0].tensors["input_ids"].is_pinned()
            torch.cuda.set_sync_debug_mode("warn" if step == WARM_UP_STEPS else "default")
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                run_step(
                    model, world, micro_batches, count_batch(micro_batches, False, world), factor=1.0, samples=8,
                    seeds=range(len(micro_batches)), beat=lambda doing: None, agreement=StopAgreement(stop, world),
                )  # fmt: skip
            torch.cuda.set_sync_debug_mode("default")
            for warning in told:
                if "synchroniz" in str(warning.message):
                    seen[_package_of(warning.filename)] += 1
    assert seen["llava_trainer"] == 1, seen
    assert seen["transformers"] == seen["peft"] == 0


def _package_of(file: str) -> str:
    known = ("llava_trainer", "transformers", "peft", "deepspeed", "torch")
    return next((name for name in known if name in Path(file).parts), file)
