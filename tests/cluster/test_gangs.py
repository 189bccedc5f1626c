"""Gangs: two that stand in each other's way, and one that a queue admits and evicts.

API server, scheduler and Job controller are real; nodes are objects, and their kubelet is played.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from llava_api.constants import LABEL_ATTEMPT, LABEL_RUN, LABEL_STAGE, StageName
from llava_operator.kube.client import Kind, Kube, KubeError
from llava_operator.kube.kinds import JOBS, LEASES, PODS, RUNS
from llava_operator.kube.objects import Object
from tests.cluster.operators import OperatorProcess, running
from tests.cluster.worlds import NAMESPACES, connect, ended, is_true, make_run, succeed, until
from tests.cluster.worlds import running as pod_runs
from tests.kubectl import Kubectl

pytestmark = pytest.mark.cluster

NODES = Kind("api/v1", "nodes")
VOLUMES = Kind("api/v1", "persistentvolumes")
CLAIMS = Kind("api/v1", "persistentvolumeclaims")
NAMESPACE = "gangs"
GPU = "nvidia.com/gpu"
BEAT_S = 5


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


class Nodes:
    """Nodes without machines. Pods that are bound to one run; a gang that is complete succeeds, if it may."""

    def __init__(self, kube: Kube) -> None:
        self.kube = kube
        self.names: list[str] = []
        self.may_end = True

    async def add(self, name: str, gpus: int, *taints: Object) -> None:
        resources = {"cpu": "64", "memory": "1Ti", "pods": "110", GPU: str(gpus)}
        conditions = [{"type": "Ready", "status": "True", "reason": "Played", "lastHeartbeatTime": _now()}]
        body = {
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "spec": {"taints": list(taints)},
        }
        with contextlib.suppress(KubeError):
            await self.kube._request("DELETE", NODES.path(None, name))
        await self.kube.create(NODES, None, body)
        status = {"status": {"capacity": resources, "allocatable": resources, "conditions": conditions}}
        await self.kube.patch(NODES, None, name, status, subresource="status")  # type: ignore[arg-type]
        self.names.append(name)

    async def live(self) -> None:
        """Beat for every node and look after its pods, for ever."""
        last = 0.0
        while True:
            if (now := asyncio.get_running_loop().time()) - last > BEAT_S:
                last = now
                for name in self.names:
                    await self._beat(name)
            pods = [pod async for pod in self.kube.list(PODS, NAMESPACE)]
            for pod in pods:
                with contextlib.suppress(KubeError):
                    await self._look_after(pod, pods)
            await asyncio.sleep(0.2)

    async def _beat(self, name: str) -> None:
        conditions = [{"type": "Ready", "status": "True", "reason": "Played", "lastHeartbeatTime": _now()}]
        status = {"status": {"conditions": conditions}}
        await self.kube.patch(NODES, None, name, status, subresource="status")  # type: ignore[arg-type]
        lease = {"metadata": {"name": name}, "spec": {"holderIdentity": name, "renewTime": _micro()}}
        with contextlib.suppress(KubeError):
            await self.kube.create(LEASES, "kube-node-lease", lease)
        await self.kube.patch(LEASES, "kube-node-lease", name, {"spec": lease["spec"]})

    async def _look_after(self, pod: Object, pods: list[Object]) -> None:
        name, phase = pod["metadata"]["name"], pod["status"]["phase"]
        if not pod["spec"].get("nodeName"):
            return
        status: Object | None = None
        if "deletionTimestamp" in pod["metadata"]:
            if phase in ("Pending", "Running"):
                await self._say(name, ended(143, ""))
            await self.kube._request("DELETE", PODS.path(NAMESPACE, name), body={"gracePeriodSeconds": 0})
        elif pod["metadata"]["labels"][LABEL_STAGE] != StageName.TRAIN:
            status = succeed(pod) if phase in ("Pending", "Running") else None
        elif phase == "Pending":
            status = pod_runs()
        elif phase == "Running" and self.may_end and has_started(pods, pod):
            for one in pods:
                if one["metadata"]["ownerReferences"][0]["uid"] == pod["metadata"]["ownerReferences"][0]["uid"]:
                    await self._say(one["metadata"]["name"], succeed(one) or {})
        if status:
            await self._say(name, status)

    async def _say(self, pod: str, status: Object) -> None:
        await self.kube.patch(PODS, NAMESPACE, pod, {"status": status}, subresource="status")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _micro() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@pytest.fixture
async def kube(api_server: Kubectl) -> AsyncIterator[Kube]:
    assert api_server.kubeconfig is not None
    async with connect(api_server.kubeconfig) as api:
        kube = Kube(api, timeout_s=20)
        await kube.create(NAMESPACES, None, {"metadata": {"name": NAMESPACE}})
        yield kube
    api_server.run("delete", "namespace", NAMESPACE, "--timeout=60s")
    for name in ("models", "data", "first-run", "second-run", "queued-run"):
        api_server.run("delete", "pv", name, "--ignore-not-found", "--wait=false")


@pytest.fixture
async def nodes(kube: Kube) -> AsyncIterator[Nodes]:
    made = Nodes(kube)
    living = asyncio.create_task(made.live())
    yield made
    living.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await living
    for name in made.names:
        await kube._request("DELETE", NODES.path(None, name))


async def provide(kube: Kube, *claims: str) -> None:
    """Volumes for claims, which the scheduler waits for."""
    for name in claims:
        spec = {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany"], "hostPath": {"path": "/tmp"},
            "claimRef": {"namespace": NAMESPACE, "name": name}, "persistentVolumeReclaimPolicy": "Retain",
        }  # fmt: skip
        await kube.create(VOLUMES, None, {"metadata": {"name": name}, "spec": spec})
    for name in ("models", "data"):
        claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
        if name in claims:
            await kube.create(CLAIMS, NAMESPACE, {"metadata": {"name": name}, "spec": claim})


async def create_run(kube: Kube, name: str, **spec: Any) -> None:
    small = {"limits": {"cpu": "1", "memory": "1Gi"}}
    workers = {"replicas": 2, "gpus": 1, "gracePeriodSeconds": 15, "resources": small, "shmSize": "1Gi"}
    await kube.create(RUNS, NAMESPACE, make_run(name, NAMESPACE, **{"workers": workers, **spec}))


async def train_of(kube: Kube, run: str) -> Object:
    status = (await kube.get(RUNS, NAMESPACE, run)).get("status", {})
    return next((stage for stage in status.get("stages", []) if stage["name"] == "train"), {})


async def finished(kube: Kube, run: str, *, timeout_s: float = 120) -> Object:
    async def look() -> Object | None:
        status = (await kube.get(RUNS, NAMESPACE, run)).get("status", {})
        assert not is_true(status, "Failed"), status["failure"]
        return status if is_true(status, "Complete") else None

    return await until(f"the end of {run}", look, timeout_s=timeout_s)


async def placed(kube: Kube, run: str) -> int:
    pods = [pod async for pod in kube.list(PODS, NAMESPACE, f"{LABEL_RUN}={run},{LABEL_STAGE}=train")]
    live = [pod for pod in pods if pod["status"]["phase"] in ("Pending", "Running")]
    return sum(bool(pod["spec"].get("nodeName")) for pod in live)


async def test_two_gangs_that_each_hold_half_of_what_both_need_both_finish(
    kube: Kube, nodes: Nodes, operator: OperatorProcess
) -> None:
    await provide(kube, "models", "data", "first-run", "second-run")
    taint = {"key": "only", "value": "second", "effect": "NoSchedule"}
    await nodes.add("node-a", 1)
    await nodes.add("node-b", 1, taint)
    patience = {"gangTimeoutSeconds": 10}
    await create_run(kube, "first", scheduling=patience)

    async def first_has_half() -> bool:
        return await placed(kube, "first") == 1

    await until("half a gang", first_has_half, timeout_s=60)
    tolerations = [{"key": "only", "operator": "Exists"}]
    await create_run(kube, "second", scheduling={**patience, "tolerations": tolerations})

    async def both_have_half() -> bool:
        return (await placed(kube, "first"), await placed(kube, "second")) == (1, 1)

    await until("two halves", both_have_half, timeout_s=60)
    await kube.patch(NODES, None, "node-b", {"spec": {"taints": []}})  # type: ignore[arg-type]
    for run in ("first", "second"):
        await finished(kube, run)
    reasons = [[one["because"] for one in (await train_of(kube, run))["attempts"]] for run in ("first", "second")]
    assert any("GangNotScheduled" in of_run for of_run in reasons), reasons
    assert [(await train_of(kube, run)).get("restarts", 0) for run in ("first", "second")] == [0, 0]


async def test_a_queue_admits_evicts_and_admits_again(kube: Kube, nodes: Nodes, operator: OperatorProcess) -> None:
    """The test plays Kueue: it lets suspended Jobs go, and suspends one that runs."""
    await provide(kube, "models", "data", "queued-run")
    await nodes.add("node-a", 1)
    await nodes.add("node-b", 1)
    nodes.may_end = False
    await create_run(kube, "queued", scheduling={"queueName": "gpus"})

    async def let_go(job: str) -> None:
        async def look() -> Object | None:
            found = [one async for one in kube.list(JOBS, NAMESPACE) if one["metadata"]["name"] == job]
            return found[0] if found else None

        made = await until(f"Job {job}", look, timeout_s=60)
        assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
        assert made["spec"]["suspend"] is True
        await kube.patch(JOBS, NAMESPACE, job, {"spec": {"suspend": False}})

    async def attempt(number: int, state: str) -> Object:
        async def look() -> Object | None:
            attempts = (await train_of(kube, "queued")).get("attempts", [])
            return next((one for one in attempts if (one["number"], one["state"]) == (number, state)), None)

        return await until(f"attempt {number} to be {state}", look, timeout_s=60)

    await let_go("queued-prepare-1")
    queued = await attempt(1, "Queued")
    assert queued["settings"]["queue"] == "gpus"
    assert not [pod async for pod in kube.list(PODS, NAMESPACE, f"{LABEL_STAGE}=train")]
    await let_go("queued-train-1")
    assert (await attempt(1, "Running"))["admittedTime"]
    await kube.patch(JOBS, NAMESPACE, "queued-train-1", {"spec": {"suspend": True}})
    evicted = await attempt(1, "Gone")
    assert (evicted["because"], evicted["counts"]) == ("QueueEvicted", False)
    nodes.may_end = True
    await attempt(2, "Queued")
    for job in ("queued-train-2", "queued-merge-1", "queued-evaluate-1"):
        await let_go(job)
    status = await finished(kube, "queued")
    assert status["accounting"]["restartsByReason"] == {"QueueEvicted": 1}
    assert json.dumps(status["stages"]).count("QueueEvicted") == 1
    jobs = [job["metadata"]["labels"][LABEL_ATTEMPT] async for job in kube.list(JOBS, NAMESPACE)]
    assert sorted(jobs) == ["1", "1", "1", "2"], "the evicted Job is gone"
