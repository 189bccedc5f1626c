"""Gangs: two that stand in each other's way, and one that a queue admits and evicts.

API server, scheduler and Job controller are real; nodes are objects, and their kubelet is played.
"""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from llava_api.constants import LABEL_ATTEMPT, LABEL_COMPLETION_INDEX, LABEL_RUN, LABEL_STAGE, StageName
from llava_operator.kube.kinds import JOBS, PODS, RUNS
from llava_operator.kube.objects import Object
from tests.cluster.kubelets import running as pod_runs
from tests.cluster.kubelets import succeed
from tests.cluster.nodes import NODES, Nodes, playing, provide
from tests.cluster.operators import OperatorProcess, running
from tests.cluster.worlds import World, is_true, make_run, namespace_of, until, world_of
from tests.kubectl import Kubectl

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def operator(installation: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    log = tmp_path_factory.mktemp("gangs") / "operator.log"
    process = OperatorProcess(pod_name="gangs", kubeconfig=installation, log=log)
    with running(process):
        process.wait_until_leader()
        yield process
    assert "Traceback" not in log.read_text(), log.read_text()


def has_started(pods: list[Object], pod: Object) -> bool:
    """Whether all pods of a pod's Job run: only then does a gang begin to work."""
    job = pod["metadata"]["ownerReferences"][0]["uid"]
    of_job = [one for one in pods if one["metadata"]["ownerReferences"][0]["uid"] == job]
    return len(of_job) == 2 and all(one["status"]["phase"] == "Running" for one in of_job)


def has_ended(pods: list[Object], pod: Object) -> bool:
    """Whether another pod of a pod's Job has ended well."""
    job = pod["metadata"]["ownerReferences"][0]["uid"]
    of_job = [one for one in pods if one["metadata"]["ownerReferences"][0]["uid"] == job]
    return any(one["status"]["phase"] == "Succeeded" for one in of_job)


@pytest.fixture
async def world(api_server: Kubectl, crd: None, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """One whose pods are bound by the real scheduler, to nodes that are played."""
    async with world_of(api_server, namespace_of(request), kubelet=None) as made:
        yield made


class Gang:
    """Pods of training begin to work when all are there, and succeed, if they may."""

    may_end = True

    def behave(self, pod: Object, pods: list[Object]) -> Object | None:
        if pod["metadata"]["labels"][LABEL_STAGE] != StageName.TRAIN:
            return succeed(pod)
        if pod["status"]["phase"] == "Pending":
            return pod_runs()
        is_first = pod["metadata"]["labels"][LABEL_COMPLETION_INDEX] == "0"
        # The first ends last: with it gone, the others would seem to be alone.
        others_run = has_started(pods, pod) if not is_first else has_ended(pods, pod)
        return succeed(pod) if self.may_end and others_run else None


@pytest.fixture
def gang() -> Gang:
    return Gang()


@pytest.fixture
async def nodes(world: World, gang: Gang) -> AsyncIterator[Nodes]:
    async with playing(world.kube, world.namespace, gang.behave) as made:
        yield made


async def create_run(world: World, name: str, **spec: Any) -> None:
    small = {"limits": {"cpu": "1", "memory": "1Gi"}}
    workers = {"replicas": 2, "gpus": 1, "gracePeriodSeconds": 15, "resources": small, "shmSize": "1Gi"}
    await world.kube.create(RUNS, world.namespace, make_run(name, world.namespace, **{"workers": workers, **spec}))


async def train_of(world: World, run: str) -> Object:
    status = (await world.kube.get(RUNS, world.namespace, run)).get("status", {})
    return next((stage for stage in status.get("stages", []) if stage["name"] == "train"), {})


async def finished(world: World, run: str, *, timeout_s: float = 120) -> Object:
    async def look() -> Object | None:
        status = (await world.kube.get(RUNS, world.namespace, run)).get("status", {})
        assert not is_true(status, "Failed"), status["failure"]
        return status if is_true(status, "Complete") else None

    return await until(f"the end of {run}", look, timeout_s=timeout_s)


async def placed(world: World, run: str) -> int:
    pods = [pod async for pod in world.kube.list(PODS, world.namespace, f"{LABEL_RUN}={run},{LABEL_STAGE}=train")]
    live = [pod for pod in pods if pod["status"]["phase"] in ("Pending", "Running")]
    return sum(bool(pod["spec"].get("nodeName")) for pod in live)


async def test_two_gangs_that_each_hold_half_of_what_both_need_both_finish(
    world: World, nodes: Nodes, operator: OperatorProcess
) -> None:
    await provide(world, "models", "data", "first-run", "second-run")
    taint = {"key": "only", "value": "second", "effect": "NoSchedule"}
    await nodes.add("node-a", 1)
    await nodes.add("node-b", 1, taint)
    patience = {"gangTimeoutSeconds": 10}
    await create_run(world, "first", scheduling=patience)

    async def first_has_half() -> bool:
        return await placed(world, "first") == 1

    await until("half a gang", first_has_half, timeout_s=60)
    tolerations = [{"key": "only", "operator": "Exists"}]
    await create_run(world, "second", scheduling={**patience, "tolerations": tolerations})

    async def both_have_half() -> bool:
        return (await placed(world, "first"), await placed(world, "second")) == (1, 1)

    await until("two halves", both_have_half, timeout_s=60)
    await world.kube.patch(NODES, None, "node-b", {"spec": {"taints": []}})
    for run in ("first", "second"):
        await finished(world, run)
    reasons = [[one["because"] for one in (await train_of(world, run))["attempts"]] for run in ("first", "second")]
    assert any("GangNotScheduled" in of_run for of_run in reasons), reasons
    assert [(await train_of(world, run)).get("restarts", 0) for run in ("first", "second")] == [0, 0]


async def test_a_queue_admits_evicts_and_admits_again(
    world: World, nodes: Nodes, gang: Gang, operator: OperatorProcess
) -> None:
    """The test plays Kueue: it lets suspended Jobs go, and suspends one that runs."""
    await provide(world, "models", "data", "queued-run")
    await nodes.add("node-a", 1)
    await nodes.add("node-b", 1)
    gang.may_end = False
    await create_run(world, "queued", scheduling={"queueName": "gpus"})

    async def let_go(job: str) -> None:
        async def look() -> Object | None:
            found = [one async for one in world.kube.list(JOBS, world.namespace) if one["metadata"]["name"] == job]
            return found[0] if found else None

        made = await until(f"Job {job}", look, timeout_s=60)
        assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
        assert made["spec"]["suspend"] is True
        await world.kube.patch(JOBS, world.namespace, job, {"spec": {"suspend": False}})

    async def attempt(number: int, state: str) -> Object:
        async def look() -> Object | None:
            attempts = (await train_of(world, "queued")).get("attempts", [])
            return next((one for one in attempts if (one["number"], one["state"]) == (number, state)), None)

        return await until(f"attempt {number} to be {state}", look, timeout_s=60)

    await let_go("queued-prepare-1")
    queued = await attempt(1, "Queued")
    assert queued["settings"]["queue"] == "gpus"
    assert not [pod async for pod in world.kube.list(PODS, world.namespace, f"{LABEL_STAGE}=train")]
    await let_go("queued-train-1")
    assert (await attempt(1, "Running"))["admittedTime"]
    await world.kube.patch(JOBS, world.namespace, "queued-train-1", {"spec": {"suspend": True}})
    evicted = await attempt(1, "Gone")
    assert (evicted["because"], evicted["counts"]) == ("QueueEvicted", False)
    gang.may_end = True
    await attempt(2, "Queued")
    for job in ("queued-train-2", "queued-merge-1", "queued-evaluate-1"):
        await let_go(job)
    status = await finished(world, "queued")
    assert status["accounting"]["restartsByReason"] == {"QueueEvicted": 1}
    assert json.dumps(status["stages"]).count("QueueEvicted") == 1
    jobs = [job["metadata"]["labels"][LABEL_ATTEMPT] async for job in world.kube.list(JOBS, world.namespace)]
    assert sorted(jobs) == ["1", "1", "1", "2"], "the evicted Job is gone"
