"""A run as a pass sees it: the LlavaFineTune, read from the API server and parsed."""

from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from pydantic import ValidationError

from llava_api.constants import PROXY_KEYS, SECRET_KEYS, TRAINING_STAGES, SecretRole, StageName
from llava_api.names import MAX_ATTEMPTS, job_name
from llava_api.spec import Spec
from llava_api.status import StageState, StageStatus, Status
from llava_api.text import show
from llava_operator.kube.objects import Key, Object
from llava_operator.validation_errors import describe_faults

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
        UnreadableError: spec or status have fields that this version does not know, or lack some; or the status was not
            written by an operator.
    """
    meta = raw["metadata"]
    run = Run(
        key=Key(meta["namespace"], meta["name"]),
        uid=meta["uid"],
        generation=meta.get("generation", 1),
        resource_version=meta["resourceVersion"],
        deleting="deletionTimestamp" in meta,
        spec=_parse(Spec, raw.get("spec", {}), "spec"),
        status=parse_status(raw),
    )
    _check_running(run)
    return run


def _check_running(run: Run) -> None:
    """Whoever may write statuses can write that a stage runs as any Job: only what an operator writes is taken."""
    stage = current_stage(run.status)
    if stage is None:
        return
    where = f"status.stages.{stage.name}"
    if stage.start_time is None:
        raise UnreadableError(f"{where}.startTime is missing, but the stage runs")
    if not 1 <= stage.attempt <= MAX_ATTEMPTS:
        raise UnreadableError(f"{where}.attempt is {stage.attempt}, but the stage runs")
    expected = job_name(run.key.name, stage.name, stage.attempt)
    if stage.job != expected:
        raise UnreadableError(show(f"{where}.job is {stage.job}, but attempt {stage.attempt} runs as {expected}"))


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


def ended_attempts(status: Status) -> dict[StageName, int]:
    """Number of the attempt that counts, of every stage that has ended well."""
    return {stage.name: stage.attempt for stage in status.stages if stage.state is StageState.SUCCEEDED}


class SecretUse(NamedTuple):
    """A Secret that fetching needs."""

    name: str
    keys: tuple[str, ...]
    """Keys that may be read of it; which of them it has is its author's choice."""


def secrets_of(spec: Spec) -> dict[SecretRole, SecretUse]:
    """Secrets with credentials for the run's sources, by what they are for; none for what is on a claim."""
    model = spec.model
    parts = (model.source, model.base, model.language_model, model.vision_tower, model.projector)
    uses = {
        SecretRole.MODEL: (model.secret_ref, _keys_for(*parts)),
        SecretRole.DATASET: (spec.dataset.secret_ref, _keys_for(spec.dataset.source)),
    }
    if spec.alignment is not None:
        dataset = spec.alignment.dataset
        uses[SecretRole.ALIGNMENT_DATASET] = (dataset.secret_ref, _keys_for(dataset.source))
    uses[SecretRole.DOWNLOAD] = (spec.download.secret_ref, PROXY_KEYS)
    return {role: SecretUse(secret.name, keys) for role, (secret, keys) in uses.items() if secret is not None and keys}


def _keys_for(*sources: str | None) -> tuple[str, ...]:
    """Keys that sources are fetched with, in the order of the table."""
    return tuple(
        key
        for scheme, keys in SECRET_KEYS.items()
        if any(source is not None and source.startswith(scheme) for source in sources)
        for key in keys
    )


def num_pods(run: Run, stage: StageName) -> int:
    """Pods of a stage's Job."""
    return run.spec.workers.replicas if stage in TRAINING_STAGES else 1


def num_gpus(run: Run, stage: StageName) -> int:
    """GPUs of each pod of a stage."""
    if stage in TRAINING_STAGES:
        return run.spec.workers.gpus
    return run.spec.evaluation.gpus if stage is StageName.EVALUATE else 0
