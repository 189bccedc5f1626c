"""Passes against an API server in memory: what is written, and what becomes of every refusal."""

import copy
import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from llava_api.constants import KIND, Condition, Phase, StageName
from llava_api.failures import Reason
from llava_api.status import Progress, Status
from llava_operator.acting.status_writer import StatusPrunedError
from llava_operator.acting.transitions import UNREPORTED
from llava_operator.acting.troubles import ASKED_AFTER_S
from llava_operator.acting.unreadable import UNREADABLE
from llava_operator.deciding.observation import Observation
from llava_operator.deciding.policy import Policy
from llava_operator.deciding.status import dump_status
from llava_operator.deciding.waiting import TOLD_AFTER_S
from llava_operator.kube.errors import (
    AlreadyExistsError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    KubeError,
    NotFoundError,
    RefusedError,
    RetryableError,
    error_of,
)
from llava_operator.kube.kinds import CONFIG_MAPS, EVENTS, JOBS, NETWORK_POLICIES, RUNS, VOLUME_CLAIMS, Kind
from llava_operator.kube.objects import Object
from llava_operator.run import current_stage
from tests.controller.in_memory import ApiServer, Operator
from tests.controller.makers import KEY, NOW, NOW_TEXT, RUN_UID, begun, commit, make_run


async def test_first_passes_write_in_this_order_and_settle(server: ApiServer, operator: Operator) -> None:
    assert await operator.settle() == TOLD_AFTER_S
    assert server.writes == [
        "patch llavafinetunes invoices",
        "create persistentvolumeclaims invoices-run",
        "create configmaps invoices-prepare-1",
        "create configmaps invoices-report-ca",
        "create jobs invoices-prepare-1",
        "patch llavafinetunes invoices",
        "event Preparing",
    ]


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"image": {"reference": "evil.example/x"}}, "spec.image.reference"),
        ({"scheduling": {"tolerations": [{"operator": "Exists"}]}}, "spec.scheduling.tolerations"),
    ],
)
async def test_nothing_is_made_for_a_run_that_asks_for_what_is_not_allowed(
    server: ApiServer, operator: Operator, spec: dict[str, Any], field: str
) -> None:
    server.put_run(**spec)
    operator.policy = Policy(image_repositories=(), tolerations=False)
    operator.new_process()
    assert await operator.settle() is None
    assert not [write for write in server.writes if write.startswith("create")]
    assert server.status.failure is not None
    assert server.status.failure.reason == Reason.NOT_ALLOWED
    assert server.status.failure.message.startswith(field)


async def test_a_restart_with_other_rules_is_heeded_before_the_first_job_and_not_after(
    server: ApiServer, operator: Operator
) -> None:
    """Between the intent that is committed and the Job the operator may be restarted with new settings."""
    image = {"reference": "evil.example/x"}
    server.put_run(image=image)["status"] = dump_status(commit(Observation(run=make_run(image=image), now=NOW)))
    assert current_stage(server.status) is not None
    operator.policy = Policy(image_repositories=())
    operator.new_process()
    await operator.settle()
    assert server.status.phase is Phase.FAILED
    server.put_run(image={"reference": "evil.example/x"})
    operator.policy = Policy()
    operator.new_process()
    await operator.settle()
    assert (JOBS, "invoices-prepare-1") in server.objects
    operator.policy = Policy(image_repositories=())
    operator.new_process()
    await operator.settle()
    assert server.status.phase is Phase.PENDING


async def test_nothing_is_made_whose_intent_could_not_be_committed(server: ApiServer, operator: Operator) -> None:
    async def refuse(*_: Any, **__: Any) -> Object:
        raise ConflictError("the object has been modified")

    server.patch = refuse  # type: ignore[method-assign]
    for _ in range(3):
        assert await operator.step() == 0.0
    assert server.writes == []


async def test_from_creation_to_the_first_job_are_four_round_trips(server: ApiServer, operator: Operator) -> None:
    """The run is read, the intent written, what pods need made side by side, and then the Job."""
    read: list[Kind] = []
    get = server.get

    async def count(kind: Kind, namespace: str, name: str) -> Object:
        read.append(kind)
        return await get(kind, namespace, name)

    server.get = count  # type: ignore[method-assign]
    await operator.step()
    assert read == [RUNS]
    assert server.writes.index("create jobs invoices-prepare-1") == 4, "one patch, and three that go side by side"


async def test_training_pods_are_isolated_before_they_are_made(server: ApiServer, operator: Operator) -> None:
    server.objects[RUNS, KEY.name]["status"] = dump_status(begun(StageName.TRAIN, with_job=False))
    operator.reconciler.platform = replace(operator.reconciler.platform, isolate_training=True)
    server.refuse[NETWORK_POLICIES] = ForbiddenError("networkpolicies is forbidden", status=403)
    assert await operator.settle() == 1
    stage = current_stage(server.status)
    assert stage is not None
    assert stage.message == "networkpolicies is forbidden"
    assert (JOBS, "invoices-train-1") not in server.objects
    del server.refuse[NETWORK_POLICIES]
    operator.now += timedelta(seconds=1)
    assert await operator.settle() == TOLD_AFTER_S - 1
    made = [write.removeprefix("create ") for write in server.writes if write.startswith("create")]
    assert made[made.index("networkpolicies invoices-train") :] == [
        "networkpolicies invoices-train", "jobs invoices-train-1",
    ]  # fmt: skip


async def test_policies_of_a_run_are_made_with_it_and_looked_for_when_pods_are(
    server: ApiServer, operator: Operator
) -> None:
    """So that a stage's begin costs no write more where training is isolated."""
    operator.reconciler.platform = isolated = replace(operator.reconciler.platform, isolate_training=True)
    await operator.settle()
    assert [write for write in server.writes if "networkpolicies" in write] == ["create networkpolicies invoices-train"]
    for owners in (None, []):
        server.objects.pop((JOBS, "invoices-train-1"), None)
        server.objects[RUNS, KEY.name]["status"] = dump_status(begun(StageName.TRAIN, with_job=False))
        server.writes.clear()
        operator.new_process()
        operator.reconciler.platform = isolated
        if owners is not None:
            # One of somebody else's protects nobody.
            server.objects[NETWORK_POLICIES, "invoices-train"]["metadata"]["ownerReferences"] = owners
        await operator.settle()
        assert ((JOBS, "invoices-train-1") in server.objects) == (owners is None)
        assert not [write for write in server.writes if "networkpolicies" in write]
    assert server.status.failure is not None
    assert server.status.failure.reason == Reason.NAME_CONFLICT


async def test_run_that_is_gone_is_forgotten(server: ApiServer, operator: Operator) -> None:
    await operator.settle()
    assert operator.runs.get(KEY) is not None
    del server.objects[RUNS, KEY.name]
    assert await operator.step() is None
    assert operator.runs.get(KEY) is None


async def test_run_changed_by_someone_else_throws_the_pass_away(server: ApiServer, operator: Operator) -> None:
    patch = server.patch

    async def change_first(*args: Any, **options: Any) -> Object:
        server.objects[RUNS, KEY.name]["metadata"]["resourceVersion"] = "99"
        server.patch = patch  # type: ignore[method-assign]
        return await patch(*args, **options)

    server.patch = change_first  # type: ignore[method-assign]
    assert await operator.step() == 0.0
    assert server.writes == []
    await operator.settle()
    assert server.status.phase is Phase.PENDING


async def test_run_deleted_before_the_write_is_forgotten_by_the_next_pass(
    server: ApiServer, operator: Operator
) -> None:
    """A CRD without status subresource answers the same, and must not be asked without pause."""

    async def gone(*_: Any, **__: Any) -> Object:
        raise NotFoundError("gone")

    server.patch = gone  # type: ignore[method-assign]
    with pytest.raises(NotFoundError):
        await operator.step()
    server.objects.clear()
    assert await operator.step() is None


async def test_children_made_by_a_killed_process_are_found(server: ApiServer, operator: Operator) -> None:
    await operator.settle()
    for made in list(server.objects):
        if made[0] == JOBS:
            # As if the process had died before the Job.
            del server.objects[made]
    server.objects[RUNS, KEY.name]["status"]["stages"][0]["attempts"][0].pop("jobUid")
    operator.new_process()
    server.writes.clear()
    await operator.settle()
    assert [write for write in server.writes if write.startswith("create")] == ["create jobs invoices-prepare-1"]


async def test_someone_elses_child_is_a_name_conflict(server: ApiServer, operator: Operator) -> None:
    foreign = {
        "metadata": {"name": "invoices-run", "ownerReferences": [{"uid": RUN_UID}, {"uid": "x", "controller": True}]}
    }
    server.objects[VOLUME_CLAIMS, "invoices-run"] = foreign
    await operator.settle()
    failure = server.status.failure
    assert failure is not None
    assert failure.reason == "NameConflict"
    assert "persistentvolumeclaims invoices-run exists in namespace team" in failure.message
    assert not any(write.startswith("create jobs") for write in server.writes)


async def test_someone_elses_job_is_not_taken_for_the_stages_own(server: ApiServer, operator: Operator) -> None:
    meta = {"namespace": KEY.namespace, "name": "invoices-prepare-1", "uid": "foreign"}
    server.objects[JOBS, "invoices-prepare-1"] = {"metadata": meta, "status": {}}
    await operator.settle()
    assert server.status.failure is not None
    assert server.status.failure.reason == "NameConflict"
    assert "jobs invoices-prepare-1" in server.status.failure.message


async def test_child_that_is_said_to_exist_and_is_not_there_is_tried_again(
    server: ApiServer, operator: Operator
) -> None:
    """It was deleted in between, or a webhook has a word of its own."""
    server.refuse[JOBS] = AlreadyExistsError("there", status=409)
    assert await operator.settle() == 1
    stage = current_stage(server.status)
    assert stage is not None
    assert stage.message == "jobs invoices-prepare-1 is said to exist, and is not there"


@pytest.mark.parametrize("status", [401, 404, 408, 409, 422, 429])
async def test_webhook_may_answer_with_any_code(server: ApiServer, operator: Operator, status: int) -> None:
    message = 'admission webhook "w.example.org" denied the request: not today'
    server.refuse[JOBS] = error_of(
        status,
        json.dumps({"message": message, "reason": "Conflict", "details": {"causes": [{"field": "spec.x"}]}}).encode(),
        "7",
    )
    assert await operator.settle() == 7
    stage = current_stage(server.status)
    assert stage is not None
    assert stage.message == message


@pytest.mark.parametrize("status", [401, 404, 429])
async def test_api_server_that_will_not_talk_is_no_obstacle_of_a_run(
    server: ApiServer, operator: Operator, status: int
) -> None:
    server.refuse[JOBS] = error_of(status, b'{"message": "no"}', None)
    with pytest.raises(KubeError):
        await operator.settle()


async def test_restart_with_a_run_that_waits_writes_nothing(server: ApiServer, operator: Operator) -> None:
    """What it waits for stays said until it is tried again, and then if it is something else."""
    server.refuse[JOBS] = RefusedError("the policy says no", status=422)
    await operator.settle()
    operator.now += timedelta(seconds=30)
    operator.new_process()
    server.writes.clear()
    assert await operator.settle() == 1
    assert server.writes == []


async def test_obstacle_of_one_stage_is_not_told_of_the_next(server: ApiServer, operator: Operator) -> None:
    """The answer to the Job's creation was an error, but it was made."""
    create = server.create

    async def made_and_lost(kind: Kind, namespace: str, body: Object) -> Object:
        made = await create(kind, namespace, body)
        if kind == JOBS:
            raise RetryableError("etcdserver: request timed out", status=500)
        return made

    server.create = made_and_lost  # type: ignore[method-assign]
    await operator.settle()
    memory = operator.reconciler._memories[KEY]
    assert (memory.obstacle, memory.num_refusals) == (None, 0)


async def test_job_whose_labels_were_changed_is_still_the_stages(server: ApiServer, operator: Operator) -> None:
    """By a webhook when it was made, or by hand later: its owner says whose it is."""
    create = server.create

    async def stripped(kind: Kind, namespace: str, body: Object) -> Object:
        return await create(kind, namespace, {**body, "metadata": {**body["metadata"], "labels": {}}})

    server.create = stripped  # type: ignore[method-assign]
    assert await operator.settle() == TOLD_AFTER_S
    assert server.status.failure is None
    server.objects[JOBS, "invoices-prepare-1"]["metadata"].pop("labels")
    operator.new_process()
    assert await operator.settle() == TOLD_AFTER_S
    assert server.status.failure is None


async def test_event_that_could_not_be_made_at_the_end_is_made_later(server: ApiServer, operator: Operator) -> None:
    """Nothing else ever happens to a run that has ended."""
    server.refuse[JOBS] = InvalidError("spec.x: Invalid value", status=422)
    server.refuse[EVENTS] = RetryableError("down")
    assert await operator.settle() == 60
    del server.refuse[EVENTS]
    operator.now += timedelta(seconds=60)
    assert await operator.settle() is None
    assert "event Rejected" in server.writes


async def test_field_that_is_refused_fails_the_run(server: ApiServer, operator: Operator) -> None:
    server.refuse[JOBS] = InvalidError("spec.x: Invalid value")
    await operator.settle()
    assert server.status.failure is not None
    assert (server.status.failure.reason, server.status.failure.message) == ("Rejected", "spec.x: Invalid value")


@pytest.mark.parametrize(
    "error",
    [
        ForbiddenError('jobs.batch "x" is forbidden: exceeded quota: q', status=403),
        ForbiddenError('jobs.batch is forbidden: User "op" cannot create resource "jobs"', status=403),
        ForbiddenError("unable to create new content in namespace team because it is being terminated", status=403),
        ForbiddenError("pods is forbidden: maximum memory usage per Container is 1Gi", status=403),
        ForbiddenError("a text that nobody has seen before", status=403),
        RefusedError("ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no", status=422),
        RefusedError('admission webhook "w" denied the request: no', status=400),
        RetryableError('Internal error occurred: failed calling webhook "w"', status=500),
    ],
)
async def test_every_other_refusal_is_said_and_tried_again_more_and_more_slowly(
    server: ApiServer, operator: Operator, error: KubeError
) -> None:
    message = str(error)
    server.refuse[JOBS] = error
    delays = []
    for _ in range(8):
        delay_s = await operator.settle()
        assert delay_s is not None
        delays.append(delay_s)
        operator.now += timedelta(seconds=delay_s)
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60]
    stage = current_stage(server.status)
    assert stage is not None
    assert stage.message == message
    assert server.writes.count("patch llavafinetunes invoices") == 2, "one message is written once"
    del server.refuse[JOBS]
    assert await operator.settle() == ASKED_AFTER_S
    assert (JOBS, "invoices-prepare-1") in server.objects


async def test_api_server_that_cannot_be_asked_is_no_refusal(server: ApiServer, operator: Operator) -> None:
    """Its status could not be written either."""
    server.refuse[JOBS] = RetryableError("no answer in time")
    with pytest.raises(RetryableError, match="no answer"):
        await operator.step()


async def test_long_refusal_is_cut_to_what_the_status_may_hold(server: ApiServer, operator: Operator) -> None:
    server.refuse[JOBS] = RefusedError("\x1b[31m" + "ü" * 9000, status=400)
    await operator.settle()
    stage = current_stage(server.status)
    assert stage is not None
    assert stage.message == "\\x1b[31m" + "ü" * (4096 - 9) + "…"


async def test_child_of_an_earlier_run_of_this_name_is_waited_for(server: ApiServer, operator: Operator) -> None:
    """Who deletes a run and creates it again is quicker than the deletion of its children."""
    owner = {"kind": KIND, "name": KEY.name, "uid": "earlier", "controller": True}
    for meta in (
        {"ownerReferences": [owner]},
        {"ownerReferences": [], "deletionTimestamp": NOW_TEXT},
    ):
        server.objects[VOLUME_CLAIMS, "invoices-run"] = {"metadata": {"name": "invoices-run", **meta}}
        assert await operator.settle() in (1, 2)
        stage = current_stage(server.status)
        assert stage is not None
        assert "persistentvolumeclaims invoices-run exists in namespace team and is being deleted" in stage.message
        operator.now += timedelta(seconds=2)
    del server.objects[VOLUME_CLAIMS, "invoices-run"]
    assert await operator.settle() == TOLD_AFTER_S - 4
    assert (JOBS, "invoices-prepare-1") in server.objects


async def test_events_that_cannot_be_made_do_not_hold_up_the_run(server: ApiServer, operator: Operator) -> None:
    server.refuse[EVENTS] = ForbiddenError("no events here")
    await operator.settle()
    assert (JOBS, "invoices-prepare-1") in server.objects


async def test_authority_is_handed_out_late_and_after_a_change(server: ApiServer, operator: Operator) -> None:
    operator.authority.certificate = None
    await operator.settle()
    assert (CONFIG_MAPS, "invoices-report-ca") not in server.objects
    for certificate in ("FIRST", "SECOND"):
        operator.authority.certificate = certificate
        await operator.step()
        assert server.objects[CONFIG_MAPS, "invoices-report-ca"]["data"] == {"ca.crt": certificate}
    operator.new_process()
    server.writes.clear()
    await operator.settle()
    assert server.writes == [], "what is current is not written again"


async def test_authority_that_cannot_be_handed_out_does_not_hold_up_a_running_stage(
    server: ApiServer, operator: Operator
) -> None:
    await operator.settle()
    operator.new_process()
    operator.authority.certificate = "NEW"

    async def refused(kind: Kind, *_: Any, **__: Any) -> Object:
        assert kind == CONFIG_MAPS
        raise ForbiddenError("no")

    server.patch = refused  # type: ignore[method-assign]
    assert await operator.step() == TOLD_AFTER_S
    assert f"event {UNREPORTED}" in server.writes


@pytest.mark.parametrize("is_begun", [False, True], ids=["new", "running"])
async def test_foreign_config_map_stops_reporting_and_not_the_run(
    server: ApiServer, operator: Operator, is_begun: bool
) -> None:
    if is_begun:
        await operator.settle()
        operator.new_process()
    foreign = {"metadata": {"name": "invoices-report-ca"}, "data": {"ca.crt": "FORGED"}}
    server.objects[CONFIG_MAPS, "invoices-report-ca"] = copy.deepcopy(foreign)
    await operator.settle()
    assert (JOBS, "invoices-prepare-1") in server.objects
    assert server.status.phase is Phase.PENDING
    assert server.objects[CONFIG_MAPS, "invoices-report-ca"] == foreign
    assert server.writes.count(f"event {UNREPORTED}") == 1
    await operator.step()
    assert server.writes.count(f"event {UNREPORTED}") == 1
    del server.objects[CONFIG_MAPS, "invoices-report-ca"]
    await operator.step()
    assert server.objects[CONFIG_MAPS, "invoices-report-ca"]["data"] == {"ca.crt": "PEM"}


async def test_new_process_writes_nothing_for_a_run_that_goes_on(server: ApiServer, operator: Operator) -> None:
    await operator.settle()
    operator.now += timedelta(seconds=30)
    operator.new_process()
    server.writes.clear()
    # A refused write is a write as well.
    server.create = server.patch = None  # type: ignore[assignment, method-assign]
    assert await operator.settle() == ASKED_AFTER_S
    assert server.writes == []


async def test_status_that_the_schema_prunes_is_not_written_in_a_loop(server: ApiServer, operator: Operator) -> None:
    server.pruned = ("summary",)
    with pytest.raises(StatusPrunedError, match="nothing new of summary was kept in the status of team/invoices"):
        await operator.step()


async def test_progress_is_written_when_it_is_due(server: ApiServer, operator: Operator) -> None:
    await operator.settle()

    def report(step: int, at: datetime) -> None:
        progress = Progress(stage=StageName.PREPARE, attempt=1, pod_uid="p", step=step, total_steps=9,
                            last_update_time=NOW_TEXT)  # fmt: skip
        operator.progress.put(RUN_UID, progress, at)
        operator.now = at

    report(1, NOW)
    await operator.settle()
    assert server.status.progress is not None
    assert server.status.progress.step == 1
    report(2, NOW + timedelta(seconds=5))
    assert await operator.settle() == pytest.approx(TOLD_AFTER_S - 5)
    assert server.status.progress.step == 1
    operator.now = NOW + timedelta(seconds=15)
    await operator.settle()
    assert server.status.progress is not None
    assert server.status.progress.step == 2


async def test_run_of_another_version_is_marked_once_and_left_alone(server: ApiServer) -> None:
    server.put_run(novelty="yes")
    operator = Operator(server)
    for _ in range(3):
        assert await operator.step() is None
    assert server.writes == ["event Unreadable", "patch llavafinetunes invoices"]
    ready = next(c for c in server.status.conditions if c.type is Condition.READY)
    assert (ready.status, ready.reason) == ("False", UNREADABLE)
    assert "spec.novelty" in ready.message


async def test_run_of_another_version_is_marked_also_where_events_are_refused(server: ApiServer) -> None:
    server.put_run(novelty="yes")
    server.refuse[EVENTS] = ForbiddenError("no events here")
    assert await Operator(server).step() == 60
    ready = next(c for c in server.status.conditions if c.type is Condition.READY)
    assert ready.reason == UNREADABLE


async def test_run_with_an_unreadable_status_is_reported_and_left_alone(server: ApiServer, operator: Operator) -> None:
    server.objects[RUNS, KEY.name]["status"] = {"phase": "Dreaming"}
    assert await operator.step() is None
    assert server.writes == ["event Unreadable"]
    view = operator.runs.get(KEY)
    assert view is not None
    assert view.status == Status()


RUNS_NOW = {"number": 1, "startTime": NOW_TEXT}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # With none it is what the API server makes of a status of the version before; this is no number of one.
        ({"attempts": [], "attempt": 10**9}, "status.stages.prepare.attempt is 1000000000, but"),
        ({"attempts": [{"number": 7}]}, "status.stages.prepare.attempt is 1, but its attempts are [7]"),
        ({"attempts": [{"number": 5}, {"number": 1}]}, "status.stages.prepare.attempts are numbered [5, 1]"),
        ({"attempts": [{"number": 0}, {"number": 1}]}, "status.stages.prepare.attempts has an attempt that runs"),
        (
            {"attempts": [{"number": 1, "startTime": NOW_TEXT, "settings": {"replicas": 10**6}}]},
            "has settings that no spec has",
        ),
        (
            {"attempts": [{"number": 1, "startTime": NOW_TEXT, "settings": {"gpus": 17}}]},
            "has settings that no spec has",
        ),
        (
            {"attempts": [{"number": 1, "startTime": NOW_TEXT, "settings": {"perDeviceBatch": 0}}]},
            "has settings that no spec has",
        ),
        ({"attempt": 0}, "status.stages.prepare.attempt is 0, but its attempts are [1]"),
        ({"attempt": 10**9}, "status.stages.prepare.attempt is 1000000000, but"),
        ({"startTime": None}, "status.stages.prepare.startTime is missing"),
        ({"attempts": [{"number": 1, "startTime": None}]}, "has one that runs without a startTime"),
    ],
)
async def test_status_that_no_operator_has_written_is_reported_and_left_alone(
    server: ApiServer, operator: Operator, change: Object, message: str
) -> None:
    await operator.settle()
    server.objects[RUNS, KEY.name]["status"]["stages"][0].update(change)
    operator.new_process()
    assert await operator.step() is None
    ready = next(c for c in server.status.conditions if c.type is Condition.READY)
    assert ready.reason == UNREADABLE
    assert message in ready.message


async def test_namesake_of_a_deleted_run_starts_from_nothing(server: ApiServer, operator: Operator) -> None:
    server.refuse[JOBS] = ForbiddenError("exceeded quota", status=403)
    await operator.settle()
    server.objects.clear()
    server.refuse.clear()
    server.put_run()["metadata"]["uid"] = "new-uid"
    assert await operator.settle() == TOLD_AFTER_S
    assert server.objects[JOBS, "invoices-prepare-1"]["metadata"]["ownerReferences"][0]["uid"] == "new-uid"
