"""What only a GPU can prove: bf16 with NCCL, torch's fused optimiser, flash-attn, and running out of device memory.

Written against the same stage as the CPU tests; run by ``make test-gpu``.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llava_api.failures import Reason, exit_code_of
from llava_api.run_config import RunConfig
from llava_trainer.errors import StageError
from llava_trainer.model.flash import find_flash_fault, has_flash_attention
from llava_trainer.training.curve import read_curve, read_numbers
from llava_trainer.training.device import check_device
from llava_trainer.training.phase import phase_of
from tests.tiny.base import make_untrained_base
from tests.trainer.trainings import TrainStage, break_rank, make_dataset, make_training

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "base"
    make_untrained_base(folder)
    return folder


@pytest.fixture
def make_config(tmp_path: Path, base_dir: Path) -> Callable[..., RunConfig]:
    samples = make_dataset(tmp_path / "dataset")

    def make(*, attempt: int = 1, world: int = 1, **training) -> RunConfig:
        return make_training(
            tmp_path, base_dir, samples, attempt=attempt, training={"epochs": 3} | training,
            workers={"device": "cuda", "processesPerNode": world, "rendezvousPort": 29461 + attempt},
        )  # fmt: skip

    return make


def losses(config: RunConfig) -> list[float]:
    return [entry.loss for entry in read_curve(config.volume.history_file(config.run.stage, config.run.attempt))]


def run(config: RunConfig) -> None:
    with TrainStage(config) as stage:
        assert stage.wait(300) == 0, stage.output


def test_bf16_on_a_gpu_learns_what_fp32_learns(make_config: Callable[..., RunConfig]):
    bf16, fp32 = make_config(), make_config(attempt=2, precision="fp32")
    run(bf16)
    run(fp32)
    assert losses(bf16) == pytest.approx(losses(fp32), rel=0.05)
    assert losses(bf16)[-1] < losses(bf16)[0]


def test_a_run_on_a_gpu_is_resumed(make_config: Callable[..., RunConfig]):
    straight = make_config(checkpoint={"everySteps": 5, "keep": 2})
    run(straight)
    later = make_config(attempt=2)
    run(later)
    assert losses(later)[:10] == losses(straight)[:10]
    assert losses(later) == pytest.approx(losses(straight), rel=0.02)


@pytest.mark.needs_gpus(2)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_processes_on_several_gpus_agree_with_one(make_config: Callable[..., RunConfig], stage: int):
    """NCCL between the GPUs of one machine, by every stage of ZeRO."""
    world = 4 if torch.cuda.device_count() >= 4 else 2
    batch = {"perDevice": 1, "global": 8}
    alone = make_config(precision="fp32", batch=batch)
    together = make_config(attempt=2, world=world, precision="fp32", batch=batch, zero={"stage": stage})
    run(alone)
    run(together)
    assert losses(together) == pytest.approx(losses(alone), rel=1e-3)


def test_quantised_weights_learn_about_what_whole_ones_learn(make_config: Callable[..., RunConfig]):
    whole, quantised = make_config(), make_config(attempt=2, method="qlora")
    run(whole)
    run(quantised)
    assert losses(quantised) == pytest.approx(losses(whole), rel=0.1)
    assert losses(quantised)[-1] < losses(quantised)[0]


def test_offloaded_optimiser_states_learn_the_same(make_config: Callable[..., RunConfig]):
    kept, offloaded = (
        make_config(attempt=attempt, zero={"stage": 2, "offload": {"optimizer": offload}})
        for attempt, offload in ((1, False), (2, True))
    )
    run(kept)
    run(offloaded)
    assert losses(offloaded) == pytest.approx(losses(kept), rel=0.02)


def test_tokens_a_second_are_counted(make_config: Callable[..., RunConfig]):
    config = make_config()
    run(config)
    entries = read_curve(config.volume.history_file(config.run.stage, config.run.attempt))
    assert all(entry.tokens_per_second > 0 for entry in entries[1:])


def test_what_this_card_can_do_is_found_out(make_config: Callable[..., RunConfig]):
    """bf16 on Ampere and newer; an older card is refused with the setting that would do."""
    phase, device = phase_of(make_config()), torch.device("cuda", 0)
    if torch.cuda.get_device_capability(device) >= (8, 0):
        check_device(phase, device)
    else:
        with pytest.raises(StageError, match="set it to fp32"):
            check_device(phase, device)


def test_packed_rows_learn_by_torchs_own_kernel_what_they_learn_under_masks(make_config: Callable[..., RunConfig]):
    kernel, masks = make_config(packing=True), make_config(attempt=2, packing=True, attention="sdpa")
    run(kernel)
    run(masks)
    assert losses(kernel) == pytest.approx(losses(masks), rel=0.05)
    if not has_flash_attention() and torch.cuda.get_device_capability() >= (8, 0):
        assert read_numbers(kernel).attention == "varlen_attn"
    assert read_numbers(masks).attention == "sdpa"


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_packed_rows_learn_with_every_method(make_config: Callable[..., RunConfig], method: str):
    rates = {"learningRate": 1e-3} if method == "full" else {}
    config = make_config(packing=True, method=method, gradientCheckpointing=True, **rates)
    run(config)
    assert losses(config)[-1] < losses(config)[0]


@pytest.mark.needs_gpus(2)
@pytest.mark.parametrize("stage", [2, 3])
def test_packed_rows_on_several_gpus_agree_with_one(make_config: Callable[..., RunConfig], stage: int):
    batch = {"perDevice": 1, "global": 8}
    alone = make_config(packing=True, batch=batch)
    together = make_config(attempt=2, world=2, packing=True, batch=batch, zero={"stage": stage})
    run(alone)
    run(together)
    assert losses(together) == pytest.approx(losses(alone), rel=0.02)


@pytest.mark.needs_flash_attn
def test_flash_attention_learns_what_sdpa_learns(make_config: Callable[..., RunConfig]):
    flash, sdpa = make_config(attention="flash_attention_2"), make_config(attempt=2, attention="sdpa")
    assert find_flash_fault(torch.device("cuda", 0)) is None
    run(flash)
    run(sdpa)
    assert losses(flash) == pytest.approx(losses(sdpa), rel=0.05)


@pytest.mark.needs_gpus(2)
def test_a_process_that_hangs_in_backward_is_named(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
):
    """By what torch records of NCCL, whose operations are begun long before they end."""
    config = make_config(world=2, epochs=400, batch={"perDevice": 1, "global": 8})
    limits = {"stall_limit_seconds": 20.0, "grace_period_seconds": 15}
    hanging = config.model_copy(update={"workers": config.workers.model_copy(update=limits)})
    break_rank(monkeypatch, "hang", rank=1, at=6)
    with TrainStage(hanging) as stage:
        assert stage.wait(300) == exit_code_of(Reason.WORKER_STALLED), stage.output
        failure = stage.result.failure
    assert (failure.reason, failure.rank) == (Reason.WORKER_STALLED, 1)
    assert "while others wait in operation" in failure.message


def test_a_batch_too_large_for_the_gpu_is_said_so(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
):
    # PyTorch takes no more than this from the device: enough for its context, not for a step.
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "per_process_memory_fraction:0.0001")
    with TrainStage(make_config()) as stage:
        assert stage.wait(300) == exit_code_of(Reason.OUT_OF_DEVICE_MEMORY)
        assert "out of memory" in stage.result.failure.message
