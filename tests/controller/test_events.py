"""Events follow from the status, and never come twice."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest

from llava_api.constants import StageName
from llava_api.status import Plan, Progress
from llava_operator.acting.events import RECENT, EventPublisher, build_event
from llava_operator.acting.transitions import Transition, list_transitions
from llava_operator.kube.errors import AlreadyExistsError, InvalidError, NotFoundError, RetryableError
from llava_operator.kube.kinds import Kind
from llava_operator.kube.objects import Object
from tests.controller.makers import (
    KEY,
    NOW,
    NOW_TEXT,
    RUN_UID,
    STAGES,
    begun,
    commit,
    failed,
    job_end,
    make_job,
    see,
    succeeded,
)


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


def test_groups_that_are_held_out_and_trained_on_are_a_warning() -> None:
    status = begun(StageName.TRAIN)
    assert status.data is not None
    shared = {"groups_validation": 4, "groups_shared": 1, "pairs_shared": 2}
    told = status.model_copy(update={"data": status.data.model_copy(update=shared)})
    assert [reason for reason in reasons(told) if reason not in reasons(status)] == ["GroupsOnBothSides"]
    (warning,) = (transition for transition in list_transitions(told) if transition.reason == "GroupsOnBothSides")
    assert warning.type == "Warning"
    assert warning.note.startswith(
        "training has samples of 1 of 4 held-out groups, so that the score of 2 of 3 held-out answers flatters: "
    )


def test_what_the_plan_warns_of_is_told_when_prepare_has_ended() -> None:
    status = begun(StageName.TRAIN)
    plan = Plan(device_memory="1Gi", per_device_batch=1, accumulation=1, total_steps=9, warnings=("few", "slow"))
    told = status.model_copy(update={"plan": plan})
    warnings = [transition for transition in list_transitions(told) if transition.reason == "PlanWarning"]
    assert [(one.type, one.note) for one in warnings] == [("Warning", "few"), ("Warning", "slow")]
    assert len({one.about for one in warnings}) == 2


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
        "note": "prepare begins as attempt 1",
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
    refuses: bool = False
    num_posts: int = 0

    async def get(self, kind: Kind, namespace: str, name: str) -> Object:
        if name not in self.created:
            raise NotFoundError("no such event")
        return {}

    async def create(self, kind: Kind, namespace: str, body: Object) -> Object:
        self.num_posts += 1
        if self.is_down:
            raise RetryableError("down")
        if self.refuses:
            raise InvalidError("note: Invalid value")
        if body["metadata"]["name"] in self.created:
            raise AlreadyExistsError("there")
        self.created.append(body["metadata"]["name"])
        return body


def make_publisher(server: EventServer, now: Callable[[], datetime] = lambda: NOW) -> EventPublisher:
    return EventPublisher(server, instance="op-0", now=now)  # type: ignore[arg-type]


async def test_published_once_by_any_number_of_operators() -> None:
    server = EventServer()
    status = begun(StageName.TRAIN)
    for publisher in (make_publisher(server), make_publisher(server)):
        for _ in range(2):
            await publisher.publish_status(KEY, RUN_UID, status)
    assert len(server.created) == 3


async def test_old_transitions_do_not_come_back() -> None:
    server = EventServer()
    later = make_publisher(server, lambda: NOW + timedelta(minutes=11))
    await later.publish_status(KEY, RUN_UID, begun(StageName.TRAIN))
    assert server.created == []


async def test_event_that_was_not_created_is_tried_again() -> None:
    server = EventServer(is_down=True)
    publisher = make_publisher(server)
    assert not await publisher.publish_status(KEY, RUN_UID, begun())
    server.is_down = False
    assert await publisher.publish_status(KEY, RUN_UID, begun())
    assert len(server.created) == 1


async def test_new_process_asks_before_it_tells_again() -> None:
    server = EventServer()
    status = begun(StageName.TRAIN)
    await make_publisher(server).publish_status(KEY, RUN_UID, status)
    lost = server.created.pop()
    num_posts = server.num_posts
    restarted = make_publisher(server, lambda: NOW + timedelta(seconds=30))
    for _ in range(2):
        await restarted.publish_status(KEY, RUN_UID, status)
    assert server.created[-1] == lost
    assert server.num_posts == num_posts + 1, "only what the earlier process had not told of"


async def test_many_transitions_make_no_event_come_back() -> None:
    """However many runs there are: what was told of ten minutes ago is told of once."""
    server, clock = EventServer(), [NOW]
    publisher = make_publisher(server, lambda: clock[0])
    first, *_ = list_transitions(begun())
    runs = [f"uid-{number}" for number in range(6000)]
    for _ in range(2):
        for uid in runs:
            await publisher.publish(KEY, uid, first)
    assert server.num_posts == len(runs)
    clock[0] += RECENT + timedelta(seconds=1)
    await publisher.publish(KEY, "another", first)
    assert len(publisher._published) == 1, "nothing is remembered for ever"


async def test_event_that_is_refused_for_what_it_is_is_not_sent_again(caplog: pytest.LogCaptureFixture) -> None:
    server = EventServer(refuses=True)
    publisher = make_publisher(server)
    for _ in range(3):
        await publisher.publish_status(KEY, RUN_UID, begun())
    assert server.num_posts == 1
    assert "the Event Preparing is refused: note: Invalid value" in caplog.text


def test_note_is_cut_by_bytes_and_fit_to_show() -> None:
    transition = Transition(
        time=NOW_TEXT, type="Warning", reason="R", action="A", about="a", note="Prüfung \u202e\x1b[31m" + "ü" * 2000
    )
    note = build_event(KEY, RUN_UID, transition, "op")["note"]
    assert len(note.encode()) <= 1024
    assert len(note.encode()) > 1000
    assert note.startswith("Prüfung \\u202e\\x1b[31mü")
