"""Creates a run's children, and says what stands in the way where it cannot."""

from llava_api.constants import KIND, LABEL_RUN_UID
from llava_api.failures import Reason
from llava_api.status import MAX_TEXT
from llava_api.text import show
from llava_operator.deciding.observation import ObstacleKind
from llava_operator.deciding.reasons import read_reason
from llava_operator.kube.client import Kube
from llava_operator.kube.errors import (
    AlreadyExistsError,
    InvalidError,
    KubeError,
    NotFoundError,
    is_from_webhook,
)
from llava_operator.kube.kinds import VOLUME_CLAIMS, Kind
from llava_operator.kube.objects import Object
from llava_operator.run import Run

_OF_THE_API_SERVER = frozenset({0, 401, 404, 408, 429})
"""Nobody answered, credentials have expired, the namespace is gone, too much to do: no run's status tells of these."""


class ObstacleError(Exception):
    """A child could not be created for a reason that belongs into the run's status."""

    def __init__(self, kind: ObstacleKind, reason: Reason, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(show(message, max_chars=MAX_TEXT))
        self.kind = kind
        self.reason = reason
        self.retry_after_s = retry_after_s
        """Seconds that the API server wants to be left alone."""


async def create_child(kube: Kube, run: Run, kind: Kind, body: Object) -> Object:
    """Create a child, or find it created already.

    Raises:
        ObstacleError: its name belongs to someone else, or the API server does not want it.
        KubeError: the API server could not be asked.
    """
    try:
        return await kube.create(kind, run.key.namespace, body)
    except AlreadyExistsError:
        return await _adopt(kube, run, kind, body["metadata"]["name"])
    except InvalidError as error:
        raise ObstacleError(ObstacleKind.REJECTED, Reason.REJECTED, str(error)) from error
    except KubeError as error:
        raise judge_refusal(error) from error


def judge_refusal(error: KubeError) -> KubeError | ObstacleError:
    """What a refusal of a run's child is to be raised as."""
    if error.status in _OF_THE_API_SERVER and not is_from_webhook(str(error)):
        return error
    # A quota, an admission policy, a webhook that denies or does not answer, the operator's own rights: all of them may
    # change, and the status may well be written meanwhile.
    return ObstacleError(ObstacleKind.BLOCKED, _reason_of(error), str(error), retry_after_s=error.retry_after_s or 0.0)


def _reason_of(error: KubeError) -> Reason:
    """Why the API server does not take a child for now: what its words say, else what its code does."""
    return read_reason(str(error)) or (Reason.API_ERROR if error.status >= 500 else Reason.REFUSED)


async def _adopt(kube: Kube, run: Run, kind: Kind, name: str) -> Object:
    try:
        found = await kube.get(kind, run.key.namespace, name)
    except NotFoundError as error:
        # It was deleted in between, or a webhook says so.
        message = f"{kind.plural} {name} is said to exist, and is not there"
        raise ObstacleError(ObstacleKind.BLOCKED, Reason.REFUSED, message) from error
    meta = found["metadata"]
    labelled = meta.get("labels", {}).get(LABEL_RUN_UID) if kind == VOLUME_CLAIMS else None
    if labelled == run.uid or (labelled is None and is_controlled_by(meta, run.uid)):
        return found
    where = f"{kind.plural} {name} exists in namespace {run.key.namespace}"
    if "deletionTimestamp" in meta or _is_leftover(meta, run):
        # Deleting a run and creating it again under its name is quicker than the deletion of its children.
        message = f"{where} and is being deleted with an earlier run of this name"
        raise ObstacleError(ObstacleKind.BLOCKED, Reason.NAME_CONFLICT, message)
    if labelled is not None:
        # What lies on it would be taken for this run's own: checkpoints, samples, results.
        message = f"{where} and holds what an earlier run of this name has made (UID {show(labelled, max_chars=63)})"
        raise ObstacleError(ObstacleKind.VOLUME_OF_EARLIER_RUN, Reason.VOLUME_OF_EARLIER_RUN, message)
    message = f"{where} and does not belong to this run"
    raise ObstacleError(ObstacleKind.NAME_CONFLICT, Reason.NAME_CONFLICT, message)


def is_controlled_by(meta: Object, uid: str) -> bool:
    """Whether an object's controller has this UID."""
    return any(owner.get("controller") and owner["uid"] == uid for owner in meta.get("ownerReferences", []))


def _is_leftover(meta: Object, run: Run) -> bool:
    return any(
        owner.get("controller") and (owner.get("kind"), owner.get("name")) == (KIND, run.key.name)
        for owner in meta.get("ownerReferences", [])
    )
