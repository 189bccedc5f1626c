"""The folders of evaluation's shards: one of each completion index, and in it one of each of its tries.

The Job controller replaces a pod that has failed, in the same attempt, and may hold one for failed that runs on: on a
node that was cut off. So the pods of an index keep each other out as attempts do. Each writes into a folder of its own,
which is called by how many pods of the index have failed before, and the next one renames that folder into its own.
What an index has made whole is renamed out of it, once, and nobody touches that any more in this attempt.
"""

import errno
import logging
from pathlib import Path
from typing import Protocol

from llava_api.constants import StageName
from llava_api.run_config import RunConfig
from llava_api.volume import parse_try
from llava_trainer.attempts.pod import pod_index, pod_try
from llava_trainer.attempts.takeover import BEFORE, list_earlier, rename_if_there
from llava_trainer.files import make_folder, sync

_WHOLE = "whole"

logger = logging.getLogger(__name__)


class Check(Protocol):
    """A fence, as far as it matters here."""

    def check(self) -> None:
        """Raise StageError where this pod does not count any more."""


def is_sharded(stage: StageName) -> bool:
    """Whether pods of a stage work for themselves, and are replaced by themselves."""
    return stage is StageName.EVALUATE


def own_shard_dir(config: RunConfig) -> Path:
    """Folder that this pod alone writes to; made by its claim."""
    return _shard_dir(config, pod_index()) / f"try-{pod_try()}"


def whole_shard_dir(config: RunConfig, index: int) -> Path:
    """Folder that holds what an index of this attempt has made, once it is whole; it then stays as it is."""
    return _shard_dir(config, index) / _WHOLE


def find_later_try(config: RunConfig) -> str | None:
    """Why this pod does not count any more: a later one of its index has begun; None if none has."""
    later = [folder for folder, number in _list_tries(_shard_dir(config, pod_index())) if number > pod_try()]
    return f"another pod has taken its place ({later[0]})" if later else None


def take_over_tries(config: RunConfig) -> None:
    """Rename the folder of each earlier pod of this index into this pod's own.

    Raises:
        OSError: the volume cannot be written.
    """
    own = own_shard_dir(config)
    for folder, number in _list_tries(own.parent):
        if number < pod_try():
            make_folder(own / BEFORE)
            rename_if_there(folder, own / BEFORE / folder.name)
            sync(own.parent)
            logger.info("what an earlier pod of index %d has left is taken over: %s", pod_index(), folder.name)
    for folder, _ in _list_tries(own / BEFORE):
        # Folders in folders would have no end.
        for before, _ in _list_tries(folder / BEFORE):
            # The name is taken where a pod that was cut off has made its folder again.
            if not (own / BEFORE / before.name).exists():
                rename_if_there(before, own / BEFORE / before.name)


def publish_shard(config: RunConfig, fence: Check) -> None:
    """Give the folder ``whole`` in this pod's own folder its place; what an earlier pod of the index put there stays.

    Args:
        config: the run configuration.
        fence: asked before.

    Raises:
        StageError: Superseded.
        OSError: the volume cannot be written, or a later pod has taken this one's folder.
    """
    own, place = own_shard_dir(config) / _WHOLE, whole_shard_dir(config, pod_index())
    for path in (*own.rglob("*"), own):
        sync(path)
    fence.check()
    try:
        own.rename(place)
    except OSError as error:
        # Of a folder that holds something POSIX allows both words.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        logger.info("shard %d had been made whole before", pod_index())
    sync(place.parent)


def list_left_files(config: RunConfig, name: str) -> list[Path]:
    """Files of this name that shards before have left, newest first.

    Args:
        config: the run configuration.
        name: of a file in a pod's folder, or in what was made whole.

    Returns:
        Those of earlier pods of this index, then those of all indexes of earlier attempts, however many these had. Who
        wrote them may write on.
    """
    own = own_shard_dir(config)
    folders = [one for last in _list_before(own) for one in (last, *_list_before(last))]
    attempt = config.volume.attempt_dir(config.run.stage, config.run.attempt)
    for earlier in list_earlier(attempt):
        for shard in sorted((earlier / own.parent.parent.name).glob("*")):
            tries = [folder for folder, _ in reversed(_list_tries(shard))]
            folders += [shard / _WHOLE, *(one for last in tries for one in (last, *_list_before(last)))]
    return [folder / sub / name for folder in folders for sub in ("", _WHOLE) if (folder / sub / name).is_file()]


def _list_before(folder: Path) -> list[Path]:
    return [before for before, _ in reversed(_list_tries(folder / BEFORE))]


def _shard_dir(config: RunConfig, index: int) -> Path:
    return config.volume.shard_dir(config.run.stage, config.run.attempt, index)


def _list_tries(folder: Path) -> list[tuple[Path, int]]:
    """Folders of pods in a folder, with their numbers, in order; none where it is not there."""
    found = ((path, parse_try(path.name)) for path in folder.glob("*"))
    return sorted(((path, number) for path, number in found if number is not None), key=lambda one: one[1])
