"""What the tests of waiting runs share: a namespace whose pods do as told, a node that is played, what is expected.

What a kubelet does is played: the statuses and Events that one writes are written here.
"""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

from llava_api.constants import STAGE_CONTAINER
from llava_api.failures import Reason
from llava_operator.kube.client import Kube
from llava_operator.kube.kinds import EVENTS, PODS, RUNS, VOLUME_CLAIMS, Kind
from llava_operator.kube.objects import Object
from tests.cluster.worlds import NAMESPACES, FakeKubelet, connect, is_true, make_run, succeed, until
from tests.kubectl import Kubectl

IN_TIME_S = 120
"""Within which a reason has to be told; a volume that does not mount has 180 s."""
VOLUMES = Kind("api/v1", "persistentvolumes")


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def waiting(reason: str, message: str = "") -> Object:
    """Status of a pod whose container cannot be started, as the kubelet writes it."""
    state = {"waiting": {"reason": reason, **({"message": message} if message else {})}}
    container = {
        "name": STAGE_CONTAINER, "state": state, "ready": False, "restartCount": 0, "image": "i", "imageID": "",
    }  # fmt: skip
    return {"phase": "Pending", "containerStatuses": [container]}


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


class World:
    """A namespace with one run, whose pods do as told."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self.kube = kube
        self.namespace = namespace
        self.behave: Callable[[Object], Object | None] = lambda pod: None
        """What a kubelet says of a pod; nothing at first."""
        self.everywhere: list[tuple[Kind, str]] = []
        """What it has put into the cluster."""

    async def create_run(self, **spec: Any) -> None:
        await self.kube.create(RUNS, self.namespace, make_run("run", self.namespace, **spec))

    async def status(self) -> Object:
        status: Object = (await self.kube.get(RUNS, self.namespace, "run")).get("status", {})
        return status

    async def waits(self, reason: Reason, *parts: str, timeout_s: float = IN_TIME_S) -> None:
        """Wait until the run says why it waits: in Ready's reason and message, and as one Warning."""
        seen: Object = {}

        async def look() -> bool:
            nonlocal seen
            status = await self.status()
            assert not is_true(status, "Failed"), status["failure"]
            seen = next((held for held in status.get("conditions", []) if held["type"] == "Ready"), {})
            return seen.get("reason") == reason and all(part in seen["message"] for part in parts)

        try:
            await until(f"{reason}: {parts}", look, timeout_s=timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; last seen: {seen}") from None
        kind = "Normal" if reason is Reason.QUEUED else "Warning"

        async def told() -> bool:
            events = [one async for one in self.kube.list(EVENTS, self.namespace)]
            mine = [one for one in events if one["regarding"]["kind"] == "LlavaFineTune" and one["reason"] == reason]
            assert len(mine) <= 1, mine
            return bool(mine) and mine[0]["type"] == kind

        await until(f"the Event {reason}", told)

    async def goes_on(self) -> None:
        """Let every pod succeed, and wait until the run does, without a restart."""
        self.behave = succeed

        async def done() -> Object | None:
            status = await self.status()
            assert not is_true(status, "Failed"), status["failure"]
            return status if is_true(status, "Complete") else None

        status = await until("the run's end", done, timeout_s=90)
        assert all(stage["restarts"] == 0 and len(stage["attempts"]) == 1 for stage in status["stages"])
        assert all("reason" not in stage or not stage["reason"] for stage in status["stages"])

    async def pods(self) -> list[Object]:
        return [pod async for pod in self.kube.list(PODS, self.namespace)]

    async def place_pod(self) -> Object:
        """Bind the run's first pod to the node, as the scheduler would if it found its claims."""

        async def first() -> Object | None:
            return next(iter(await self.pods()), None)

        pod = await until("the pod", first)
        name = pod["metadata"]["name"]
        target = {"apiVersion": "v1", "kind": "Node", "name": PlayedNode.name}
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
        await self.kube._request("POST", PODS.path(self.namespace, name, "binding"), body=binding)
        return pod

    async def put(self, kind: Kind, body: Object, *, everywhere: bool = False) -> None:
        await self.kube.create(kind, None if everywhere else self.namespace, body)
        if everywhere:
            self.everywhere.append((kind, body["metadata"]["name"]))

    async def delete(self, kind: Kind, name: str) -> None:
        await self.kube._request("DELETE", kind.path(self.namespace, name))

    async def clear(self) -> None:
        """Delete what it has put into the cluster."""
        while self.everywhere:
            kind, name = self.everywhere.pop()
            await self.kube._request("DELETE", kind.path(None, name))

    async def bind(self, claim: str, size: str = "1Gi", *, storage_class: str = "") -> None:
        """Make a volume for a claim; the volume controller binds them."""
        await self.put(
            VOLUMES,
            {
                "metadata": {"name": f"{self.namespace}-{claim}"},
                "spec": {
                    "capacity": {"storage": size}, "hostPath": {"path": "/nowhere"},
                    "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
                    "claimRef": {"namespace": self.namespace, "name": claim}, "storageClassName": storage_class,
                },
            },
            everywhere=True,
        )  # fmt: skip

    async def make_claim(self, name: str) -> None:
        """A claim of somebody's, bound."""
        spec = {
            "accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": "",
        }  # fmt: skip
        await self.put(VOLUME_CLAIMS, {"metadata": {"name": name}, "spec": spec})
        await self.bind(name)


@contextlib.asynccontextmanager
async def world_of(api_server: Kubectl, name: str) -> AsyncIterator[World]:
    assert api_server.kubeconfig is not None
    async with connect(api_server.kubeconfig) as api:
        kube = Kube(api, timeout_s=20)
        await kube.create(NAMESPACES, None, {"metadata": {"name": name, "labels": {"only": name}}})
        made = World(kube, name)
        kubelet = asyncio.create_task(FakeKubelet(kube, name, lambda pod: made.behave(pod)).run())
        try:
            yield made
        finally:
            kubelet.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await kubelet
            await made.clear()
            # Nobody else ends pods on a node without a kubelet.
            api_server.run("-n", name, "delete", "pods", "--all", "--force", "--grace-period=0", "--wait=false")
            api_server.run("delete", "namespace", name, "--wait=false")
