"""Creates a run's children, and says what stands in the way where it cannot."""

from llava_api.constants import KIND
from llava_api.text import show
from llava_operator.decide import ObstacleKind
from llava_operator.kube import (
    AlreadyExistsError,
    ForbiddenError,
    InvalidError,
    Kind,
    Kube,
    NotFoundError,
    RefusedError,
    RetryableError,
)
from llava_operator.run import Run
from llava_operator.wire import Object

MAX_TEXT = 4096
"""Longest text that the status may hold."""


class ObstacleError(Exception):
    """A child could not be created for a reason that belongs into the run's status."""

    def __init__(self, kind: ObstacleKind, message: str) -> None:
        super().__init__(show(message, max_chars=MAX_TEXT))
        self.kind = kind


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
        raise ObstacleError(ObstacleKind.REJECTED, str(error)) from error
    except (ForbiddenError, RefusedError) as error:
        # A quota, an admission policy or webhook, the operator's own rights: all of them may change.
        raise ObstacleError(ObstacleKind.BLOCKED, str(error)) from error
    except RetryableError as error:
        if error.status < 500:
            raise
        # A webhook that does not answer, for example: the status may well be written meanwhile.
        raise ObstacleError(ObstacleKind.BLOCKED, str(error)) from error


async def _adopt(kube: Kube, run: Run, kind: Kind, name: str) -> Object:
    try:
        found = await kube.get(kind, run.key.namespace, name)
    except NotFoundError as error:
        raise RetryableError(f"{kind.plural} {name} vanished while it was looked at") from error
    meta = found["metadata"]
    if is_controlled_by(meta, run.uid):
        return found
    where = f"{kind.plural} {name} exists in namespace {run.key.namespace}"
    if "deletionTimestamp" in meta or _is_leftover(meta, run):
        # Deleting a run and creating it again under its name is quicker than the deletion of its children.
        raise ObstacleError(ObstacleKind.BLOCKED, f"{where} and is being deleted with an earlier run of this name")
    raise ObstacleError(ObstacleKind.NAME_CONFLICT, f"{where} and does not belong to this run")


def is_controlled_by(meta: Object, uid: str) -> bool:
    """Whether an object's controller has this UID."""
    return any(owner.get("controller") and owner["uid"] == uid for owner in meta.get("ownerReferences", []))


def _is_leftover(meta: Object, run: Run) -> bool:
    return any(
        owner.get("controller") and (owner.get("kind"), owner.get("name")) == (KIND, run.key.name)
        for owner in meta.get("ownerReferences", [])
    )
