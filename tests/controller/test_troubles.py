"""What Events tell of a run that waits: which count, whose are asked for, and how often."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from llava_api.constants import LABEL_RUN
from llava_api.text import ELLIPSIS
from llava_operator.acting.api_errors import TOLD_AFTER, ApiErrors
from llava_operator.acting.troubles import ASKED_AFTER_S, MAX_EVENTS, read_trouble
from llava_operator.clock import to_time
from llava_operator.kube.errors import ForbiddenError, NotFoundError, RetryableError
from llava_operator.kube.kinds import EVENTS, JOBS, RUNS, VOLUME_CLAIMS
from llava_operator.kube.objects import Object
from tests.controller.in_memory import ApiServer, Operator
from tests.controller.makers import KEY, NOW

ASKED = timedelta(seconds=ASKED_AFTER_S)


def event(reason: str, note: str = "", *, after_s: float = 0, uid: str = "u", **fields: Any) -> Object:
    time = to_time(NOW + timedelta(seconds=after_s))
    return {
        "metadata": {"name": f"{reason}-{uid}-{after_s}", "creationTimestamp": to_time(NOW)},
        "reason": reason, "note": note, "regarding": {"uid": uid}, "deprecatedLastTimestamp": time, **fields,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([], ""),
        ([event("Scheduled"), event("BackOff", "restarting")], ""),
        ([event("FailedMount", "timed out")], "FailedMount: timed out"),
        ([event("FailedBinding")], "FailedBinding"),
        ([event("FailedCreate", "old", after_s=1), event("FailedCreate", "new", after_s=2)], "FailedCreate: new"),
        # It was mounted in the end.
        ([event("FailedMount", "x", after_s=1), event("Pulling", after_s=2)], ""),
        ([event("FailedAttachVolume", "x", after_s=1), event("SuccessfulAttachVolume", after_s=2)], ""),
        # And again it was not.
        ([event("Pulling", after_s=1), event("FailedMount", "again", after_s=2)], "FailedMount: again"),
        # What is missing says more than that something is waited for, as long as it is still so.
        ([event("FailedMount", 'secret "hub" not found', after_s=1), event("FailedMount", "timed out", after_s=100)],
         'FailedMount: secret "hub" not found'),
        ([event("FailedMount", 'secret "hub" not found', after_s=1), event("FailedMount", "timed out", after_s=400)],
         "FailedMount: timed out"),
        # Both forms of Events.
        ([event("FailedMount", "counted", deprecatedLastTimestamp=None,
                series={"count": 9, "lastObservedTime": "2026-11-01T12:00:09.000000Z"}),
          event("FailedMount", "single", deprecatedLastTimestamp=None, eventTime="2026-11-01T12:00:05.000000Z")],
         "FailedMount: counted"),
    ],
)  # fmt: skip
def test_the_trouble_of_now(events: list[Object], said: str) -> None:
    assert read_trouble(events) == said
    assert read_trouble(events[::-1]) == said


@pytest.mark.parametrize(
    "forged",
    [
        {}, {"reason": 5}, {"reason": "FailedMount", "note": ["x"]}, {"reason": None}, {"metadata": "x"},
        {"reason": "FailedMount", "eventTime": "yesterday"}, {"reason": "FailedMount", "series": []},
    ],
)  # fmt: skip
def test_what_is_no_event_is_passed_over(forged: Object) -> None:
    assert read_trouble([forged, event("FailedMount", "x")]) == "FailedMount: x"


def test_forged_texts_are_made_fit_to_show() -> None:
    said = read_trouble([event("FailedMount", "\x1b[2J\u202e https://u:secret@host/ " + "x" * 10_000)])
    assert "\x1b" not in said
    assert "\u202e" not in said
    assert "secret" not in said
    assert len(said) < 1100
    assert said.endswith(ELLIPSIS)
    times = [
        {"reason": "FailedMount", "note": "n", "eventTime": time} for time in ("0001-01-01T00:00:00", "9999-12-31")
    ]
    assert read_trouble(times) == "FailedMount: n"


async def started(operator: Operator) -> str:
    """UID of the Job of a run that has begun and has waited until Events are asked for."""
    await operator.settle()
    operator.now += ASKED
    return str(operator.server.objects[JOBS, "invoices-prepare-1"]["metadata"]["uid"])


def put(server: ApiServer, made: Object) -> None:
    server.objects[EVENTS, made["metadata"]["name"]] = made


async def test_a_job_without_pods_is_asked_about_every_30_s_and_no_more_often(
    server: ApiServer, operator: Operator
) -> None:
    await operator.settle()
    operator.now += timedelta(seconds=ASKED_AFTER_S - 1)
    assert await operator.settle() == 1
    assert server.listed == []
    operator.now += timedelta(seconds=1)
    uid = server.objects[JOBS, "invoices-prepare-1"]["metadata"]["uid"]
    put(server, event("FailedCreate", 'pods "x" is forbidden: exceeded quota: q', uid=uid))
    put(server, event("FailedCreate", "of another Job", uid="another"))
    assert await operator.settle() == ASKED_AFTER_S
    assert server.listed == [f"regarding.uid={uid}"]
    stage = server.status.stages[0]
    assert (stage.reason, stage.restarts) == ("QuotaExceeded", 0)
    assert "cannot make its pods" in stage.message
    assert "event QuotaExceeded" in server.writes
    for _ in range(3):
        await operator.step()
    operator.now += ASKED - timedelta(seconds=1)
    await operator.step()
    assert len(server.listed) == 1
    # The cause is gone.
    put(server, event("SuccessfulCreate", after_s=60, uid=uid))
    operator.now += timedelta(seconds=1)
    await operator.settle()
    assert len(server.listed) == 2
    assert server.status.stages[0].reason == ""
    assert server.writes.count("event QuotaExceeded") == 1


def pod(name: str = "p", *, node: str = "n1", waiting: str = "ContainerCreating", job: str) -> Object:
    unscheduled = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": waiting}]
    state = {"name": "stage", "state": {"waiting": {"reason": waiting}}}
    return {
        "metadata": {
            "namespace": KEY.namespace, "name": name, "uid": f"{name}-uid", "labels": {LABEL_RUN: KEY.name},
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": job, "controller": True}],
        },
        "spec": {"nodeName": node} if node else {},
        "status": {"phase": "Pending", **({"containerStatuses": [state]} if node else {"conditions": unscheduled})},
    }  # fmt: skip


async def test_a_pod_that_is_not_made_is_asked_about(server: ApiServer, operator: Operator) -> None:
    uid = await started(operator)
    operator.reconciler.children.note_pod(pod(job=uid))
    put(server, event("FailedMount", 'MountVolume.SetUp failed : secret "hub" not found', uid="p-uid"))
    await operator.settle()
    assert server.listed == ["regarding.uid=p-uid"]
    stage = server.status.stages[0]
    assert (stage.reason, stage.message) == ("MissingObject", "pod p waits: Secret hub is not there")


async def test_a_pod_that_says_why_is_not_asked_about(server: ApiServer, operator: Operator) -> None:
    uid = await started(operator)
    operator.reconciler.children.note_pod(pod(waiting="ErrImagePull", job=uid))
    await operator.settle()
    assert server.listed == []
    assert server.status.stages[0].reason == "ImageCannotBePulled"


async def test_claims_are_asked_about_where_the_scheduler_waits_for_one(server: ApiServer, operator: Operator) -> None:
    uid = await started(operator)
    unbound = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."
    operator.reconciler.children.note_pod(pod(node="", waiting=unbound, job=uid))
    claims = {"models": "Bound", "invoices-run": "Pending"}
    for name, phase in claims.items():
        claim = {"metadata": {"name": name, "uid": f"{name}-uid"}, "status": {"phase": phase}}
        server.objects[VOLUME_CLAIMS, name] = claim
    put(server, event("ProvisioningFailed", 'storageclass.storage.k8s.io "fast" not found', uid="invoices-run-uid"))
    await operator.settle()
    assert server.listed == ["regarding.uid=invoices-run-uid"]
    stage = server.status.stages[0]
    assert stage.reason == "MissingObject"
    assert stage.message == "pod p waits for claim invoices-run: StorageClass fast is not there"
    # Without a word of anybody the claim is named all the same.
    server.objects.pop((EVENTS, "ProvisioningFailed-invoices-run-uid-0"))
    operator.now += ASKED
    await operator.settle()
    assert server.status.stages[0].message == "pod p waits for claim invoices-run: it has no volume yet"
    assert server.status.stages[0].reason == "VolumeNotMounted"


@pytest.mark.parametrize("error", [ForbiddenError("no list"), RetryableError("overloaded")])
async def test_events_that_cannot_be_listed_hold_up_nothing(
    server: ApiServer, operator: Operator, error: Exception
) -> None:
    await started(operator)
    server.refuse_list[EVENTS] = error  # type: ignore[assignment]
    assert await operator.settle() == ASKED_AFTER_S
    assert server.status.stages[0].reason == ""


async def test_a_namespace_full_of_events_is_not_read_to_its_end(server: ApiServer, operator: Operator) -> None:
    uid = await started(operator)
    for number in range(2 * MAX_EVENTS):
        put(server, event("FailedCreate", "x", after_s=number, uid=uid))
    taken = 0
    listing = server.list

    async def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal taken
        async for one in listing(*arguments, **named):
            taken += 1
            yield one

    server.list = counted  # type: ignore[method-assign]
    await operator.settle()
    assert taken == MAX_EVENTS


# --- errors that repeat


async def fail(operator: Operator, error: RetryableError) -> None:
    """One pass as the queue runs it."""
    with pytest.raises(RetryableError, match=str(error)) as raised:
        await operator.step()
    await operator.reconciler.tell_error(KEY, raised.value)


async def test_errors_that_repeat_stand_in_the_status_until_a_pass_ends_well(
    server: ApiServer, operator: Operator
) -> None:
    error = server.refuse[JOBS] = RetryableError("etcdserver: request timed out", status=429)
    for _ in range(3):
        await fail(operator, error)
    assert server.status.api_trouble is None, "an API server that restarts is nobody's business"
    operator.now += TOLD_AFTER
    await fail(operator, error)
    ready = next(held for held in server.status.conditions if held.type == "Ready")
    assert ready.reason == "ApiError"
    assert "etcdserver: request timed out" in ready.message
    assert server.writes.count("event ApiError") == 1
    before = list(server.writes)
    await fail(operator, error)
    assert server.writes == before, "it is told once"
    del server.refuse[JOBS]
    await operator.step()
    assert operator.reconciler.forget_errors(KEY), "another pass takes it back"
    await operator.settle()
    ready = next(held for held in server.status.conditions if held.type == "Ready")
    assert ready.reason == "Pending"
    assert server.status.api_trouble is None
    assert not operator.reconciler.forget_errors(KEY)


async def test_what_cannot_be_written_is_left_to_the_log(
    server: ApiServer, operator: Operator, caplog: pytest.LogCaptureFixture
) -> None:
    await operator.settle()

    async def refused(*_: Any, **__: Any) -> Object:
        raise RetryableError("down")

    server.patch = refused  # type: ignore[method-assign]
    for _ in range(4):
        await operator.reconciler.tell_error(KEY, RetryableError("down"))
        operator.now += TOLD_AFTER
    caplog.set_level("INFO")
    await operator.reconciler.tell_error(KEY, RetryableError("down"))
    assert "that its passes fail could not be told: down" in caplog.text
    # Nor is a run that is no more, or that this version does not understand.
    del server.objects[RUNS, KEY.name]
    await operator.reconciler.tell_error(KEY, NotFoundError("gone"))


def test_errors_are_told_from_the_third_on_if_they_last() -> None:
    now: list[datetime] = [NOW]
    errors = ApiErrors(now=lambda: now[0])
    error = RetryableError("x\x1b")
    assert [errors.note(KEY, error), errors.note(KEY, error), errors.note(KEY, error)] == [None] * 3
    now[0] += TOLD_AFTER
    told = errors.note(KEY, error)
    assert told is not None
    assert told == errors.trouble_of(KEY)
    assert told.message == "the API server does not do what is asked of it: x\\x1b"
    now[0] += TOLD_AFTER
    assert errors.note(KEY, error) == told, "since when stays"
    assert errors.forget(KEY)
    assert errors.trouble_of(KEY) is None
    assert not errors.forget(KEY)
