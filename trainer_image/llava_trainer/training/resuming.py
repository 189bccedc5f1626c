"""Saving and resuming over all processes: who writes what when, and which checkpoint everyone goes back to."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from llava_api.constants import StageName
from llava_api.failures import Reason
from llava_api.volume import RunVolume
from llava_trainer.errors import StageError
from llava_trainer.files import begin_folder, publish_folder
from llava_trainer.training.adapter import save_adapter
from llava_trainer.training.checkpoint import (
    ADAPTER_FOLDER,
    CheckpointState,
    DamagedCheckpointError,
    checkpoint_dir,
    find_checkpoints,
    list_adapter_files,
    prune_checkpoints,
    read_rank,
    read_state,
    verify_files,
    write_manifest,
    write_rank,
)
from llava_trainer.training.engine import export_optimizer, import_optimizer
from llava_trainer.training.processes import Processes

logger = logging.getLogger(__name__)


def save_checkpoint(
    engine: Any, tuned: PeftModel, processes: Processes, checkpoints: Path, state: CheckpointState, keep: int
) -> None:
    """Write a checkpoint. Every process calls it; when it returns, the checkpoint is on the disk.

    Raises:
        OSError: it cannot be written (a full disk, say); what was written is never taken for a checkpoint.
    """
    began = time.monotonic()
    folder = checkpoint_dir(checkpoints, state.step)
    if processes.is_first:
        begin_folder(folder)
    processes.barrier()
    aside = folder.with_name(f".{folder.name}.partial")
    digest = write_rank(aside, processes.rank, {**export_optimizer(engine), **_export_generators(processes.device)})
    if processes.is_first:
        save_adapter(tuned, aside / ADAPTER_FOLDER)
    digests = processes.gather_digests(digest)
    if processes.is_first:
        write_manifest(aside, state, digests)
        publish_folder(folder)
        prune_checkpoints(checkpoints, keep)
        logger.info("checkpoint %s saved, training stood still for %.1f s", folder, time.monotonic() - began)
    processes.barrier()


def resume(
    engine: Any, processes: Processes, volume: RunVolume, stage: StageName, attempt: int
) -> tuple[CheckpointState, Path] | None:
    """Load the newest checkpoint that is whole. Every process calls it, and all load the same one.

    Returns:
        Its state and folder, or None if training begins.

    Raises:
        StageError: CheckpointMismatch; the checkpoint was made by another number of processes.
    """
    # Nobody may be reading the list while somebody else, still on the way here, could change what it says.
    processes.barrier()
    for folder in find_checkpoints(volume, stage, attempt):
        loaded = _load_verified(folder, processes)
        if loaded is None:
            continue
        state, tensors = loaded
        import_optimizer(engine, tensors)
        _import_generators(tensors, processes.device)
        if processes.is_first:
            logger.info("resuming from %s, after step %d of %d", folder, state.step, state.total_steps)
        return state, folder
    return None


def _load_verified(folder: Path, processes: Processes) -> tuple[CheckpointState, dict[str, torch.Tensor]] | None:
    state, tensors, damage = None, {}, ""
    try:
        state = read_state(folder)
        if state.world_size == processes.world_size:
            tensors = read_rank(folder, processes.rank)
            if processes.is_first:
                verify_files(folder, list_adapter_files(folder))
    except DamagedCheckpointError as error:
        damage = str(error)
        logger.warning("the checkpoint %s is passed over for the one before: %s", folder, damage)
    if not processes.all_true(not damage) or state is None:
        return None
    if state.world_size != processes.world_size:
        raise StageError(
            Reason.CHECKPOINT_MISMATCH,
            f"{folder} was made by {state.world_size} processes and cannot be resumed by {processes.world_size}: set "
            f"workers.replicas x max(workers.gpus, 1) to {state.world_size} again, or create another run",
        )
    return state, tensors


def _export_generators(device: torch.device) -> dict[str, torch.Tensor]:
    generators = {"generator.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        generators["generator.cuda"] = torch.cuda.get_rng_state(device)
    return generators


def _import_generators(tensors: Mapping[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(tensors["generator.cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(tensors["generator.cuda"], device)
