"""Resuming over all processes: which checkpoint everyone goes back to, and what each takes from it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llava_api.constants import StageName
from llava_api.failures import Reason
from llava_api.volume import RunVolume
from llava_trainer.errors import StageError
from llava_trainer.training.checkpoint import (
    CheckpointState,
    DamagedCheckpointError,
    StoredOptimizer,
    find_checkpoints,
    read_state,
    verify_files,
)
from llava_trainer.training.processes import Processes
from llava_trainer.training.slices import PARTS, list_slices, resume_slices

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """Where training begins."""

    step: int = 0
    """Optimiser steps done already."""
    folder: Path | None = None
    """The checkpoint that this comes from; None if training begins anew."""
    skipped: tuple[str, ...] = ()
    """Checkpoints that were damaged, and passed over."""
    found: tuple[Path, ...] = ()
    """All that there were, best first; those that were passed over come last."""


def resume(
    engine: Any,
    named: Mapping[str, nn.Parameter],
    processes: Processes,
    volume: RunVolume,
    stage: StageName,
    attempt: int,
) -> Beginning:
    """Load the newest checkpoint that is whole, whoever wrote it. Every process calls it, and all load the same one.

    Raises:
        StageError: CheckpointMismatch; the checkpoint is of another model or adapter.
    """
    # Nobody may be reading the list while somebody else, still on the way here, could change what it says.
    processes.barrier()
    skipped: list[str] = []
    found = find_checkpoints(volume, stage, attempt)
    for number, folder in enumerate(found):
        state = _verify(folder, processes)
        if state is None:
            skipped.append(f"{folder.parent.parent.name}/{folder.name}")
            continue
        _check_same_parameters(folder, state, shapes_of(named))
        _load(engine, named, folder, state)
        if processes.is_first:
            logger.info("resuming from %s, after step %d of %d", folder, state.step, state.total_steps)
        best_first = (*found[number:], *found[:number])
        return Beginning(step=state.step, folder=folder, skipped=tuple(skipped), found=best_first)
    return Beginning(skipped=tuple(skipped), found=tuple(found))


def shapes_of(named: Mapping[str, nn.Parameter]) -> dict[str, list[int]]:
    """Shape of each parameter, also of one that ZeRO-3 has shared out."""
    return {name: list(getattr(parameter, "ds_shape", parameter.shape)) for name, parameter in named.items()}


def _verify(folder: Path, processes: Processes) -> CheckpointState | None:
    """The state of a checkpoint that every process finds in order: each looks at its share of the files."""
    state = None
    try:
        state = read_state(folder)
        verify_files(folder, processes.rank, processes.world_size)
        with StoredOptimizer(folder, state) as stored:
            stored.check_whole(PARTS)
    except DamagedCheckpointError as error:
        state = None
        logger.warning("the checkpoint %s is passed over for the one before: %s", folder, error)
    return state if processes.all_true(state is not None) else None


def _check_same_parameters(folder: Path, state: CheckpointState, shapes: Mapping[str, list[int]]) -> None:
    stored = {name: list(shape) for name, shape in state.parameters.items()}
    different = [name for name in stored.keys() | shapes.keys() if stored.get(name) != shapes.get(name)]
    if different:
        name = min(different)
        raise StageError(
            Reason.CHECKPOINT_MISMATCH,
            f"{folder} is of another model or adapter: {name} is {stored.get(name, 'missing')} there and "
            f"{shapes.get(name, 'missing')} here ({len(different)} differ)",
        )


@torch.no_grad()
def _load(engine: Any, named: Mapping[str, nn.Parameter], folder: Path, state: CheckpointState) -> None:
    with StoredOptimizer(folder, state) as stored:
        for slice_ in list_slices(engine, named):
            for part, tensor in slice_.parts.items():
                tensor.copy_(stored.read(part, slice_.name, slice_.start, slice_.stop))
    resume_slices(engine, state.step)
