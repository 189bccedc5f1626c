"""The folder of an attempt: claimed by one set of pods, and looked at before anything is completed or deleted."""

import os
from pathlib import Path

from llava_api.failures import Reason
from llava_api.run_config import RunConfig
from llava_api.text import show
from llava_api.volume import parse_attempt
from llava_trainer.attempts.pod import pod_index, pod_name
from llava_trainer.attempts.shards import find_later_try, is_sharded, own_shard_dir, take_over_tries
from llava_trainer.errors import StageError
from llava_trainer.files import make_folder, sync

_CLAIMS, _CLAIM = "claims", "claim"
_MAX_POD_NAME = 253


def is_first_pod() -> bool:
    """Whether this is the pod that answers for its stage: the only one, or the one of node rank 0."""
    return pod_index() == 0


def claim_attempt(config: RunConfig) -> None:
    """Make the attempt's folder, and this pod the only one of its rank that uses it.

    A Job may be suspended and started again under the same name (Kueue does so): its second set of pods must not write
    where a pod of the first may still be writing. Where pods work for themselves, one that the Job controller has made
    in the place of another takes over what that has left (``shards``).

    Raises:
        StageError: AttemptUsed; another pod has claimed it. Superseded; a later attempt of the stage has begun.
        OSError: the volume cannot be written.
    """
    run = config.run
    if (why := _find_later_attempt(config)) is not None:
        raise _superseded(config, why)
    folder, claim = config.volume.attempt_dir(run.stage, run.attempt), _claim_file(config)
    folder.mkdir(parents=True, exist_ok=True)
    if is_sharded(run.stage):
        claim.parent.mkdir(parents=True, exist_ok=True)
    make_folder(claim.parent)
    try:
        descriptor = os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        owner = _read_claim(config)
        if owner != pod_name():
            raise StageError(
                Reason.ATTEMPT_USED,
                f"{claim.parent if is_sharded(run.stage) else folder} was claimed by pod "
                f"{show(owner or '(unknown)', max_chars=_MAX_POD_NAME)}, and this is {pod_name() or 'another one'}: "
                f"attempt {run.attempt} of {run.stage} has run before",
            ) from None
    else:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(pod_name().encode())
            stream.flush()
            os.fsync(descriptor)
        sync(claim.parent)
    if is_sharded(run.stage):
        take_over_tries(config)


class Fence:
    """Tells whether this attempt is still the one that counts. Any thread may ask.

    A later attempt renames the folder away, with the claim in it. On a network file system a node may see that only
    when what it knows of a folder is too old (NFS: a minute at most); what it writes until then lands in the old
    folder, wherever that lies by then, and in no other.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._refusal: str | None = None

    def refuse(self, why: str) -> None:
        """Take note that the operator takes nothing of this attempt any more; said in ``why``."""
        self._refusal = why

    def find_reason(self) -> str | None:
        """Why this attempt does not count any more; None while it does."""
        if self._refusal is not None:
            return self._refusal
        try:
            return self._look()
        except OSError:
            # A volume that is away for a moment does not tell; what is then done to it will.
            return None

    def _look(self) -> str | None:
        run = self._config.run
        if _read_claim(self._config) != pod_name():
            if is_sharded(run.stage):
                return f"{own_shard_dir(self._config)} is gone: a later attempt, or a later pod of its index, has it"
            folder = self._config.volume.attempt_dir(run.stage, run.attempt)
            return f"{folder} is gone: a later attempt has taken it over"
        return _find_later_attempt(self._config)

    def check(self) -> None:
        """Look before something is completed or deleted.

        Raises:
            StageError: Superseded.
        """
        if (why := self.find_reason()) is not None:
            raise _superseded(self._config, why)

    def check_refusal(self) -> None:
        """Look at nothing but what the operator has said, which costs nothing.

        Raises:
            StageError: Superseded.
        """
        if self._refusal is not None:
            raise _superseded(self._config, self._refusal)


def _superseded(config: RunConfig, why: str) -> StageError:
    return StageError(
        Reason.SUPERSEDED,
        f"attempt {config.run.attempt} of {config.run.stage} does not count any more, so this pod ends and leaves "
        f"everything as it is: {why}",
    )


def _find_later_attempt(config: RunConfig) -> str | None:
    """Why this pod comes too late: a later attempt has begun, or a later pod of its index; None if none has."""
    run, folder = config.run, config.volume.attempts_dir
    try:
        names = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return None
    for stage, number in filter(None, map(parse_attempt, names)):
        if stage is run.stage and number > run.attempt:
            return f"attempt {number} has begun ({config.volume.attempt_dir(stage, number)})"
    return find_later_try(config) if is_sharded(run.stage) else None


def _claim_file(config: RunConfig) -> Path:
    """Where this pod writes its name."""
    if is_sharded(config.run.stage):
        return own_shard_dir(config) / _CLAIM
    return config.volume.attempt_dir(config.run.stage, config.run.attempt) / _CLAIMS / f"node-{pod_index()}"


def _read_claim(config: RunConfig) -> str | None:
    """The pod that has claimed this rank of the attempt, or this try of its index; None if none has, or it is gone."""
    try:
        return _claim_file(config).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
