"""Small values for the controller's tests."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from llava_api.constants import StageName
from llava_api.names import job_name
from llava_api.report import (
    EvaluateNumbers,
    MergeNumbers,
    PrepareNumbers,
    Published,
    PublishNumbers,
    Score,
    StageFailure,
    StageResult,
    TrainNumbers,
)
from llava_api.spec import Spec
from llava_api.stages import stages_of
from llava_api.status import AttemptSettings, AttemptStatus, StageState, StageStatus, Status
from llava_operator.cache.views import JobEnd, JobView, PodView, Termination
from llava_operator.deciding.decide import decide
from llava_operator.deciding.decisions import Commit, Start
from llava_operator.deciding.observation import Observation
from llava_operator.kube.objects import Key
from llava_operator.run import Attempt, Run, attempt_of, current_stage
from llava_operator.stages import STAGES as operator_stages

KEY = Key("team", "invoices")
RUN_UID = "run-uid"
JOB_UID = "job-uid"
NOW = datetime(2026, 11, 1, 12, 0, 0, tzinfo=UTC)
NOW_TEXT = "2026-11-01T12:00:00Z"


class KnownRuns:
    """A cache of runs as children ask for it."""

    def __init__(self, *runs: tuple[Key, str]) -> None:
        self.runs, self.gone = set(runs), set[tuple[Key, str]]()

    def has(self, key: Key, uid: str) -> bool:
        return (key, uid) in self.runs

    def had(self, key: Key, uid: str) -> bool:
        return (key, uid) in self.gone


def make_spec(**changes: Any) -> Spec:
    base: dict[str, Any] = {
        "model": {"source": "pvc://models/llava"},
        "dataset": {"source": "pvc://data/set", "format": "llava", "file": "train.json"},
        "training": {"batch": {"perDevice": 1, "global": 2}},
        "workers": {"replicas": 2, "gpus": 0},
        "evaluation": {"workers": {"gpus": 0}},
    }
    return Spec.model_validate({**base, **changes})


FROM_SCRATCH: dict[str, Any] = {
    "model": {"languageModel": "pvc://models/vicuna", "visionTower": "pvc://models/clip"},
    "alignment": {
        "dataset": {"source": "pvc://data/captions", "format": "llava", "file": "captions.json"},
        "batch": {"perDevice": 1, "global": 2},
    },
}
"""Spec of a run that aligns a fresh projector first."""
ONCE: dict[str, Any] = {"training": {"batch": {"perDevice": 1, "global": 2}, "maxRestarts": 0}}
"""Spec of a run whose first failure of its own is its last."""
STAGES = stages_of(make_spec())
"""Stages of the plain run that these tests are about."""


def make_run(status: Status | None = None, *, deleting: bool = False, **spec: Any) -> Run:
    return Run(
        key=KEY,
        uid=RUN_UID,
        generation=1,
        resource_version="7",
        deleting=deleting,
        spec=make_spec(**spec),
        status=status or Status(),
    )


def see(status: Status | None = None, *, spec: dict[str, Any] | None = None, **observed: Any) -> Observation:
    observed.setdefault("now", NOW)
    return Observation(run=make_run(status, **(spec or {})), **observed)


def commit(seen: Observation) -> Status:
    """The status that a decision writes; it must be one."""
    decision = decide(seen)
    assert isinstance(decision, Commit), decision
    return decision.status


def begun(stage: StageName = StageName.PREPARE, *, with_job: bool = True) -> Status:
    """A status of a run whose ``stage`` runs, made by the decisions themselves."""
    status = commit(see())
    for name in STAGES[: STAGES.index(stage)]:
        status = commit(see(status, job=make_job(status, complete=True), pods=(succeeded(name),)))
    if with_job:
        status = commit(see(status, job=make_job(status)))
    return status


def walk(spec: dict[str, Any], until: StageName | None = None) -> Status:
    """A run whose stages succeed, each started first; up to the point where ``until`` runs."""

    def look(status: Status | None, **observed: Any) -> Observation:
        return Observation(run=make_run(status, **spec), now=NOW, **observed)

    status = commit(look(None))
    while stage := current_stage(status):
        assert decide(look(status)) == Start(stage=stage.name, attempt=1)
        if stage.name is until:
            return commit(look(status, job=make_job(status)))
        status = commit(look(status, job=make_job(status, complete=True), pods=(succeeded(stage.name),)))
    return status


def make_job(status: Status, **changes: Any) -> JobView:
    stage = current_stage(status)
    assert stage is not None
    job = JobView(
        key=Key(KEY.namespace, job_name(KEY.name, stage.name, stage.attempt)),
        uid=JOB_UID,
        run=KEY.name,
        owner_uid=RUN_UID,
    )
    return replace(job, **changes)


def make_attempt(run: Run, stage: StageName, number: int = 1, **settings: Any) -> Attempt:
    """An attempt as it is committed to with the run's own spec."""
    traits = operator_stages[stage]
    size: dict[str, Any] = {"replicas": traits.num_pods(run.spec), "gpus": traits.gpus(run.spec)}
    newest = AttemptStatus(number=number, settings=AttemptSettings(**{**size, **settings}))
    return attempt_of(run, StageStatus(name=stage, state=StageState.RUNNING, attempt=number, attempts=(newest,)))


def make_pod(name: str = "pod-0", **changes: Any) -> PodView:
    pod = PodView(key=Key(KEY.namespace, name), uid=f"{name}-uid", run=KEY.name, job_uid=JOB_UID)
    return replace(pod, **changes)


def job_end(reason: str = "PodFailurePolicy", message: str = "a pod has failed") -> JobEnd:
    return JobEnd(reason=reason, message=message, time=NOW_TEXT)


RESULTS = {
    StageName.PREPARE: StageResult(
        stage=StageName.PREPARE, attempt=1,
        prepare=PrepareNumbers(samples_train=8, samples_validation=2, pairs_train=9, pairs_validation=3, images=10,
                               supervised_tokens=99,
                               longest_sample_tokens=40, overlong_samples=3, publishes=True),
    ),
    StageName.ALIGN: StageResult(
        stage=StageName.ALIGN, attempt=1, digests={"projector": "p"},
        align=TrainNumbers(steps=4, final_loss=2.5, trainable_parameters=4, tokens=500, world_size=2),
    ),
    StageName.TRAIN: StageResult(
        stage=StageName.TRAIN, attempt=1, digests={"adapter": "a"},
        train=TrainNumbers(steps=12, final_loss=0.25, trainable_parameters=10, tokens=1000, world_size=2),
    ),
    StageName.MERGE: StageResult(
        stage=StageName.MERGE, attempt=1, digests={"merged": "b"},
        merge=MergeNumbers(tensors_merged=7, max_logit_difference=1e-6, max_rounding_difference=0.0,
                           peak_memory_bytes=1),
    ),
    StageName.EVALUATE: StageResult(
        stage=StageName.EVALUATE, attempt=1, digests={"report": "c"},
        evaluate=EvaluateNumbers(
            scores=(
                Score(metric="exact_match", split="train", base=0.0, tuned=1.0, samples=8),
                Score(metric="exact_match", split="validation", base=0.02, tuned=0.97, samples=2),
            ),
            prompts=0,
        ),
    ),
    StageName.PUBLISH: StageResult(
        stage=StageName.PUBLISH, attempt=1,
        publish=PublishNumbers(published=(
            Published(destination=0, what="merged", digest=f"sha256:{'d' * 64}", size_bytes=2**31, sent_bytes=2**30),
        )),
    ),
}  # fmt: skip


def succeeded(stage: StageName, message: str | None = None) -> PodView:
    text = RESULTS[stage].to_termination_message() if message is None else message
    return make_pod(phase="Succeeded", started=True, ended=_ended(0, text))


def failed(
    name: str = "pod-0",
    *,
    exit_code: int = 1,
    message: str = "",
    failure: StageFailure | None = None,
    stage: StageName = StageName.TRAIN,
    reason: str = "Error",
    after_s: int = 0,
    **changes: Any,
) -> PodView:
    if failure is not None:
        message = StageResult(stage=stage, attempt=1, failure=failure).to_termination_message()
    ended = _ended(exit_code, message, reason=reason, after_s=after_s)
    return make_pod(name, phase="Failed", started=True, ended=ended, **changes)


def _ended(exit_code: int, message: str, *, reason: str = "Completed", after_s: int = 0) -> Termination:
    finished = (NOW + timedelta(seconds=after_s)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Termination(exit_code=exit_code, reason=reason, message=message, finished_at=finished)
