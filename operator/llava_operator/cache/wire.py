"""What is read of a Job, a pod and a node as the API server sends them.

Whoever may create pods can put our label on them and anything else into them, in every namespace.
"""

from enum import StrEnum
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from llava_api.constants import LABEL_RUN
from llava_operator.kube.objects import Key, Object
from llava_operator.validation_errors import describe_faults


class ForeignReason(StrEnum):
    """Why an object that carries our label is none of ours."""

    UNREADABLE = "unreadable"
    """It is not what its kind looks like."""
    UNLABELLED = "unlabelled"
    """It names no run."""
    UNOWNED = "unowned"
    """No run, and no Job of a run, that is known in its namespace controls it."""
    GONE = "gone"
    """What controls it was a run's until a moment ago: no stranger, and not to be told of."""


class ForeignError(Exception):
    """An object that carries our label is none of ours. Nothing of it may be used."""

    def __init__(self, reason: ForeignReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def _empty_for_none(value: object) -> object:
    return "" if value is None else value


_Text = Annotated[str, BeforeValidator(_empty_for_none)]


class _Wire(BaseModel):
    model_config = ConfigDict(extra="ignore", alias_generator=to_camel, frozen=True)


class Owner(_Wire):
    """What an object goes with when that is deleted."""

    api_version: _Text = ""
    kind: _Text = ""
    name: _Text = ""
    uid: str
    controller: bool | None = None


class Meta(_Wire):
    """An object's metadata."""

    namespace: str
    name: str
    uid: str
    labels: dict[str, str] = {}
    owner_references: list[Owner] = []
    creation_timestamp: _Text = ""
    deletion_timestamp: str | None = None

    @property
    def key(self) -> Key:
        """Its namespace and name."""
        return Key(self.namespace, self.name)

    def controller(self, api_version: str, kind: str) -> Owner:
        """The one that controls it.

        Raises:
            ForeignError: it is of another kind, or there is none.
        """
        for owner in self.owner_references:
            if owner.controller and (owner.api_version, owner.kind) == (api_version, kind):
                return owner
        raise ForeignError(ForeignReason.UNOWNED, f"no {kind} is its controller")

    @property
    def run(self) -> str:
        """Name of the run in its label; empty where there is none."""
        return self.labels.get(LABEL_RUN, "")


class Condition(_Wire):
    """A condition, of a Job or of a pod."""

    type: str
    status: str
    reason: _Text = ""
    message: _Text = ""
    last_transition_time: _Text = ""


class JobStatus(_Wire):
    """How a Job does."""

    conditions: list[Condition] = []
    succeeded: int = 0
    failed: int = 0
    failed_indexes: _Text = ""


class JobSpec(_Wire):
    """What a Job is to do."""

    suspend: bool | None = None


class Job(_Wire):
    """A Job."""

    metadata: Meta
    spec: JobSpec = JobSpec()
    status: JobStatus = JobStatus()


class Waiting(_Wire):
    """Why a container does not run."""

    reason: _Text = ""
    message: _Text = ""


class Terminated(_Wire):
    """How a container ended."""

    exit_code: int
    reason: _Text = ""
    message: _Text = ""
    finished_at: _Text = ""


class ContainerState(_Wire):
    """One of its three, or none yet."""

    waiting: Waiting | None = None
    running: dict[str, object] | None = None
    terminated: Terminated | None = None


class Container(_Wire):
    """A container of a pod, as its node tells."""

    name: str
    image_id: Annotated[_Text, Field(alias="imageID")] = ""
    state: ContainerState = ContainerState()


class PodStatus(_Wire):
    """How a pod does."""

    phase: Literal["Pending", "Running", "Succeeded", "Failed", "Unknown"] = "Pending"
    reason: _Text = ""
    message: _Text = ""
    conditions: list[Condition] = []
    container_statuses: Annotated[list[Container], Field(default_factory=list)]


class PodSpec(_Wire):
    """What a pod is to do."""

    node_name: _Text = ""


class Pod(_Wire):
    """A pod."""

    metadata: Meta
    spec: PodSpec = PodSpec()
    status: Annotated[PodStatus, Field(default_factory=PodStatus)]


class NodeMeta(_Wire):
    """A node's metadata: it has no namespace."""

    labels: dict[str, str] = {}


class Node(_Wire):
    """A node."""

    metadata: NodeMeta


Parsed = TypeVar("Parsed", bound=_Wire)


def parse(model: type[Parsed], raw: Object) -> Parsed:
    """An object as far as its kind is used.

    Raises:
        ForeignError: it is not what its kind looks like.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise ForeignError(ForeignReason.UNREADABLE, describe_faults(error)) from None
