"""What is left of a run, and when: deletion in every phase with the operator up and down, by policy, by a timer.

Pods stand on a node, so that they are deleted as they are with a real kubelet: with their whole grace period.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from llava_api.constants import LABEL_RUN, LABEL_RUN_UID, LABEL_STAGE, StageName
from llava_api.failures import Reason, exit_code_of
from llava_api.report import StageFailure, StageResult
from llava_operator.kube.errors import KubeError, NotFoundError
from llava_operator.kube.kinds import CHILD_SELECTOR, NODES, PODS, RUNS, VOLUME_CLAIMS
from llava_operator.kube.objects import Object
from tests.cluster.kubelets import FakeKubelet, ended, running, succeed
from tests.cluster.operators import OperatorProcess
from tests.cluster.operators import running as started
from tests.cluster.worlds import World, is_true, namespace_of, until, world_of
from tests.kubectl import Kubectl

pytestmark = pytest.mark.cluster

GRACE_S = 30
GONE_S = 60
"""Longest that children may stay at this grace period."""


@pytest.fixture(scope="module")
def operator(installation: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    log = tmp_path_factory.mktemp("operator") / "op.log"
    made = OperatorProcess(pod_name="op-life", kubeconfig=installation, log=log)
    with started(made):
        yield made
    assert "Traceback" not in log.read_text()
    assert "cannot be deleted" not in log.read_text()


class Kubelet(FakeKubelet):
    """Takes every pod in, and lets those that are deleted use up their whole grace period."""

    async def _look_after(self, pod: Object) -> None:
        meta, path = pod["metadata"], PODS.path(self.namespace, pod["metadata"]["name"])
        if "nodeName" not in pod["spec"]:
            target = {"apiVersion": "v1", "kind": "Node", "name": self.namespace}
            body = {"metadata": {"name": meta["name"]}, "target": target}
            with contextlib.suppress(KubeError):
                await self.kube._request("POST", f"{path}/binding", body=body)
        elif "deletionTimestamp" in meta and pod["status"]["phase"] in ("Pending", "Running"):
            if datetime.fromisoformat(meta["deletionTimestamp"]) <= datetime.now(UTC):
                with contextlib.suppress(KubeError):
                    await self.kube._request("DELETE", path, body={"gracePeriodSeconds": 0})
        elif "deletionTimestamp" in meta:
            with contextlib.suppress(KubeError):
                await self.kube._request("DELETE", path, body={"gracePeriodSeconds": 0})
        else:
            await super()._look_after(pod)


async def children_of(world: World, name: str) -> list[str]:
    """But for its claim."""
    return [one for one in await world.children(f"{LABEL_RUN}={name}") if not one.startswith(VOLUME_CLAIMS.plural)]


async def has_claim_of(world: World, name: str) -> bool:
    try:
        await world.kube.get(VOLUME_CLAIMS, world.namespace, f"{name}-run")
    except NotFoundError:
        return False
    return True


@pytest.fixture
async def world(api_server: Kubectl, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """One with a node of its own, and runs whose pods behave as their phase is called."""
    name = namespace_of(request)
    async with world_of(api_server, name, behave, kubelet=Kubelet) as made:
        await made.put(NODES, {"metadata": {"name": name}}, everywhere=True)
        yield made


def behave(pod: Object) -> Object | None:
    """What becomes of a pod by the phase that its run is named after."""
    labels = pod["metadata"]["labels"]
    phase, stage, is_new = labels[LABEL_RUN].partition("-")[0], labels[LABEL_STAGE], pod["status"]["phase"] == "Pending"
    if phase == "pending":
        return None
    if phase in ("backoff", "failed"):
        reason = Reason.INTERNAL_ERROR if phase == "backoff" else Reason.INVALID_DATA
        failure = StageFailure(reason=reason, message="as it was told")
        result = StageResult(stage=StageName(stage), attempt=1, failure=failure)
        return ended(exit_code_of(reason), result.to_termination_message())
    if phase in ("running", "stopping", "suspended") and stage == StageName.TRAIN:
        return running() if is_new else None
    return succeed(pod)


def is_training(status: Object) -> bool:
    return any("2 pods run" in stage.get("message", "") for stage in status.get("stages", []))


def newest_state(status: Object) -> str:
    train = next(stage for stage in status["stages"] if stage["name"] == "train")
    state: str = train["attempts"][-1]["state"]
    return state


PHASES: dict[str, Callable[[Object], object]] = {
    "pending": lambda status: any("pod pending-" in stage["message"] for stage in status.get("stages", [])),
    "running": is_training,
    "stopping": lambda status: newest_state(status) == "Stopping",
    "suspended": lambda status: status["phase"] == "Suspended" and newest_state(status) == "Gone",
    "backoff": lambda status: any("nextAttemptTime" in stage for stage in status.get("stages", [])),
    "failed": lambda status: is_true(status, "Failed"),
    "succeeded": lambda status: is_true(status, "Complete"),
}
"""How the status of a run shows each phase of its life."""


POLICIES = ("Always", "OnSuccess")


async def bring_to(world: World, phase: str, retain: str) -> str:
    """A run in this phase; one that is to be stopping, in training."""
    name = f"{phase}-{retain.lower()}"
    workers = {"replicas": 2, "gpus": 0, "gracePeriodSeconds": GRACE_S}
    await world.create_run(name, storage={"size": "1Gi", "retain": retain}, workers=workers)
    if phase == "suspended":
        await world.status_when("training", is_training, name, timeout_s=60)
        await world.change_run(name, suspend=True)
    await world.status_when(phase, is_training if phase == "stopping" else PHASES[phase], name, timeout_s=60)
    return name


async def bring_to_all(world: World) -> list[str]:
    """Runs in every phase by every policy, at the same time; those first whose phase is the shortest."""
    lasting = [(phase, retain) for phase in PHASES if phase != "backoff" for retain in POLICIES]
    lasting.append(("succeeded", "Never"))
    names = await asyncio.gather(*(bring_to(world, *one) for one in lasting))
    stopping = [name for name in names if name.startswith("stopping")]
    await asyncio.gather(*(world.change_run(name, suspend=True) for name in stopping))
    await asyncio.gather(*(world.status_when("stopping", PHASES["stopping"], name, timeout_s=60) for name in stopping))
    # Ten seconds, and thus last: stopping lasts for the whole grace period.
    return [*await asyncio.gather(*(bring_to(world, "backoff", retain) for retain in POLICIES)), *names]


@pytest.mark.parametrize("is_up", [True, False], ids=["up", "down"])
async def test_deleted_in_every_phase_nothing_is_left_but_volumes(
    world: World, operator: OperatorProcess, is_up: bool
) -> None:
    names = await bring_to_all(world)
    if not is_up:
        operator.kill()
    for name in names:
        status = await world.status(name)
        assert PHASES[name.partition("-")[0]](status), f"{name} has gone on: {json.dumps(status)}"
        await world.delete(RUNS, name)

    async def left() -> dict[str, list[str]]:
        found = {name: await children_of(world, name) for name in names}
        return {name: children for name, children in found.items() if children}

    async def are_gone() -> bool:
        return not await left()

    try:
        await until("every child to be gone", are_gone, timeout_s=GONE_S)
    except AssertionError:
        raise AssertionError(f"left after {GONE_S} s: {await left()}") from None
    kept = {name for name in names if name.endswith("-always")} | {"succeeded-onsuccess"}

    async def are_claims_settled() -> bool:
        return {name for name in names if await has_claim_of(world, name)} == kept

    await until("the claims to be as their runs want it", are_claims_settled)
    if not is_up:
        operator.start()
        operator.wait_until_ready()
    # Long enough for a garbage collector that would take them after all, and for an operator that makes something anew.
    await asyncio.sleep(3)
    assert await are_claims_settled()
    assert await are_gone()


async def test_timer_leaves_a_volume_that_no_namesake_takes_in_silence(world: World, operator: OperatorProcess) -> None:
    name = "succeeded"
    storage = {"size": "1Gi", "retain": "OnSuccess"}
    await world.create_run(name, storage=storage, ttlSecondsAfterFinished=2)

    async def is_deleted() -> bool:
        try:
            await world.kube.get(RUNS, world.namespace, name)
        except NotFoundError:
            return True
        return False

    await until("the run to be deleted", is_deleted, timeout_s=60)
    claim = await world.kube.get(VOLUME_CLAIMS, world.namespace, f"{name}-run")
    assert "ownerReferences" not in claim["metadata"]

    await world.create_run(name, storage=storage)
    status = await world.status_when("suspended", lambda status: is_true(status, "Suspended"), name, timeout_s=60)
    [held] = [one for one in status["conditions"] if one["type"] == "Suspended"]
    assert held["reason"] == "VolumeOfEarlierRun"
    assert claim["metadata"]["labels"][LABEL_RUN_UID] in held["message"]
    assert not [pod async for pod in world.kube.list(PODS, world.namespace, CHILD_SELECTOR)
                if "deletionTimestamp" not in pod["metadata"]]  # fmt: skip
    await world.change_run(name, storage={"existingClaim": f"{name}-run"})
    status = await world.ended(name, timeout_s=60)
    assert status["artifacts"]["volumeClaim"] == f"{name}-run"
    assert not is_true(status, "Suspended")
