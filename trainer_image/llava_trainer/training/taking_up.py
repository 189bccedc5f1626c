"""Checkpoints of other runs on the same claim: taken up where this run has none and theirs are of the same training."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from llava_api.constants import StageName
from llava_api.volume import RunVolume
from llava_trainer.attempts.other_runs import link_folder, list_attempts_of_others
from llava_trainer.files import make_folder
from llava_trainer.training.checkpoint import (
    CheckpointState,
    DamagedCheckpointError,
    checkpoint_dir,
    find_missing,
    read_manifest,
    read_state,
)
from llava_trainer.training.identity import RECIPE, find_differences
from llava_trainer.training.retention import list_checkpoints, step_of

_TAKEN_UP = 2
"""Checkpoints that are linked: the newest, and one in case it turns out to be damaged."""

logger = logging.getLogger(__name__)


def take_up_checkpoints(volume: RunVolume, stage: StageName, attempt: int, training: Mapping[str, str]) -> None:
    """Link the newest checkpoints of another run's same training into this attempt's folder, and the curve up to there.

    Args:
        volume: the run's.
        stage: align or train.
        attempt: number of this one, which has no checkpoint.
        training: what this training is (``identify_training``); one of another is left where it is.
    """
    found = [folder for own in list_attempts_of_others(volume, stage) for folder in _list_same(own, training)]
    own = volume.checkpoints_dir(stage, attempt)
    taken_up: list[int] = []
    for folder in sorted(found, key=step_of, reverse=True):
        step = step_of(folder)
        if len(taken_up) == _TAKEN_UP or step in taken_up:
            continue
        try:
            if not taken_up:
                _copy_history(folder, volume.history_file(stage, attempt))
            make_folder(own)
            link_folder(folder, checkpoint_dir(own, step))
        except OSError as error:
            logger.warning("the checkpoint %s of another run cannot be taken up: %s", folder, error)
            continue
        taken_up.append(step)
        logger.info("%s, which another run has made of the same training, is taken up", folder)


def _list_same(attempt_dir: Path, training: Mapping[str, str]) -> list[Path]:
    same = []
    for folder in list_checkpoints(attempt_dir / "checkpoints"):
        try:
            manifest = read_manifest(folder)
            if find_missing(folder, manifest) is None and _is_same(read_state(folder, manifest), training):
                same.append(folder)
        except DamagedCheckpointError as error:
            logger.info("a checkpoint of another run is left: %s", error)
        except Exception as error:
            # Whatever another run has left there ends no training of this one.
            logger.warning("a checkpoint of another run is left, which cannot be read: %r", error)
    return same


def _is_same(state: CheckpointState, training: Mapping[str, str]) -> bool:
    """Whether a checkpoint says of itself all that this training is."""
    is_told = training.keys() <= state.training.keys()
    return is_told and not find_differences(state.training, training) and state.training[RECIPE] == training[RECIPE]


def _copy_history(folder: Path, file: Path) -> None:
    """The training curve, which lies beside the checkpoints (STAGE-N/checkpoints/step-M)."""
    curve = folder.parent.parent / file.name
    if curve.is_file() and not curve.is_symlink():
        shutil.copyfile(curve, file)
