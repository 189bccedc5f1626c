"""Whose a claim is, how long it is waited for, and when it outlives the run: passes against an API server in memory."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from llava_api.constants import API_VERSION, KIND, LABEL_RUN_UID, STAGE_CONTAINER, Condition, Phase, StageName
from llava_api.status import Artifacts, StageState, Status, Trainer
from llava_operator.build.config import CONFIG_KEY
from llava_operator.cache.runs import Runs
from llava_operator.deciding.results import take_result
from llava_operator.deciding.status import complete_status, dump_status
from llava_operator.deciding.waiting import TOLD_AFTER_S
from llava_operator.kube.errors import (
    ConflictError,
    ForbiddenError,
    KubeError,
    NotFoundError,
    RetryableError,
)
from llava_operator.kube.kinds import CONFIG_MAPS, JOBS, PODS, RUNS, VOLUME_CLAIMS
from llava_operator.kube.objects import Object
from llava_operator.run import parse_run
from tests.controller.in_memory import ApiServer, Operator
from tests.controller.makers import KEY, NOW, NOW_TEXT, RESULTS, RUN_UID, begun

CLAIM = (VOLUME_CLAIMS, "invoices-run")
FIRST_JOB = (JOBS, "invoices-prepare-1")


def claim_of(uid: str, **metadata: Any) -> Object:
    return {"metadata": {"name": CLAIM[1], "uid": "claim-uid", "resourceVersion": "1",
                         "labels": {LABEL_RUN_UID: uid}, **metadata}}  # fmt: skip


def owner(uid: str) -> Object:
    return {"apiVersion": API_VERSION, "kind": KIND, "name": KEY.name, "uid": uid, "controller": True}


def suspension(server: ApiServer) -> tuple[str, str]:
    [held] = [one for one in server.status.conditions if one.type is Condition.SUSPENDED]
    return held.status, held.reason


# --- whose it is


@pytest.mark.parametrize(
    "metadata", [{}, {"ownerReferences": [owner(RUN_UID)]}, {"labels": {}, "ownerReferences": [owner(RUN_UID)]}],
    ids=["by its label alone", "by label and owner", "of an operator that set no label"],
)  # fmt: skip
async def test_claim_of_this_run_is_taken(server: ApiServer, operator: Operator, metadata: Object) -> None:
    server.objects[CLAIM] = claim_of(RUN_UID, **metadata)
    assert await operator.settle() == TOLD_AFTER_S
    assert FIRST_JOB in server.objects


async def test_claim_of_an_earlier_run_suspends_until_it_is_deleted(server: ApiServer, operator: Operator) -> None:
    server.objects[CLAIM] = claim_of("earlier-uid")
    assert await operator.settle() == 1
    assert server.status.phase is Phase.SUSPENDED
    assert suspension(server) == ("True", "VolumeOfEarlierRun")
    [stage, *_] = server.status.stages
    assert stage.reason == "VolumeOfEarlierRun"
    assert "persistentvolumeclaims invoices-run exists in namespace team and holds what an earlier run" in stage.message
    assert "Delete that claim, or take it over by naming it in spec.storage.existingClaim" in stage.message
    assert FIRST_JOB not in server.objects
    # A restart changes nothing about it.
    operator.new_process()
    server.writes.clear()
    await operator.settle()
    assert server.writes == []
    assert suspension(server) == ("True", "VolumeOfEarlierRun")

    del server.objects[CLAIM]
    operator.new_process()
    assert await operator.settle() == TOLD_AFTER_S
    assert server.objects[CLAIM]["metadata"]["labels"][LABEL_RUN_UID] == RUN_UID
    assert FIRST_JOB in server.objects
    assert suspension(server) == ("False", "Pending")
    assert server.status.failure is None
    assert server.status.suspended_time is None


async def test_claim_of_an_earlier_run_is_used_once_it_is_named(server: ApiServer, operator: Operator) -> None:
    server.objects[CLAIM] = claim_of("earlier-uid")
    await operator.settle()
    run = server.objects[RUNS, KEY.name]
    run["spec"]["storage"]["existingClaim"] = CLAIM[1]
    run["metadata"]["generation"] = 2
    assert await operator.settle() == TOLD_AFTER_S, "at once, not when the claim would have been tried again"
    assert FIRST_JOB in server.objects
    assert suspension(server) == ("False", "Pending")
    assert server.objects[CLAIM] == claim_of("earlier-uid"), "it is another's still"
    assert server.status.artifacts is not None
    assert server.status.artifacts.volume_folder == f"runs/{RUN_UID}", "not among what the earlier run has left"
    assert server.status.stages[0].reason != "VolumeOfEarlierRun"


async def test_another_obstacle_behind_that_claim_is_told_of_instead(server: ApiServer, operator: Operator) -> None:
    server.objects[CLAIM] = claim_of("earlier-uid")
    await operator.settle()
    del server.objects[CLAIM]
    server.refuse[VOLUME_CLAIMS] = ForbiddenError("exceeded quota", status=403)
    operator.new_process()
    await operator.settle()
    assert suspension(server) == ("False", "Pending")
    assert server.status.stages[0].message == "exceeded quota"


async def test_named_claim_is_used_and_none_is_made(server: ApiServer, operator: Operator) -> None:
    server.put_run(storage={"existingClaim": "shared"})
    assert await operator.settle() == TOLD_AFTER_S
    assert FIRST_JOB in server.objects
    assert CLAIM not in server.objects
    artifacts = server.status.artifacts
    assert artifacts is not None
    assert (artifacts.volume_claim, artifacts.volume_folder, artifacts.access_modes) == ("shared", "runs/run-uid", ())
    # Attempts of other runs have the same numbers: each has a folder of its own, which nobody's status can move.
    told = json.loads(server.objects[CONFIG_MAPS, FIRST_JOB[1]]["data"][CONFIG_KEY])
    assert told["volumeRoot"] == "/llava/run/runs/run-uid"
    server.objects[RUNS, KEY.name]["status"]["artifacts"]["volumeFolder"] = "/etc"
    assert parse_run(server.objects[RUNS, KEY.name]).volume_root == Path("/llava/run/runs/run-uid")


async def test_run_begun_before_there_were_folders_stays_at_the_claims_root(
    server: ApiServer, operator: Operator
) -> None:
    raw = server.put_run(storage={"existingClaim": "shared"}, model={"source": "hf://llava-hf/tiny"})
    status = begun(StageName.TRAIN, with_job=False)
    artifacts = Artifacts(volume_claim="shared", adapter="attempts/train-1/adapter")
    raw["status"] = dump_status(status.model_copy(update={"artifacts": artifacts}))
    await operator.settle()
    told = json.loads(server.objects[CONFIG_MAPS, "invoices-train-1"]["data"][CONFIG_KEY])
    assert told["volumeRoot"] == "/llava/run"
    assert told["modelDir"] == "/llava/run/inputs/model"
    assert server.status.artifacts is not None
    assert server.status.artifacts.volume_folder is None


@pytest.mark.parametrize(("config_version", "path"), [(2, "runs/u/attempts/train-1/adapter"), (1, "runs/u/adapter")])
def test_results_are_told_by_their_path_on_the_claim(config_version: int, path: str) -> None:
    status = begun(StageName.TRAIN).model_copy(
        update={
            "artifacts": Artifacts(volume_claim="shared", volume_folder="runs/u"),
            "trainer": Trainer(config_version=config_version),
        }
    )
    artifacts = take_result(status, RESULTS[StageName.TRAIN]).artifacts
    assert artifacts is not None
    assert (artifacts.adapter, artifacts.volume_folder) == (path, "runs/u")


async def test_claim_is_made_by_a_later_attempt_where_the_first_had_no_job(
    server: ApiServer, operator: Operator
) -> None:
    """Suspended before anything was made, for example: the next attempt is not the first, and needs it."""
    server.refuse[VOLUME_CLAIMS] = ForbiddenError("exceeded quota", status=403)
    await operator.settle()
    run = server.objects[RUNS, KEY.name]
    for suspend in (True, False):
        run["spec"]["suspend"] = suspend
        server.refuse.clear()
        operator.now = operator.now.replace(hour=operator.now.hour + 1)
        await operator.settle()
    assert (JOBS, "invoices-prepare-2") in server.objects
    assert CLAIM in server.objects


# --- whether it outlives the run


def let_it_succeed(server: ApiServer, **storage: Any) -> None:
    """A run whose last stage has just ended well, with its claim as it was made."""
    server.put_run(storage=storage)["status"] = dump_status(begun(StageName.EVALUATE, with_job=False))
    owned = {} if storage.get("retain") == "Always" else {"ownerReferences": [owner(RUN_UID), owner("a-friend")]}
    server.objects[CLAIM] = claim_of(RUN_UID, **owned)
    meta = {"name": "invoices-evaluate-1", "namespace": KEY.namespace, "uid": "job-uid", "resourceVersion": "1",
            "ownerReferences": [owner(RUN_UID)]}  # fmt: skip
    server.objects[JOBS, meta["name"]] = {
        "metadata": meta, "spec": {}, "status": {"conditions": [{"type": "Complete", "status": "True"}]},
    }  # fmt: skip
    message = RESULTS[StageName.EVALUATE].to_termination_message()
    ended = {"terminated": {"exitCode": 0, "message": message, "finishedAt": "2026-11-01T12:00:00Z"}}
    job = {"apiVersion": "batch/v1", "kind": "Job", "name": meta["name"], "uid": "job-uid", "controller": True}
    server.objects[PODS, "pod"] = {
        "metadata": {"name": "pod", "namespace": KEY.namespace, "uid": "pod-uid", "ownerReferences": [job]},
        "status": {"phase": "Succeeded", "containerStatuses": [{"name": STAGE_CONTAINER, "state": ended}]},
    }


def owners(server: ApiServer) -> list[str]:
    return [one["uid"] for one in server.objects[CLAIM]["metadata"].get("ownerReferences", [])]


@pytest.mark.parametrize(
    ("storage", "left"),
    [({"retain": "Never"}, [RUN_UID, "a-friend"]), ({"retain": "OnSuccess"}, ["a-friend"]), ({"retain": "Always"}, []),
     ({"retain": "OnSuccess", "existingClaim": "shared"}, [RUN_UID, "a-friend"])],
)  # fmt: skip
async def test_what_becomes_of_the_claim_of_a_run_that_succeeds(
    server: ApiServer, operator: Operator, storage: Object, left: list[str]
) -> None:
    let_it_succeed(server, **storage)
    await operator.settle()
    assert server.status.phase is Phase.SUCCEEDED
    assert owners(server) == left


async def test_claim_is_kept_before_success_is_written(server: ApiServer, operator: Operator) -> None:
    """The operator dies between the two writes, and the next one goes on from there."""
    let_it_succeed(server, retain="OnSuccess")
    patch = server.patch

    async def die_at_success(kind: Any, namespace: str, name: str, body: Object, subresource: str = "") -> Object:
        if body.get("status", {}).get("phase") == "Succeeded":
            raise RetryableError("the operator is killed")
        return await patch(kind, namespace, name, body, subresource)

    server.patch = die_at_success  # type: ignore[method-assign]
    with pytest.raises(RetryableError):
        await operator.settle()
    assert server.status.phase is not Phase.SUCCEEDED
    assert owners(server) == ["a-friend"]
    server.patch = patch  # type: ignore[method-assign]
    operator.new_process()
    await operator.settle()
    assert server.status.phase is Phase.SUCCEEDED
    claim_patches = [write for write in server.writes if write.startswith("patch persistentvolumeclaims")]
    assert len(claim_patches) == 1, "what is kept is not kept again"


@pytest.mark.parametrize(
    "error", [ForbiddenError("may not patch claims", status=403), ConflictError("it was modified", status=409)]
)
async def test_success_waits_for_a_claim_that_cannot_be_kept(
    server: ApiServer, operator: Operator, error: KubeError
) -> None:
    let_it_succeed(server, retain="OnSuccess")
    patch = server.patch

    async def refuse(kind: Any, *args: Any, **options: Any) -> Object:
        if kind == VOLUME_CLAIMS:
            raise error
        return await patch(kind, *args, **options)

    server.patch = refuse  # type: ignore[method-assign]
    assert await operator.settle() == 1
    assert server.status.phase is not Phase.SUCCEEDED
    message = f"has succeeded, but the volume cannot be kept: {error}"
    assert server.status.stages[-1].message == message
    assert owners(server) == [RUN_UID, "a-friend"]
    server.patch = patch  # type: ignore[method-assign]
    operator.now = operator.now.replace(hour=operator.now.hour + 1)
    await operator.settle()
    assert server.status.phase is Phase.SUCCEEDED
    assert owners(server) == ["a-friend"]


async def test_claim_that_somebody_has_deleted_is_no_reason_not_to_succeed(
    server: ApiServer, operator: Operator
) -> None:
    let_it_succeed(server, retain="OnSuccess")
    del server.objects[CLAIM]
    await operator.settle()
    assert server.status.phase is Phase.SUCCEEDED
    with pytest.raises(NotFoundError):
        await server.get(VOLUME_CLAIMS, KEY.namespace, CLAIM[1])


# --- when the run is deleted


def put_ended(server: ApiServer, status: Status, **spec: Any) -> None:
    server.put_run(**spec)["status"] = dump_status(status)
    server.objects[CLAIM] = claim_of(RUN_UID)


def ended_status(phase: Phase) -> Status:
    status = begun(StageName.EVALUATE)
    stages = tuple(stage.model_copy(update={"state": StageState(phase), "completion_time": NOW_TEXT})
                   for stage in status.stages)  # fmt: skip
    status = status.model_copy(update={"phase": phase, "stages": stages, "completion_time": NOW_TEXT})
    return complete_status(status, before=status, generation=1, shown_metric="exact_match", now=NOW)


@pytest.mark.parametrize(
    ("phase", "storage", "is_deleted"),
    [
        (Phase.SUCCEEDED, {"retain": "Always"}, True),
        (Phase.SUCCEEDED, {"retain": "OnSuccess"}, True),
        (Phase.SUCCEEDED, {"retain": "Never"}, False),
        (Phase.SUCCEEDED, {"retain": "Never", "existingClaim": "shared"}, True),
        (Phase.FAILED, {"retain": "Always"}, True),
        (Phase.FAILED, {"retain": "OnSuccess"}, False),
        (Phase.FAILED, {"retain": "OnSuccess", "existingClaim": "shared"}, True),
    ],
)
async def test_run_is_deleted_after_its_time_where_its_volume_stays(
    server: ApiServer, operator: Operator, phase: Phase, storage: Object, is_deleted: bool
) -> None:
    put_ended(server, ended_status(phase), storage=storage, ttlSecondsAfterFinished=600)
    operator.now += timedelta(seconds=599)
    assert await operator.settle() == (1 if is_deleted else None)
    assert (RUNS, KEY.name) in server.objects
    operator.now += timedelta(seconds=1)
    await operator.settle()
    assert ((RUNS, KEY.name) not in server.objects) is is_deleted
    assert CLAIM in server.objects


async def test_claim_that_has_got_an_owner_again_loses_it_before_the_run_is_deleted(
    server: ApiServer, operator: Operator
) -> None:
    """By a restore of its first version, for example: Kubernetes would delete it with the run."""
    put_ended(server, ended_status(Phase.SUCCEEDED), storage={"retain": "OnSuccess"}, ttlSecondsAfterFinished=0)
    server.objects[CLAIM] = claim_of(RUN_UID, ownerReferences=[owner(RUN_UID)])
    await operator.settle()
    assert (RUNS, KEY.name) not in server.objects
    assert owners(server) == []


async def test_run_that_changed_in_the_same_moment_is_not_deleted(server: ApiServer, operator: Operator) -> None:
    put_ended(server, ended_status(Phase.SUCCEEDED), storage={"retain": "Always"}, ttlSecondsAfterFinished=0)
    delete = server.delete

    async def change_first(*args: Any, **options: Any) -> Object:
        run = server.objects[RUNS, KEY.name]
        run["spec"]["ttlSecondsAfterFinished"] = None
        run["metadata"]["resourceVersion"] = "99"
        return await delete(*args, **options)

    server.delete = change_first  # type: ignore[method-assign]
    assert await operator.settle() is None
    assert (RUNS, KEY.name) in server.objects


async def test_run_that_cannot_be_deleted_says_so_and_is_tried_again(server: ApiServer, operator: Operator) -> None:
    put_ended(server, ended_status(Phase.SUCCEEDED), storage={"retain": "Always"}, ttlSecondsAfterFinished=0)
    delete = server.delete

    async def refuse(*_: Any, **__: Any) -> Object:
        raise ForbiddenError("may not delete runs", status=403)

    server.delete = refuse  # type: ignore[method-assign]
    for _ in range(2):
        assert await operator.settle() == 60
    assert server.writes.count("event NotDeleted") == 1
    server.delete = delete  # type: ignore[method-assign]
    assert await operator.settle() is None
    assert (RUNS, KEY.name) not in server.objects


async def test_run_that_somebody_else_has_deleted_is_no_error(server: ApiServer, operator: Operator) -> None:
    put_ended(server, ended_status(Phase.SUCCEEDED), storage={"retain": "Always"}, ttlSecondsAfterFinished=0)

    async def gone(*_: Any, **__: Any) -> Object:
        raise NotFoundError("not found")

    server.delete = gone  # type: ignore[method-assign]
    assert await operator.settle() is None


async def test_relist_finds_runs_whose_time_is_over(server: ApiServer) -> None:
    """What a lost event, or a lost timer, has left behind."""
    put_ended(server, ended_status(Phase.SUCCEEDED), storage={"retain": "Always"}, ttlSecondsAfterFinished=600)
    now = NOW + timedelta(seconds=599)
    runs = Runs(now=lambda: now)
    assert await runs.relist(server, None) == set()  # type: ignore[arg-type]
    now += timedelta(seconds=1)
    assert await runs.relist(server, None) == {KEY}  # type: ignore[arg-type]
