"""What a stage is said to wait for."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from llava_api.constants import Condition, StageName
from llava_api.failures import Reason
from llava_api.status import ApiTrouble
from llava_operator.acting.events import build_event
from llava_operator.acting.transitions import list_transitions
from llava_operator.cache.views import PodView
from llava_operator.clock import from_time, to_time
from llava_operator.deciding.decide import decide
from llava_operator.deciding.decisions import Wait
from llava_operator.deciding.observation import Observation, Obstacle, ObstacleKind
from llava_operator.deciding.violations import Violation
from llava_operator.deciding.waiting import Trouble, describe_waiting, list_needs, told_from
from llava_operator.run import stage_of
from llava_operator.stages import STAGES
from tests.controller.makers import (
    KEY,
    NOW,
    RUN_UID,
    begun,
    commit,
    failed,
    job_end,
    make_job,
    make_pod,
    make_run,
    make_spec,
    see,
)

SPEC: dict[str, Any] = {
    "model": {"source": "hf://a/b", "secretRef": {"name": "hub"}},
    "dataset": {"source": "s3://b/p", "format": "llava", "file": "f", "secretRef": {"name": "s3"}},
    "alignment": {"dataset": {"source": "s3://b/p", "format": "llava", "file": "f", "secretRef": {"name": "s3"}}},
    "download": {"caConfigMap": "corporate", "secretRef": {"name": "proxies"}},
}


def test_prepare_needs_what_the_run_names_and_later_stages_nothing() -> None:
    spec = make_spec(**SPEC)
    needs = ["Secret hub", "Secret s3", "Secret proxies", "ConfigMap corporate"]
    assert list_needs(spec, STAGES[StageName.PREPARE]) == needs
    assert list_needs(spec, STAGES[StageName.TRAIN]) == []
    assert list_needs(make_spec(), STAGES[StageName.PREPARE]) == []


@pytest.mark.parametrize(
    ("waiting", "needs", "reason", "told"),
    [
        ("ContainerCreating", ["Secret hub", "ConfigMap corporate"], None,
         "pod pod-0 waits: ContainerCreating (it needs Secret hub, ConfigMap corporate; kubectl describe pod pod-0 "
         "says if one is missing)"),
        ("ContainerCreating", [], None, "pod pod-0 waits: ContainerCreating"),
        ("ImagePullBackOff: no such image", ["Secret hub"], Reason.IMAGE_CANNOT_BE_PULLED,
         "pod pod-0 waits: ImagePullBackOff: no such image"),
    ],
)  # fmt: skip
def test_missing_secret_is_told_where_kubernetes_says_nothing(
    waiting: str, needs: list[str], reason: Reason | None, told: str
) -> None:
    job = make_job(begun())
    assert describe_waiting(job, [make_pod(waiting=waiting)], 1, needs) == (reason, told)


def test_it_stands_in_the_stages_message() -> None:
    status = begun()
    run = make_run(status, **SPEC)
    pods = (make_pod(waiting="ContainerCreating"),)
    said = commit(Observation(run=run, job=make_job(status), pods=pods, now=NOW)).stages[0].message
    assert "it needs Secret hub, Secret s3, Secret proxies, ConfigMap corporate" in said


LATER = told_from(NOW)
STUCK = "ImagePullBackOff: no such image"


def test_a_reason_is_told_once_it_has_lasted_and_goes_with_its_cause() -> None:
    status = begun()
    job, pods = make_job(status), (make_pod(waiting=STUCK),)
    early = commit(see(status, job=job, pods=pods))
    assert (early.stages[0].reason, early.stages[0].reason_time) == ("", None), "it may be over in a moment"
    assert decide(see(early, job=job, pods=pods)) == Wait(until=LATER)
    told = commit(see(early, job=job, pods=pods, now=LATER))
    assert (told.stages[0].reason, told.stages[0].reason_time) == ("ImageCannotBePulled", to_time(LATER))
    conditions = {held.type: (held.status, held.reason) for held in told.conditions}
    assert conditions[Condition.READY] == ("False", "ImageCannotBePulled")
    assert conditions[Condition.PREPARED] == ("False", "ImageCannotBePulled")
    assert conditions[Condition.RECONCILING] == ("True", "ImageCannotBePulled")
    assert conditions[Condition.STALLED] == ("False", "Pending"), "it may pass"
    runs = (make_pod(phase="Running", started=True),)
    over = commit(see(told, job=job, pods=runs, now=LATER))
    assert (over.stages[0].reason, over.stages[0].reason_time) == ("", None)
    assert next(held.reason for held in over.conditions if held.type is Condition.READY) == "Running"


def test_it_is_a_warning_once_however_its_words_change() -> None:
    status = begun()
    job = make_job(status)
    told = commit(see(status, job=job, pods=(make_pod(waiting=STUCK),), now=LATER))
    (warning,) = (one for one in list_transitions(told) if one.type == "Warning")
    assert (warning.reason, warning.action) == ("ImageCannotBePulled", "Wait")
    assert warning.note == f"prepare: pod pod-0 waits: {STUCK}"
    again = commit(see(told, job=job, pods=(make_pod(waiting="ErrImagePull: 404"),), now=LATER + timedelta(minutes=1)))
    names = {build_event(KEY, RUN_UID, one, "op")["metadata"]["name"] for one in list_transitions(told)}
    assert {build_event(KEY, RUN_UID, one, "op")["metadata"]["name"] for one in list_transitions(again)} == names


def test_words_alone_are_no_reason_for_a_write() -> None:
    status = begun()
    job = make_job(status)
    told = commit(see(status, job=job, pods=(make_pod(waiting=STUCK),), now=LATER))
    due = LATER + timedelta(seconds=15)
    seen = see(told, job=job, pods=(make_pod(waiting="ErrImagePull: 404"),), now=LATER, text_due_at=due)
    assert decide(seen) == Wait(until=due)
    # Another reason is.
    other = (make_pod(waiting="Unschedulable: 0/1 nodes are available: 1 Insufficient cpu."),)
    assert commit(replace(seen, pods=other)).stages[0].reason == "Unschedulable"


@pytest.mark.parametrize(
    ("pods", "trouble", "reason", "told"),
    [
        ((), Trouble('FailedCreate: pods "x" is forbidden: exceeded quota: q'), "QuotaExceeded",
         'Job invoices-prepare-1 cannot make its pods: FailedCreate: pods "x" is forbidden: exceeded quota: q'),
        ((make_pod(waiting="ContainerCreating"),), Trouble("FailedMount: timed out"), "VolumeNotMounted",
         "pod pod-0 waits: FailedMount: timed out"),
        ((make_pod(waiting="Unschedulable: pod has unbound immediate PersistentVolumeClaims."),),
         Trouble('ProvisioningFailed: storageclass.storage.k8s.io "fast" not found', about="claim invoices-run"),
         "MissingObject", "pod pod-0 waits for claim invoices-run: StorageClass fast is not there"),
        # What the pod itself says is newer.
        ((make_pod(waiting=STUCK),), Trouble("FailedMount: timed out"), "ImageCannotBePulled",
         f"pod pod-0 waits: {STUCK}"),
    ],
)  # fmt: skip
def test_what_only_events_tell(pods: tuple[PodView, ...], trouble: Trouble, reason: str, told: str) -> None:
    status = begun()
    seen = see(status, job=make_job(status), pods=pods, trouble=trouble, now=LATER)
    stage = commit(seen).stages[0]
    assert (stage.reason, stage.message) == (reason, told)
    assert stage.restarts == 0


def test_of_a_gang_the_pod_is_told_of_that_says_why() -> None:
    status = begun(StageName.TRAIN)
    pods = (
        make_pod("pod-0", phase="Running", started=True), make_pod("pod-1", waiting="ContainerCreating"),
        make_pod("pod-2", waiting="Unschedulable: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu."),
    )  # fmt: skip
    stage = stage_of(commit(see(status, job=make_job(status), pods=pods, now=LATER)), StageName.TRAIN)
    assert stage.reason == "Unschedulable"
    assert stage.message.startswith("1 of 2 pods run; pod pod-2 waits: no node has enough nvidia.com/gpu free: 0/1")


def test_reason_between_attempts_is_that_of_the_last_one() -> None:
    status = begun(StageName.TRAIN)
    ended = commit(see(status, job=make_job(status, failed=job_end()), pods=(failed(exit_code=71),)))
    stage = stage_of(ended, StageName.TRAIN)
    assert (stage.reason, stage.state) == ("WorkerKilled", "Running")
    conditions = {held.type: (held.status, held.reason) for held in ended.conditions}
    assert conditions[Condition.READY] == ("False", "WorkerKilled")
    assert conditions[Condition.STALLED][0] == "False", "another attempt follows"
    assert [one.reason for one in list_transitions(ended)].count("WorkerKilled") == 1, "the attempt's end, and no more"
    assert ended.summary is not None
    assert (ended.summary.attempt, ended.summary.restarts) == ("1", "1")
    due = from_time(stage.next_attempt_time or "")
    again = commit(see(ended, now=due))
    assert stage_of(again, StageName.TRAIN).reason == ""


def test_what_stands_in_the_way_of_a_job_has_its_reason() -> None:
    obstacle = Obstacle(
        kind=ObstacleKind.BLOCKED, reason=Reason.REFUSED, message="denied", retry_at=LATER
    )  # fmt: skip
    status = commit(see(begun(with_job=False), obstacle=obstacle))
    assert (status.stages[0].reason, status.stages[0].message) == ("Refused", "denied")
    # A policy that has changed, too.
    policy = (Violation(field="spec.image.reference", value="evil", rule="allows others (x)", fix="use another"),)
    held = commit(see(begun(StageName.MERGE, with_job=False), violations=policy))
    assert stage_of(held, StageName.MERGE).reason == "NotAllowed"


def test_queued_and_suspended_are_told_and_are_no_warning() -> None:
    status = begun()
    queued = commit(see(status, job=make_job(status, suspended=True)))
    assert (queued.stages[0].reason, queued.summary and queued.summary.attempt) == ("Queued", "1")
    assert decide(see(queued, job=make_job(queued, suspended=True), now=LATER)) == Wait(), "it is still said"
    asleep = commit(see(spec={"suspend": True}))
    conditions = {held.type: (held.status, held.reason) for held in asleep.conditions}
    assert conditions[Condition.READY] == ("False", "Suspended")
    assert conditions[Condition.RECONCILING][0] == conditions[Condition.STALLED][0] == "False"
    assert not [one for told in (queued, asleep) for one in list_transitions(told) if one.type == "Warning"]


def test_errors_that_repeat_cover_the_reason_and_uncover_it_again() -> None:
    status = begun()
    job, pods = make_job(status), (make_pod(waiting=STUCK),)
    told = commit(see(status, job=job, pods=pods, now=LATER))
    trouble = ApiTrouble(message="etcdserver: request timed out", time=to_time(LATER))
    covered = commit(see(told, job=job, pods=pods, now=LATER, api_trouble=trouble))
    ready = next(held for held in covered.conditions if held.type is Condition.READY)
    assert (ready.reason, ready.message) == ("ApiError", "prepare: etcdserver: request timed out")
    assert [one.reason for one in list_transitions(covered) if one.type == "Warning"] == [
        "ImageCannotBePulled", "ApiError"
    ]  # fmt: skip
    # Its words may change with each try.
    other = trouble.model_copy(update={"message": "etcdserver: leader changed"})
    due = LATER + timedelta(seconds=15)
    words = see(covered, job=job, pods=pods, now=LATER, api_trouble=other, text_due_at=due)
    assert decide(words) == Wait(until=due)
    uncovered = commit(see(covered, job=job, pods=pods, now=LATER))
    ready = next(held for held in uncovered.conditions if held.type is Condition.READY)
    assert ready.reason == "ImageCannotBePulled"
