"""The folder of an attempt: claimed by one set of pods, and looked at before anything is completed or deleted."""

import os

from llava_api.constants import ENV_COMPLETION_INDEX, ENV_POD_NAME
from llava_api.failures import Reason
from llava_api.run_config import RunConfig
from llava_api.text import show
from llava_api.volume import parse_attempt
from llava_trainer.errors import StageError
from llava_trainer.files import make_folder, sync

_CLAIMS = "claims"
_MAX_POD_NAME = 253


def is_first_pod() -> bool:
    """Whether this is the pod that answers for its stage: the only one, or the one of node rank 0."""
    return pod_index() == 0


def claim_attempt(config: RunConfig) -> None:
    """Make the attempt's folder, and this pod the only one of its rank that uses it.

    A Job may be suspended and started again under the same name (Kueue does so): its second set of pods must not write
    where a pod of the first may still be writing.

    Raises:
        StageError: AttemptUsed; another pod has claimed it. Superseded; a later attempt of the stage has begun.
        OSError: the volume cannot be written.
    """
    run = config.run
    if (why := _find_later_attempt(config)) is not None:
        raise _superseded(config, why)
    folder = config.volume.attempt_dir(run.stage, run.attempt)
    folder.mkdir(parents=True, exist_ok=True)
    claim = folder / _CLAIMS / f"node-{pod_index()}"
    make_folder(claim.parent)
    try:
        descriptor = os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        owner = _read_claim(config)
        if owner != _pod_name():
            raise StageError(
                Reason.ATTEMPT_USED,
                f"{folder} was claimed by pod {show(owner or '(unknown)', max_chars=_MAX_POD_NAME)}, and this is "
                f"{_pod_name() or 'another one'}: attempt {run.attempt} of {run.stage} has run before",
            ) from None
        return
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(_pod_name().encode())
        stream.flush()
        os.fsync(descriptor)
    sync(claim.parent)


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
        if _read_claim(self._config) != _pod_name():
            return (
                f"{self._config.volume.attempt_dir(run.stage, run.attempt)} is gone: a later attempt has taken it over"
            )
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
    run, folder = config.run, config.volume.attempts_dir
    try:
        names = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return None
    for stage, number in filter(None, map(parse_attempt, names)):
        if stage is run.stage and number > run.attempt:
            return f"attempt {number} has begun ({config.volume.attempt_dir(stage, number)})"
    return None


def _read_claim(config: RunConfig) -> str | None:
    """The pod that has claimed the attempt's folder for this rank; None if none has, or the folder is gone."""
    folder = config.volume.attempt_dir(config.run.stage, config.run.attempt)
    try:
        return (folder / _CLAIMS / f"node-{pod_index()}").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _pod_name() -> str:
    """This pod's name; empty outside of a pod."""
    return os.environ.get(ENV_POD_NAME, "")


def pod_index() -> int:
    """Number of this pod in its Job, from 0: of a gang its node rank."""
    return int(os.environ.get(ENV_COMPLETION_INDEX, "0"))
