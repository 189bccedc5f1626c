"""Checkpoints of other runs on the same claim: taken up where this run has none and theirs are of the same training.

Others may have put anything there (``foreign``). What says what a checkpoint is gets copied, so that it cannot become
something else when it has been compared; what is large is linked, and verified by digest as any checkpoint is.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from llava_api.constants import StageName
from llava_api.volume import RunVolume
from llava_trainer.attempts.foreign import ForeignFolder, split_name
from llava_trainer.attempts.other_runs import list_attempts_of_others, list_names
from llava_trainer.files import aside_of, begin_folder, make_folder, publish_folder, remove_folder
from llava_trainer.training.checkpoint import (
    MANIFEST_FILE,
    STATE_FILE,
    CheckpointState,
    DamagedCheckpointError,
    checkpoint_dir,
    read_manifest,
    read_state,
)
from llava_trainer.training.curve import Curve, read_points
from llava_trainer.training.identity import told_by
from llava_trainer.training.retention import is_checkpoint, step_of

_TAKEN_UP = 2
"""Checkpoints that are linked: the newest, and one in case it turns out to be damaged."""
_MOST_LOOKED_AT = 4
"""Of an attempt, the newest."""
_MOST_JSON_BYTES = 4 << 20
"""Of manifest and state: of a model of 13 billion parameters they are below 200 kB."""
_MOST_CURVE_BYTES = 64 << 20
_BYTES_A_NUMBER = 32
"""At most in all files, twice what is written: fp32 originals, two moments, and what can be served."""
_OTHER_BYTES = 64 << 20
"""At most that does not grow with the numbers: headers, configuration."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Expected:
    """What a checkpoint has to be of."""

    training: Mapping[str, str]
    """See ``identify_training``; a checkpoint has to tell all of it."""
    shapes: Mapping[str, list[int]]
    """Of all that is trained, by name."""
    total_steps: int


def take_up_checkpoints(volume: RunVolume, stage: StageName, attempt: int, expected: Expected) -> None:
    """Link the newest checkpoints of another run's same training into this attempt's folder, and the curve up to there.

    Args:
        volume: the run's.
        stage: align or train.
        attempt: number of this one, which has no checkpoint.
        expected: one of anything else is left where it is.
    """
    own = volume.checkpoints_dir(stage, attempt)
    taken_up: list[int] = []
    for folder in sorted(_list_newest(volume, stage), key=lambda folder: step_of(folder.path), reverse=True):
        step = step_of(folder.path)
        if len(taken_up) == _TAKEN_UP or step in taken_up:
            continue
        target = checkpoint_dir(own, step)
        try:
            _bring(folder, target, expected)
            if not taken_up:
                _copy_curve(folder, volume.history_file(stage, attempt), step)
            publish_folder(target, at_once=True)
        except DamagedCheckpointError as error:
            logger.info("the checkpoint %s of another run is left: %s", folder.path, error)
            continue
        except OSError as error:
            logger.warning("the checkpoint %s of another run cannot be taken up: %s", folder.path, error)
            continue
        finally:
            # What cannot be removed now is before the first checkpoint is written (``remove_unfinished``).
            with suppress(OSError):
                remove_folder(aside_of(target))
        taken_up.append(step)
        logger.info("%s, which another run has made of the same training, is taken up", folder.path)


def _list_newest(volume: RunVolume, stage: StageName) -> Iterator[ForeignFolder]:
    for attempt in list_attempts_of_others(volume, stage):
        checkpoints = attempt / volume.checkpoints_dir(stage, 1).name
        found = sorted((name for name in list_names(checkpoints) if is_checkpoint(name)), reverse=True)
        yield from (checkpoints / name for name in found[:_MOST_LOOKED_AT])


def _bring(folder: ForeignFolder, target: Path, expected: Expected) -> None:
    """Have a whole checkpoint lie aside of ``target``: every file that its manifest lists.

    Raises:
        DamagedCheckpointError: it is damaged, or of another training.
        OSError: something cannot be read or written, or is not what it should be.
    """
    aside = begin_folder(target)
    for name in (MANIFEST_FILE, STATE_FILE):
        (aside / name).write_bytes(folder.read_file(name, _MOST_JSON_BYTES))
    manifest = read_manifest(aside)
    _check_same(step_of(target), read_state(aside, manifest), expected)
    most_bytes = _OTHER_BYTES + _BYTES_A_NUMBER * sum(math.prod(shape) for shape in expected.shapes.values())
    for name in sorted(manifest.files.keys() - {STATE_FILE}):
        file = aside.joinpath(*split_name(name))
        if file.exists():
            # Its own manifest, or a name that the volume takes for that of another file.
            raise DamagedCheckpointError(f"{folder.path} lists {name!r:.100}, which is there already")
        make_folder(file.parent)
        most_bytes -= folder.take_file(name, file, most_bytes)


def _check_same(step: int, state: CheckpointState, expected: Expected) -> None:
    made_by = told_by(state.training)
    differs = [name for name, value in expected.training.items() if made_by.get(name) != value]
    if differs:
        raise DamagedCheckpointError(f"it is of another training, which differs in {', '.join(differs)}")
    if state.parameters != expected.shapes:
        raise DamagedCheckpointError("it is of another model or adapter")
    if (state.step, state.total_steps) != (step, expected.total_steps) or not 0 < step < expected.total_steps:
        raise DamagedCheckpointError(f"it is of step {state.step} of {state.total_steps}")


def _copy_curve(folder: ForeignFolder, file: Path, step: int) -> None:
    """The training curve, which lies beside the checkpoints (STAGE-N/checkpoints/step-M)."""
    try:
        content = folder.at(folder.path.parent.parent).read_file(file.name, _MOST_CURVE_BYTES)
    except OSError as error:
        logger.warning("the curve of %s is left: %s", folder.path, error)
        content = b""
    with Curve(file) as curve:
        for point in read_points(content.splitlines()):
            if point.step <= step:
                curve.append(point)
