"""Nodes that are objects and no more: scheduler and controllers take them for real, their kubelets are played."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

from llava_operator.kube.client import Kube
from llava_operator.kube.errors import KubeError
from llava_operator.kube.kinds import LEASES, PODS, Kind
from llava_operator.kube.objects import Object
from tests.cluster.kubelets import ended, now
from tests.cluster.worlds import World, until
from tests.kubectl import Kubectl

NODES = Kind("api/v1", "nodes")
GPU = "nvidia.com/gpu"
BEAT_S = 5

Behave = Callable[[Object, list[Object]], Object | None]
"""From a pod that is bound, and all pods of its namespace, to the status that it has next."""


class Nodes:
    """Nodes without machines, alive as long as somebody beats for them. Pods that are bound to one behave as told."""

    def __init__(self, kube: Kube, namespace: str, behave: Behave) -> None:
        self.kube = kube
        self.namespace = namespace
        self.behave = behave
        self.names: list[str] = []

    async def add(self, name: str, gpus: int, *taints: Object, **labels: str) -> None:
        resources = {"cpu": "64", "memory": "1Ti", "pods": "110", GPU: str(gpus)}
        conditions = [{"type": "Ready", "status": "True", "reason": "Played", "lastHeartbeatTime": now()}]
        body = {
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **labels}},
            "spec": {"taints": list(taints)},
        }
        with contextlib.suppress(KubeError):
            await self.kube._request("DELETE", NODES.path(None, name))
        await self.kube.create(NODES, None, body)
        status = {"status": {"capacity": resources, "allocatable": resources, "conditions": conditions}}
        await self.kube.patch(NODES, None, name, status, subresource="status")
        self.names.append(name)

    async def live(self) -> None:
        """Beat for every node and look after its pods, for ever."""
        last = 0.0
        while True:
            if (time := asyncio.get_running_loop().time()) - last > BEAT_S:
                last = time
                for name in self.names:
                    await self._beat(name)
            pods = [pod async for pod in self.kube.list(PODS, self.namespace)]
            for pod in pods:
                with contextlib.suppress(KubeError):
                    await self._look_after(pod, pods)
            await asyncio.sleep(0.2)

    async def _beat(self, name: str) -> None:
        conditions = [{"type": "Ready", "status": "True", "reason": "Played", "lastHeartbeatTime": now()}]
        status = {"status": {"conditions": conditions}}
        await self.kube.patch(NODES, None, name, status, subresource="status")
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
            await self.kube._request("DELETE", PODS.path(self.namespace, name), body={"gracePeriodSeconds": 0})
        elif phase in ("Pending", "Running"):
            status = self.behave(pod, pods)
        if status:
            await self._say(name, status)

    async def _say(self, pod: str, status: Object) -> None:
        await self.kube.patch(PODS, self.namespace, pod, {"status": status}, subresource="status")


def _micro() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@contextlib.asynccontextmanager
async def playing(kube: Kube, namespace: str, behave: Behave) -> AsyncIterator[Nodes]:
    """Nodes that live as long as the context, and go with it."""
    made = Nodes(kube, namespace, behave)
    living = asyncio.create_task(made.live())
    try:
        yield made
    finally:
        living.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await living
        # Pods that nobody ends would hold up the end of their namespace.
        async for pod in kube.list(PODS, namespace):
            with contextlib.suppress(KubeError):
                path = PODS.path(namespace, pod["metadata"]["name"])
                await kube._request("DELETE", path, body={"gracePeriodSeconds": 0})
        for name in made.names:
            await kube._request("DELETE", NODES.path(None, name))


async def provide(world: World, *claims: str) -> None:
    """Volumes for claims, which the scheduler waits for; and those claims that no run makes."""
    for name in claims:
        if name in ("models", "data"):
            await world.make_claim(name)
        else:
            await world.bind(name)


class PlayedNode:
    """A node as scheduler and controllers see one that is alive: ready, with CPUs and memory, at first without GPUs."""

    name = "played"

    def __init__(self, kubectl: Kubectl) -> None:
        self.kubectl = kubectl
        self.gpus = "0"

    def beat(self) -> None:
        """Say that it lives, as a kubelet does."""
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now()}
        has = {"cpu": "64", "memory": "640Gi", "pods": "110", "nvidia.com/gpu": self.gpus}
        status = {"status": {"capacity": has, "allocatable": has, "conditions": [ready]}}
        patch = ("patch", "node", self.name, "--subresource=status", "--type=merge", "-p", json.dumps(status))
        self.kubectl.run(*patch)

    def stay_alive(self, stop: threading.Event) -> None:
        """Do so until it is stopped."""
        while not stop.wait(10):
            self.beat()


async def place_pod(world: World) -> Object:
    """Bind the run's first pod to the played node, as the scheduler would if it found its claims."""

    async def first() -> Object | None:
        return next(iter(await world.pods()), None)

    pod = await until("the pod", first)
    name = pod["metadata"]["name"]
    target = {"apiVersion": "v1", "kind": "Node", "name": PlayedNode.name}
    binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
    await world.kube._request("POST", PODS.path(world.namespace, name, "binding"), body=binding)
    return pod
