"""Children of attempts that a status has no place for: removed, each once, and nobody else's."""

from datetime import timedelta

import pytest

from llava_api.constants import API_VERSION, KIND
from llava_api.status import ATTEMPTS_KEPT
from llava_operator.kube.errors import ForbiddenError, NotFoundError, RetryableError
from llava_operator.kube.kinds import CONFIG_MAPS, JOBS, Kind
from llava_operator.kube.objects import Object
from tests.controller.in_memory import ApiServer, Operator
from tests.controller.makers import RUN_UID

OWNER = {"apiVersion": API_VERSION, "kind": KIND, "name": "invoices", "uid": RUN_UID, "controller": True}


def children(server: ApiServer, kind: Kind) -> list[int]:
    """Numbers of prepare's attempts that have a child of this kind."""
    start = "invoices-prepare-"
    return sorted(int(name.removeprefix(start)) for of, name in server.objects if of == kind and name.startswith(start))


async def lose_attempt(server: ApiServer, operator: Operator) -> None:
    """Have the newest attempt's Job end by a disruption, and the time of the next one come."""
    await operator.settle()
    job = server.objects[JOBS, f"invoices-prepare-{server.status.stages[0].attempt}"]
    message = "Pod team/pod has condition DisruptionTarget matching FailJob rule at index 0"
    told = {"reason": "PodFailurePolicy", "message": message, "lastTransitionTime": "2026-11-01T11:59:00Z"}
    job["status"] = {"conditions": [{"type": "Failed", "status": "True", **told}]}
    operator.reconciler.children.note_job(job)
    await operator.settle()
    operator.now += timedelta(hours=1)


async def test_a_run_with_forty_attempts_has_children_of_the_newest_alone(
    server: ApiServer, operator: Operator
) -> None:
    for _ in range(40):
        await lose_attempt(server, operator)
    await operator.settle()
    newest = list(range(42 - ATTEMPTS_KEPT, 42))
    assert (children(server, JOBS), children(server, CONFIG_MAPS)) == (newest, newest)
    assert [one.number for one in server.status.stages[0].attempts] == newest
    deleted = [write for write in server.writes if write.startswith("delete")]
    assert len(deleted) == len(set(deleted)) == 2 * (41 - ATTEMPTS_KEPT), "each once"


async def test_what_dies_in_between_is_made_up_for(server: ApiServer, operator: Operator) -> None:
    for _ in range(ATTEMPTS_KEPT):
        await lose_attempt(server, operator)
    delete = server.delete

    async def die(kind: Kind, namespace: str, name: str, uid: str, *, version: str | None = None) -> Object:
        if kind == CONFIG_MAPS:
            raise RetryableError("the operator is killed")
        return await delete(kind, namespace, name, uid, version=version)

    server.delete = die  # type: ignore[method-assign]
    with pytest.raises(RetryableError):
        await operator.settle()
    assert server.status.stages[0].attempt == ATTEMPTS_KEPT, "the next attempt comes after"
    assert (children(server, JOBS)[0], children(server, CONFIG_MAPS)[0]) == (2, 1)
    server.delete = delete  # type: ignore[method-assign]
    operator.new_process()
    await operator.settle()
    assert server.status.stages[0].attempt == ATTEMPTS_KEPT + 1
    assert (children(server, JOBS)[0], children(server, CONFIG_MAPS)[0]) == (2, 2)


@pytest.mark.parametrize("how", ["somebody else's", "being deleted", "gone"])
async def test_what_is_not_its_own_any_more_is_left(server: ApiServer, operator: Operator, how: str) -> None:
    for _ in range(ATTEMPTS_KEPT):
        await lose_attempt(server, operator)
    meta = server.objects[CONFIG_MAPS, "invoices-prepare-1"]["metadata"]
    if how == "gone":
        del server.objects[CONFIG_MAPS, "invoices-prepare-1"]
    elif how == "being deleted":
        meta["deletionTimestamp"] = "2026-11-01T12:00:00Z"
    else:
        meta["ownerReferences"] = [{**OWNER, "uid": "another-uid"}]
    await operator.settle()
    assert server.status.stages[0].attempt == ATTEMPTS_KEPT + 1
    assert "delete configmaps invoices-prepare-1" not in server.writes
    assert "delete jobs invoices-prepare-1" in server.writes


async def test_another_object_of_the_name_is_not_deleted(server: ApiServer, operator: Operator) -> None:
    """It has taken the place of the one that was looked at."""
    for _ in range(ATTEMPTS_KEPT):
        await lose_attempt(server, operator)
    get = server.get

    async def swap(kind: Kind, namespace: str, name: str) -> Object:
        found = await get(kind, namespace, name)
        if (kind, name) == (CONFIG_MAPS, "invoices-prepare-1"):
            server.objects[kind, name]["metadata"]["uid"] = "of-another"
        return found

    server.get = swap  # type: ignore[method-assign]
    await operator.settle()
    assert server.objects[CONFIG_MAPS, "invoices-prepare-1"]["metadata"]["uid"] == "of-another"
    assert server.status.stages[0].attempt == ATTEMPTS_KEPT + 1


async def test_who_may_not_delete_goes_on_all_the_same(
    server: ApiServer, operator: Operator, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(ATTEMPTS_KEPT):
        await lose_attempt(server, operator)

    async def refuse(kind: Kind, namespace: str, name: str, uid: str, *, version: str | None = None) -> Object:
        if kind == JOBS:
            raise NotFoundError("gone")
        raise ForbiddenError("no right to delete", status=403)

    server.delete = refuse  # type: ignore[method-assign]
    await operator.settle()
    assert server.status.stages[0].attempt == ATTEMPTS_KEPT + 1
    assert "children of prepare-1 stay: no right to delete" in caplog.text
