"""Checkpoints are written beside training: what stands in them is the state at the step, and failures are heard."""

import errno
import threading
from pathlib import Path

import pytest
import torch

from llava_api.failures import Reason, exit_code_of
from llava_trainer.errors import StageError
from llava_trainer.gang.world import LostPeerError, World
from llava_trainer.logs import ProcessLog
from llava_trainer.training.checkpoint import CheckpointState, StoredOptimizer, read_manifest, verify_files
from llava_trainer.training.progress import Progress
from llava_trainer.training.retention import list_checkpoints
from llava_trainer.training.saving import Saver
from llava_trainer.training.slices import PARTS, Slice
from llava_trainer.training.worker import explain_rank_failure
from tests.trainer.many import run_in_processes


def state(step: int, world_size: int = 1) -> CheckpointState:
    return CheckpointState(step=step, total_steps=9, world_size=world_size, seed=1, parameters={"weight": [2, 4]})


def make_slice(start: int = 0, stop: int = 8) -> Slice:
    return Slice(name="weight", start=start, parts={part: torch.arange(float(start), stop) for part in PARTS})


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, world: World):
    may_go_on = threading.Event()
    with Saver(world, tmp_path, keep=1, write_servable=lambda stored, folder: may_go_on.wait(60)) as saver:
        slice_ = make_slice()
        saver.begin([slice_], state(2))
        for tensor in slice_.parts.values():
            tensor.fill_(-1.0)
        assert saver.check() is None
        assert list_checkpoints(tmp_path) == []
        may_go_on.set()
        saver.finish()
        assert saver.check() == 2
        saver.begin([slice_], state(4))
        saver.finish()
    (folder,) = list_checkpoints(tmp_path)
    verify_files(folder, read_manifest(folder))
    with StoredOptimizer(folder, state(4)) as stored:
        assert torch.equal(stored.read_whole("original", "weight"), torch.full((2, 4), -1.0))


def test_what_is_written_is_what_was_there_at_the_step(tmp_path: Path, world: World):
    trained_on = threading.Event()
    with Saver(world, tmp_path, keep=1, write_servable=lambda stored, folder: None) as saver:
        # Nothing is written before training has gone on.
        saver._thread.submit(trained_on.wait, 60)
        slice_ = make_slice()
        saver.begin([slice_], state(2))
        for tensor in slice_.parts.values():
            tensor.fill_(-1.0)
        trained_on.set()
        saver.finish()
    with StoredOptimizer(list_checkpoints(tmp_path)[0], state(2)) as stored:
        for part in PARTS:
            assert torch.equal(stored.read_whole(part, "weight"), torch.arange(8.0).view(2, 4))


def fill_the_disk(stored: StoredOptimizer, folder: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", str(folder))


def save_on_a_full_disk(world: World, checkpoints: Path) -> str:
    with Saver(world, checkpoints, keep=1, write_servable=fill_the_disk) as saver:
        saver.begin([make_slice(4 * world.rank, 4 * world.rank + 4)], state(2, world.world_size))
        try:
            saver.finish()
        except (OSError, LostPeerError) as error:
            return f"{type(error).__name__}: {error}"
    return "saved"


def test_what_one_process_cannot_write_every_process_hears_of(tmp_path: Path):
    first, second = run_in_processes(2, save_on_a_full_disk, tmp_path)
    assert first.startswith("OSError: [Errno 28] No space left on device")
    assert second == "LostPeerError: rank 0 could not write its part of a checkpoint"
    assert list_checkpoints(tmp_path) == []


def test_the_next_save_tells_what_became_of_the_last(tmp_path: Path, world: World):
    with Saver(world, tmp_path, keep=1, write_servable=fill_the_disk) as saver:
        saver.begin([make_slice()], state(2))
        with pytest.raises(OSError, match="No space left"):
            saver.begin([make_slice()], state(4))


NO_PINNED_MEMORY = (
    "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in https://docs.nvidia.com/cuda/ for more "
    "information.\nCUDA kernel errors might be asynchronously reported at some other API call"
)
"""As PyTorch 2.15 hands on what cudaHostAlloc says."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.AcceleratorError(NO_PINNED_MEMORY), Reason.OUT_OF_MEMORY),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
         Reason.OUT_OF_MEMORY),
        (MemoryError(), Reason.OUT_OF_MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), Reason.OUT_OF_DEVICE_MEMORY),
        (RuntimeError("something else"), Reason.INTERNAL_ERROR),
    ],
)  # fmt: skip
def test_a_copy_that_the_nodes_memory_has_no_room_for_is_no_fault_of_the_gpu(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: Reason
):
    def refuse(*shape: object, **settings: object) -> None:
        raise error

    with Saver(world, tmp_path, keep=1, write_servable=lambda stored, folder: None) as saver, ProcessLog() as log:
        slice_ = make_slice()
        monkeypatch.setattr(torch, "empty", refuse)
        with pytest.raises((StageError, type(error))) as caught:
            saver.begin([slice_], state(2))
        monkeypatch.undo()
        failure = explain_rank_failure(caught.value, 0, log, Progress()).failure
    assert failure.reason is reason
    if reason is Reason.OUT_OF_MEMORY:
        assert "does not suffice for a checkpoint's copy of 0.0Gi" in failure.message
        assert exit_code_of(failure.reason) == 83


@pytest.mark.parametrize(("limit_s", "is_told"), [(0.0, True), (60.0, False)])
def test_a_checkpoint_that_takes_longer_than_a_pod_has_is_told(
    tmp_path: Path, world: World, caplog: pytest.LogCaptureFixture, limit_s: float, is_told: bool
):
    with Saver(world, tmp_path, keep=1, write_servable=lambda stored, folder: None, saving_time_s=limit_s) as saver:
        saver.begin([make_slice()], state(2))
        saver.finish()
    assert ("raise spec.workers.gracePeriodSeconds" in caplog.text) is is_told
