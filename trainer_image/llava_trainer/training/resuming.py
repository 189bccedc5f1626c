"""Resuming over all ranks: which checkpoint everyone goes back to, and what each takes from it.

The first rank alone looks for checkpoints. It names one by its folder and its manifest's digest, and the others
wait until they see that very one: two nodes that share a network file system may list different ones for a minute.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from llava_api.constants import StageName
from llava_api.failures import Reason
from llava_api.volume import RunVolume
from llava_trainer.errors import StageError
from llava_trainer.gang.world import World
from llava_trainer.retrying import OF_ANOTHER_NODE, Rereading
from llava_trainer.training.checkpoint import (
    CheckpointState,
    DamagedCheckpointError,
    StoredOptimizer,
    WrongContentError,
    find_missing,
    read_manifest,
    read_state,
    verify_files,
)
from llava_trainer.training.identity import find_differences
from llava_trainer.training.retention import delete_checkpoint, find_checkpoints, step_of
from llava_trainer.training.selection import Selection
from llava_trainer.training.slices import PARTS, list_slices, resume_slices
from llava_trainer.training.taking_up import Expected, take_up_checkpoints

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ResumePoint:
    """Where training begins."""

    step: int = 0
    """Optimiser steps done already."""
    folder: Path | None = None
    """The checkpoint that this comes from; None if training begins anew."""
    passed_over: tuple[Path, ...] = ()
    """Checkpoints that could not be read."""
    found: tuple[Path, ...] = ()
    """All that there were, best first. Only in the first rank."""
    selection: Selection = field(default_factory=Selection)
    """What validation had found until then."""


@dataclass(frozen=True, kw_only=True)
class _Offer:
    """A checkpoint that the first rank has found in order as far as it has looked."""

    place: str
    """Its folder below the volume, which need not be mounted at the same place everywhere."""
    digest: str
    """Of its manifest."""


def resume(
    engine: Any,
    named: Mapping[str, nn.Parameter],
    world: World,
    volume: RunVolume,
    stage: StageName,
    attempt: int,
    training: Mapping[str, str],
    total_steps: int,
) -> ResumePoint:
    """Load the newest checkpoint that is whole, whoever wrote it. Every rank calls it, and all load the same one.

    Args:
        engine: of what is trained.
        named: what is learned, by name.
        world: all of them.
        volume: the run's.
        stage: align or train.
        attempt: number of this one.
        training: what this training is (``identify_training``).
        total_steps: that it takes.

    Raises:
        StageError: CheckpointMismatch; the checkpoint was made by another training than this one.
    """
    shapes = shapes_of(named)
    if world.is_first and not find_checkpoints(volume, stage, attempt):
        take_up_checkpoints(volume, stage, attempt, Expected(training, shapes, total_steps))
    found = tuple(find_checkpoints(volume, stage, attempt)) if world.is_first else ()
    offers, passed_over = _list_offers(volume, found), []
    while (offer := world.broadcast(next(offers, None))) is not None:
        folder = volume.root / offer.place
        state, _ = _judge(folder, offer, world)
        if state is None:
            passed_over.append(folder)
            continue
        _check_same_training(folder, state, training)
        _check_same_parameters(folder, state, shapes)
        _load(engine, named, folder, state, _rereading(world))
        if world.is_first:
            logger.info("resuming from %s, after step %d of %d", folder, state.step, state.total_steps)
            passed_over = list(found[: found.index(folder)])
        return ResumePoint(
            step=state.step, folder=folder, passed_over=tuple(passed_over), found=found,
            selection=_read_selection(state),
        )  # fmt: skip
    return ResumePoint(passed_over=found, found=found)


def go_back_to_best(
    engine: Any,
    named: Mapping[str, nn.Parameter],
    world: World,
    volume: RunVolume,
    stage: StageName,
    attempt: int,
    step: int,
) -> None:
    """Load the weights that were the best: those of the checkpoint of ``step``. Every rank calls it.

    Raises:
        StageError: InternalError; it cannot be read now, or is damaged, and then deleted: another attempt goes on from
            the newest one that is whole, and looks again, or selects among what comes then.
    """
    every = find_checkpoints(volume, stage, attempt) if world.is_first else []
    offers = _list_offers(volume, tuple(folder for folder in every if step_of(folder) == step))
    while (offer := world.broadcast(next(offers, None))) is not None:
        folder = volume.root / offer.place
        state, is_wrong = _judge(folder, offer, world)
        if state is not None:
            _load(engine, named, folder, state, _rereading(world))
            return
        # What only could not be read may be in order when the next attempt looks.
        if is_wrong and world.is_first:
            delete_checkpoint(folder)
    raise StageError(
        Reason.INTERNAL_ERROR,
        f"the checkpoint of step {step}, which was the best by validation, cannot be read any more",
    )


def _read_selection(state: CheckpointState) -> Selection:
    """What a checkpoint tells of validation; nothing where a newer image has written it in another way."""
    try:
        return Selection.from_fields(state.selection)
    except ValidationError:
        return Selection()


def shapes_of(named: Mapping[str, nn.Parameter]) -> dict[str, list[int]]:
    """Shape of each parameter, also of one that ZeRO-3 has shared out."""
    return {name: list(getattr(parameter, "ds_shape", parameter.shape)) for name, parameter in named.items()}


def _list_offers(volume: RunVolume, found: tuple[Path, ...]) -> Iterator[_Offer]:
    """Those of ``found`` that are whole at a first glance, which spares the others to wait for what is not there."""
    for folder in found:
        try:
            manifest = read_manifest(folder)
            missing = find_missing(folder, manifest)
            if missing is not None:
                raise DamagedCheckpointError(f"{folder} lacks {missing}")
            read_state(folder, manifest)
        except DamagedCheckpointError as error:
            _tell_passed_over(folder, error)
        else:
            yield _Offer(place=folder.relative_to(volume.root).as_posix(), digest=manifest.digest)


def _judge(folder: Path, offer: _Offer, world: World) -> tuple[CheckpointState | None, bool]:
    """The state of a checkpoint that every rank finds in order, each looking at its share of the files.

    Else none, and whether any rank has read something else than was written; the same in every rank.
    """
    state, is_wrong, rereading = None, False, _rereading(world)
    try:
        manifest = read_manifest(folder, expected=offer.digest, rereading=rereading)
        state = read_state(folder, manifest, rereading)
        verify_files(folder, manifest, world.rank, world.world_size, rereading)
        with StoredOptimizer(folder, state, rereading) as stored:
            stored.check_whole(PARTS)
    except DamagedCheckpointError as error:
        state, is_wrong = None, isinstance(error, WrongContentError)
        _tell_passed_over(folder, error)
    if world.all_agree(state is not None):
        return state, False
    return None, not world.all_agree(not is_wrong)


def _rereading(world: World) -> Rereading:
    """The first rank has seen what it offers; the others may not see it yet."""
    return Rereading() if world.is_first else OF_ANOTHER_NODE


def _tell_passed_over(folder: Path, error: DamagedCheckpointError) -> None:
    logger.warning("the checkpoint %s is passed over for the one before: %s", folder, error)


def _check_same_training(folder: Path, state: CheckpointState, training: Mapping[str, str]) -> None:
    differences = find_differences(state.training, training)
    if differences:
        raise StageError(
            Reason.CHECKPOINT_MISMATCH,
            f"{folder} is of another training: {'; '.join(differences)}; or create another run",
        )


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
def _load(
    engine: Any, named: Mapping[str, nn.Parameter], folder: Path, state: CheckpointState, rereading: Rereading
) -> None:
    with StoredOptimizer(folder, state, rereading) as stored:
        for slice_ in list_slices(engine, named):
            for part, tensor in slice_.parts.items():
                tensor.copy_(stored.read(part, slice_.name, slice_.start, slice_.stop))
    resume_slices(engine, state.step)
