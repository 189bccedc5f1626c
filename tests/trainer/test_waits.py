"""Where a step waits for the device: counted on a CPU by what would fetch a number from a GPU, and by whom."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from llava_trainer.data.processor import Processor
from llava_trainer.gang.stopping import StopAgreement, StopRequest
from llava_trainer.gang.world import World
from llava_trainer.training.batches import BatchLoader
from llava_trainer.training.model_under_training import ModelUnderTraining, build_model
from llava_trainer.training.phase import phase_of
from llava_trainer.training.step import count_batch, run_step
from tests.trainer.trainings import make_mixed_dataset, make_training, plan_of

READS = {
    "item", "tolist", "cpu", "numpy", "nonzero", "unique", "masked_select", "__bool__", "__int__", "__float__",
    "__index__", "__contains__", "equal", "allclose", "synchronize",
}  # fmt: skip
"""Of a tensor or its value: none of them can be answered before the device has come so far."""
OPERATIONS = ("aten::nonzero", "aten::_local_scalar_dense", "aten::masked_select", "aten::unique", "aten::equal")
"""The same below Python's names, in backward passes too."""
PACKAGES = ("llava_trainer", "transformers", "peft", "deepspeed", "torch")

NORM = "utils.py is_invalid_grad_norm"
TRACE = {"utils.py get_lst_from_rank0", "utils.py assert_lst_len_same_as_other_ranks", "utils.py <listcomp>"}
"""Stage 3 compares with the other ranks which modules run, whenever it has written them down anew."""
DEEPSPEEDS: dict[int, set[str]] = {0: set(), 1: {NORM}, 2: {NORM}, 3: {NORM, *TRACE}}
"""DeepSpeed's own reads in a step, by ZeRO stage; docs/benchmarks.md lists them, with those that only GPUs show."""


def find_caller() -> str:
    """The package, file and function that is behind a call: the innermost that is not torch."""
    frame = sys._getframe(2)
    while frame is not None:
        parts = Path(frame.f_code.co_filename).parts
        package = next((name for name in PACKAGES[:-1] if name in parts), None)
        if package is not None:
            return f"{package}: {parts[-1]} {frame.f_code.co_name}"
        frame = frame.f_back
    return "torch"


class Counting(TorchFunctionMode):
    """Counts reads by name and caller."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in READS:
            self.seen[find_caller()] += 1
        return func(*args, **(kwargs or {}))


class CountingBelow(TorchDispatchMode):
    """Counts operations whose result depends on values, by caller."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().partition(".")[0] in OPERATIONS:
            self.seen[find_caller()] += 1
        return func(*args, **(kwargs or {}))


def count_reads(
    model: ModelUnderTraining, world: World, loader: BatchLoader, steps: tuple[int, ...]
) -> tuple[Counter[str], Counter[str]]:
    """Reads of the last of ``steps``, as Python sees them and as torch's dispatcher does."""
    agreement = StopAgreement(StopRequest.__new__(StopRequest), world)
    agreement._stop.received = False
    for step in steps:
        micro_batches = loader.load(step)
        with Counting() as counting, CountingBelow() as below:
            totals = count_batch(micro_batches, False, world)
            run_step(
                model, world, micro_batches, totals, factor=1.0, samples=8, seeds=range(len(micro_batches)),
                beat=lambda doing: None, agreement=agreement,
            )  # fmt: skip
    return counting.seen, below.seen


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("stage", DEEPSPEEDS)
def test_a_step_waits_once_for_the_device(
    tmp_path: Path, toy_model_dir: Path, toy_processor: Processor, world: World, packing: bool, stage: int
):
    samples = make_mixed_dataset(tmp_path / "dataset")
    training = {"packing": packing, "batch": {"perDevice": 2, "global": 8}, "zero": {"stage": stage},
                "gradientCheckpointing": True}  # fmt: skip
    config = make_training(tmp_path, toy_model_dir, samples, training=training)
    phase = phase_of(config)
    plan = plan_of(config, toy_processor)
    model = build_model(config, phase, world)
    loader = BatchLoader(
        samples, toy_processor, images=phase.images, max_length=256, plan=plan, rank=0, template=phase.template
    )
    with loader:
        reads, operations = count_reads(model, world, loader, (0, 1))
    # Counts and sums of ranks are made in the node's memory (gang), and only read there.
    ours = {caller: count for caller, count in reads.items() if caller.startswith("llava_trainer")}
    assert ours == {"llava_trainer: step.py _read": 1, "llava_trainer: world.py sum": 2}
    for package in ("transformers", "peft"):
        assert not [caller for caller in (*reads, *operations) if caller.startswith(package)], (reads, operations)
    below = {caller for caller in operations if caller.startswith("llava_trainer")}
    assert below <= {"llava_trainer: step.py _read", "llava_trainer: world.py sum"}
    theirs = {caller.removeprefix("deepspeed: ") for caller in reads if caller.startswith("deepspeed")}
    assert theirs <= DEEPSPEEDS[stage]


def test_the_count_sees_what_it_looks_for():
    with Counting() as counting, CountingBelow() as below:
        tensor = torch.ones(3)
        if tensor.sum() > 1:
            tensor.nonzero()
        tensor[tensor > 0].sum().item()
    assert sum(counting.seen.values()) == 3
    assert sum(below.seen.values()) >= 3
