"""A run as a pass sees it: the LlavaFineTune, read from the API server and parsed."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from llava_api.constants import RUN_VOLUME_PATH, StageName
from llava_api.names import MAX_ATTEMPTS, MAX_REPLICAS, job_name
from llava_api.optimizer_steps import settle_spec
from llava_api.spec import Spec
from llava_api.status import AttemptSettings, AttemptState, StageState, StageStatus, Status
from llava_api.volume import run_folder
from llava_operator.kube.objects import Key, Object
from llava_operator.stages import STAGES, Stage
from llava_operator.validation_errors import describe_faults

_Model = TypeVar("_Model", Spec, Status)
MAX_GPUS = 16


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
    """With the global batch that prepare has chosen, where that is auto."""
    status: Status

    @property
    def volume_root(self) -> Path:
        """Where its pods find everything that is the run's."""
        has_folder = self.status.artifacts is not None and self.status.artifacts.volume_folder
        return Path(RUN_VOLUME_PATH) / (run_folder(self.uid) if has_folder else "")


def parse_run(raw: Object) -> Run:
    """Parse a LlavaFineTune.

    Raises:
        UnreadableError: spec or status have fields that this version does not know, or lack some; or the status was not
            written by an operator.
    """
    meta = raw["metadata"]
    status = parse_status(raw)
    spec = _parse(Spec, raw.get("spec", {}), "spec")
    run = Run(
        key=Key(meta["namespace"], meta["name"]),
        uid=meta["uid"],
        generation=meta.get("generation", 1),
        resource_version=meta["resourceVersion"],
        deleting="deletionTimestamp" in meta,
        spec=settle_spec(spec, status.data.global_batch if status.data else None),
        status=status,
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
    numbers = [attempt.number for attempt in stage.attempts]
    if not 0 <= stage.attempt <= MAX_ATTEMPTS or stage.attempt != (numbers[-1] if numbers else 0):
        raise UnreadableError(f"{where}.attempt is {stage.attempt}, but its attempts are {numbers}")
    if numbers != list(range(stage.attempt - len(numbers) + 1, stage.attempt + 1)):
        raise UnreadableError(f"{where}.attempts are numbered {numbers}, not one after the other")
    if any(attempt.state is not AttemptState.GONE for attempt in stage.attempts[:-1]):
        raise UnreadableError(f"{where}.attempts has an attempt that runs before the newest")
    newest = stage.newest
    if newest is not None and newest.state is not AttemptState.GONE and newest.start_time is None:
        raise UnreadableError(f"{where}.attempts has one that runs without a startTime")
    if newest is not None and newest.state is AttemptState.STOPPING and newest.stop_time is None:
        raise UnreadableError(f"{where}.attempts has one that stops without a stopTime")
    size = stage.newest.settings if stage.newest else AttemptSettings()
    replicas = 1 if size.replicas is None else size.replicas
    if not (1 <= replicas <= MAX_REPLICAS and (size.gpus or 0) <= MAX_GPUS and size.per_device_batch != 0):
        raise UnreadableError(f"{where}.attempts has settings that no spec has")


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


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """An attempt of a stage, as its children are made."""

    run: Run
    """With the spec that the attempt was committed to run with."""
    stage: Stage
    number: int
    settings: AttemptSettings

    @property
    def spec(self) -> Spec:
        """What it runs with."""
        return self.run.spec

    @property
    def job(self) -> str:
        """Name of its Job, and of the ConfigMap with its run configuration."""
        return job_name(self.run.key.name, self.stage.name, self.number)

    @property
    def num_pods(self) -> int:
        """Pods of its Job."""
        return self.stage.num_pods(self.spec)

    @property
    def num_gpus(self) -> int:
        """GPUs of each of its pods."""
        return self.stage.gpus(self.spec)

    @property
    def grace_period_s(self) -> int:
        """Seconds that its pods have when they are asked to stop."""
        return self.stage.grace_period_s(self.spec)


def attempt_of(run: Run, stage: StageStatus) -> Attempt:
    """The newest attempt of a stage. There must be one."""
    newest = stage.newest
    assert newest is not None, "an attempt has been committed to"
    spec = freeze_spec(run.spec, STAGES[stage.name], newest.settings)
    return Attempt(
        run=replace(run, spec=spec), stage=STAGES[stage.name], number=newest.number, settings=newest.settings
    )


def freeze_spec(spec: Spec, stage: Stage, settings: AttemptSettings) -> Spec:
    """The spec with what an attempt was committed to run with, whatever has become of it since."""
    image = spec.image.model_copy(update={"reference": settings.image or spec.image.reference})
    update: dict[str, object] = {"image": image}
    if stage.is_gang:
        size = {"replicas": settings.replicas, "gpus": settings.gpus}
        known = {name: value for name, value in size.items() if value is not None}
        update["workers"] = spec.workers.model_copy(update=known)
        update |= _freeze_batch(spec, stage, settings.per_device_batch)
    if stage.publishes and settings.publish is not None:
        update["publish"] = settings.publish
    return spec.model_copy(update=update)


def _freeze_batch(spec: Spec, stage: Stage, per_device: int | None) -> dict[str, object]:
    if per_device is None:
        return {}
    name = "alignment" if stage.name is StageName.ALIGN else "training"
    phase = getattr(spec, name)
    batch = phase.batch.model_copy(update={"per_device": per_device})
    return {name: phase.model_copy(update={"batch": batch})}
