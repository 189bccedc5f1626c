"""Events follow from the status, and never come twice."""

from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from llava_api.constants import StageName
from llava_api.status import Progress
from llava_operator.events import EventPublisher, build_event, list_transitions
from llava_operator.kube import AlreadyExistsError, Kind, RetryableError
from llava_operator.wire import Object
from tests.controller.makers import KEY, NOW, RUN_UID, STAGES, begun, commit, failed, job_end, make_job, see, succeeded


def reasons(status_maker: object) -> list[str]:
    return [transition.reason for transition in list_transitions(status_maker)]  # type: ignore[arg-type]


def test_every_transition_of_a_whole_run() -> None:
    status = begun(StageName.EVALUATE)
    done = commit(see(status, job=make_job(status, complete=True), pods=(succeeded(StageName.EVALUATE),)))
    assert reasons(done) == [
        "Preparing", "Prepared", "Training", "Trained", "Merging", "Merged", "Evaluating", "Evaluated", "Complete",
    ]  # fmt: skip
    assert list(list_transitions(done))[-1].note == "every stage has succeeded; score 0.02→0.97"


def test_failure_is_a_warning_with_the_hint() -> None:
    status = begun(StageName.TRAIN)
    done = commit(see(status, job=make_job(status, failed=job_end()), pods=(failed(exit_code=74, message="full"),)))
    last = list(list_transitions(done))[-1]
    assert (last.type, last.reason) == ("Warning", "StorageFull")
    assert "Raise spec.storage.size." in last.note
    assert "Trained" not in reasons(done)


def test_checkpoints_that_were_passed_over_are_a_warning() -> None:
    status = begun(StageName.TRAIN)
    report = Progress(
        stage=StageName.TRAIN, attempt=1, pod_uid="u", step=3, total_steps=9, last_update_time="2026-11-01T12:09:00Z",
        skipped_checkpoints="train-1/step-00000020",
    )  # fmt: skip
    told = status.model_copy(update={"progress": report})
    assert [reason for reason in reasons(told) if reason not in reasons(status)] == ["CheckpointSkipped"]
    (warning,) = (transition for transition in list_transitions(told) if transition.reason == "CheckpointSkipped")
    assert (warning.type, warning.note) == (
        "Warning", "damaged, so that train went on from one before: train-1/step-00000020"
    )  # fmt: skip
    # Whoever reports later reports the same Event.
    later = told.model_copy(update={"progress": report.model_copy(update={"last_update_time": "2026-11-01T12:10:00Z"})})
    assert list(list_transitions(later)) == list(list_transitions(told))
    of_another = told.model_copy(update={"progress": report.model_copy(update={"attempt": 2})})
    assert "CheckpointSkipped" not in reasons(of_another)


def test_event_whole() -> None:
    transition = next(iter(list_transitions(begun())))
    event = build_event(KEY, RUN_UID, transition, "op-0")
    assert event == {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": event["metadata"]["name"], "namespace": "team"},
        "eventTime": "2026-11-01T12:00:00.000000Z",
        "reportingController": "finetune.llava.dev/operator",
        "reportingInstance": "op-0",
        "action": "Start",
        "reason": "Preparing",
        "regarding": {
            "apiVersion": "finetune.llava.dev/v1alpha1",
            "kind": "LlavaFineTune",
            "name": "invoices",
            "namespace": "team",
            "uid": "run-uid",
        },
        "note": "prepare begins as Job invoices-prepare-1",
        "type": "Normal",
    }
    assert event["metadata"]["name"].startswith("invoices.")


def test_names_tell_transitions_and_runs_apart_and_repeat() -> None:
    transitions = list(list_transitions(begun(STAGES[-1])))
    names = [build_event(KEY, uid, t, "op")["metadata"]["name"] for uid in ("a", "b") for t in transitions]
    again = [build_event(KEY, uid, t, "other")["metadata"]["name"] for uid in ("a", "b") for t in transitions]
    assert len(set(names)) == 2 * len(transitions)
    assert names == again


@dataclass
class EventServer:
    created: list[str] = field(default_factory=list)
    is_down: bool = False

    async def create(self, kind: Kind, namespace: str, body: Object) -> Object:
        if self.is_down:
            raise RetryableError("down")
        if body["metadata"]["name"] in self.created:
            raise AlreadyExistsError("there")
        self.created.append(body["metadata"]["name"])
        return body


def make_publisher(server: EventServer) -> EventPublisher:
    return EventPublisher(server, instance="op-0")  # type: ignore[arg-type]


async def test_published_once_by_any_number_of_operators() -> None:
    server = EventServer()
    status = begun(StageName.TRAIN)
    for publisher in (make_publisher(server), make_publisher(server)):
        for _ in range(2):
            await publisher.publish_status(KEY, RUN_UID, status, NOW)
    assert len(server.created) == 3


async def test_old_transitions_do_not_come_back() -> None:
    server = EventServer()
    await make_publisher(server).publish_status(KEY, RUN_UID, begun(StageName.TRAIN), NOW + timedelta(minutes=11))
    assert server.created == []


async def test_event_that_was_not_created_is_tried_again() -> None:
    server = EventServer(is_down=True)
    publisher = make_publisher(server)
    with pytest.raises(RetryableError):
        await publisher.publish_status(KEY, RUN_UID, begun(), NOW)
    server.is_down = False
    await publisher.publish_status(KEY, RUN_UID, begun(), NOW)
    assert len(server.created) == 1
