"""A run as a pass sees it: the LlavaFineTune, read from the API server and parsed."""

from dataclasses import dataclass
from typing import TypeVar

from pydantic import ValidationError

from llava_api.constants import TRAINING_STAGES, SecretRole, StageName
from llava_api.spec import Spec
from llava_api.status import StageState, StageStatus, Status
from llava_operator.faults import describe_faults
from llava_operator.views import Key
from llava_operator.wire import Object

_Model = TypeVar("_Model", Spec, Status)


class UnreadableError(Exception):
    """The object was written by another version of the operator or its CRD; the message names the fields."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A LlavaFineTune."""

    key: Key
    uid: str
    generation: int
    resource_version: str
    deleting: bool
    spec: Spec
    status: Status


def parse_run(raw: Object) -> Run:
    """Parse a LlavaFineTune.

    Raises:
        UnreadableError: spec or status have fields that this version does not know, or lack some.
    """
    meta = raw["metadata"]
    return Run(
        key=Key(meta["namespace"], meta["name"]),
        uid=meta["uid"],
        generation=meta.get("generation", 1),
        resource_version=meta["resourceVersion"],
        deleting="deletionTimestamp" in meta,
        spec=_parse(Spec, raw.get("spec", {}), "spec"),
        status=parse_status(raw),
    )


def parse_status(raw: Object) -> Status:
    """Parse a LlavaFineTune's status.

    Raises:
        UnreadableError: it has values that this version does not know.
    """
    return _parse(Status, raw.get("status") or {}, "status")


def _parse(model: type[_Model], value: Object, where: str) -> _Model:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise UnreadableError(describe_faults(error, where)) from None


def current_stage(status: Status) -> StageStatus | None:
    """The stage that has been begun and not ended; None before the first and after the last."""
    return next((stage for stage in status.stages if stage.state is StageState.RUNNING), None)


def stage_of(status: Status, name: StageName) -> StageStatus:
    """The stage of this name; as it is before a run begins, if the status has none."""
    return next((stage for stage in status.stages if stage.name is name), StageStatus(name=name))


def secrets_of(spec: Spec) -> dict[SecretRole, str]:
    """Secrets with credentials for the run's sources, by what they are for."""
    references = {
        SecretRole.MODEL: spec.model.secret_ref,
        SecretRole.DATASET: spec.dataset.secret_ref,
        SecretRole.ALIGNMENT_DATASET: spec.alignment.dataset.secret_ref if spec.alignment else None,
        SecretRole.DOWNLOAD: spec.download.secret_ref,
    }
    return {role: reference.name for role, reference in references.items() if reference is not None}


def num_pods(run: Run, stage: StageName) -> int:
    """Pods of a stage's Job."""
    return run.spec.workers.replicas if stage in TRAINING_STAGES else 1


def num_gpus(run: Run, stage: StageName) -> int:
    """GPUs of each pod of a stage."""
    if stage in TRAINING_STAGES:
        return run.spec.workers.gpus
    return run.spec.evaluation.gpus if stage is StageName.EVALUATE else 0
