"""What the operator's cluster tests share: a client, manifests, and a namespace whose pods behave as told."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import load_kube_config

from llava_api.constants import API_VERSION, KIND
from llava_api.failures import Reason
from llava_operator.kube.client import Kube
from llava_operator.kube.kinds import (
    CONFIG_MAPS,
    EVENTS,
    JOBS,
    NETWORK_POLICIES,
    PODS,
    RUNS,
    SERVICES,
    VOLUME_CLAIMS,
    Kind,
)
from llava_operator.kube.objects import Object
from tests.cluster.kubelets import Behaviour, FakeKubelet, succeed
from tests.kubectl import Kubectl

T = TypeVar("T")
NAMESPACES = Kind("api/v1", "namespaces")
VOLUMES = Kind("api/v1", "persistentvolumes")
CHILDREN = (JOBS, PODS, CONFIG_MAPS, NETWORK_POLICIES, SERVICES, VOLUME_CLAIMS)
RUN = "run"
"""What the run of a test is called that has but one."""
IN_TIME_S = 120
"""Within which a reason has to be told; a volume that does not mount has 180 s."""


def make_run(name: str, namespace: str, **spec: Any) -> Object:
    """A small valid run on two CPU workers."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"source": "pvc://models/llava"},
            "dataset": {"source": "pvc://data/set", "format": "llava", "file": "train.json"},
            "training": {"batch": {"perDevice": 1, "global": 2}},
            "workers": {"replicas": 2, "gpus": 0, "gracePeriodSeconds": 15},
            "evaluation": {"workers": {"gpus": 0}},
            "storage": {"size": "1Gi"},
            **spec,
        },
    }


@contextlib.asynccontextmanager
async def connect(kubeconfig: Path) -> AsyncIterator[ApiClient]:
    """A client with an administrator's rights."""
    configuration = Configuration()
    await load_kube_config(str(kubeconfig), client_configuration=configuration, persist_config=False)
    async with ApiClient(configuration) as api:
        yield api


def is_true(status: Object, condition: str) -> bool:
    """Whether a condition of a status holds."""
    return any(c["type"] == condition and c["status"] == "True" for c in status.get("conditions", []))


async def until(what: str, condition: Callable[[], Awaitable[T | None]], *, timeout_s: float = 30) -> T:
    """The first truthy result of ``condition``.

    Raises:
        AssertionError: after ``timeout_s`` seconds; names ``what``.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not (found := await condition()):
        assert asyncio.get_running_loop().time() < deadline, f"waited {timeout_s:g} s in vain for {what}"
        await asyncio.sleep(0.1)
    return found


def condition_of(status: Object, kind: str) -> Object:
    """A condition of a status; empty if it has none of that type."""
    return next((one for one in status.get("conditions", []) if one["type"] == kind), {})


class World:
    """A namespace with runs, whose pods behave as told.

    Args:
        behave: what a kubelet says of a pod; may be changed at any time.
    """

    def __init__(self, kube: Kube, namespace: str, behave: Behaviour = succeed) -> None:
        self.kube = kube
        self.namespace = namespace
        self.behave = behave
        self._everywhere: list[tuple[Kind, str]] = []
        """What it has put into the cluster outside its namespace."""

    async def create_run(self, name: str = RUN, /, **spec: Any) -> None:
        await self.kube.create(RUNS, self.namespace, make_run(name, self.namespace, **spec))

    async def change_run(self, name: str = RUN, /, **spec: Any) -> None:
        await self.kube.patch(RUNS, self.namespace, name, {"spec": spec})

    async def run(self, name: str = RUN) -> Object:
        return await self.kube.get(RUNS, self.namespace, name)

    async def status(self, name: str = RUN) -> Object:
        found: Object = (await self.run(name)).get("status", {})
        return found

    async def status_when(
        self, what: str, holds: Callable[[Object], object], name: str = RUN, *, timeout_s: float = 30
    ) -> Object:
        """The status once it is as wanted."""

        async def look() -> Object | None:
            status = await self.status(name)
            return status if holds(status) else None

        return await until(f"{name}: {what}", look, timeout_s=timeout_s)

    async def ended(self, name: str = RUN, *, timeout_s: float = 30) -> Object:
        """The status once the run has ended, well or not."""
        return await self.status_when(
            "its end", lambda one: is_true(one, "Complete") or is_true(one, "Failed"), name, timeout_s=timeout_s
        )

    async def goes_on(self) -> None:
        """Let every pod succeed, and wait until the run does, without a restart."""
        self.behave = succeed
        status = await self.ended(timeout_s=90)
        assert not is_true(status, "Failed"), status["failure"]
        assert all(stage["restarts"] == 0 and len(stage["attempts"]) == 1 for stage in status["stages"])
        assert all("reason" not in stage or not stage["reason"] for stage in status["stages"])

    async def waits(self, reason: Reason, *parts: str, timeout_s: float = IN_TIME_S) -> None:
        """Wait until the run says why it waits: in Ready's reason and message, and as one Warning."""
        seen: Object = {}

        async def look() -> bool:
            nonlocal seen
            status = await self.status()
            assert not is_true(status, "Failed"), status["failure"]
            seen = condition_of(status, "Ready")
            return seen.get("reason") == reason and all(part in seen["message"] for part in parts)

        try:
            await until(f"{reason}: {parts}", look, timeout_s=timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; last seen: {seen}") from None
        kind = "Normal" if reason is Reason.QUEUED else "Warning"

        async def told() -> bool:
            types = [type_ for type_, said in await self.events() if said == reason]
            assert len(types) <= 1, types
            return types == [kind]

        await until(f"the Event {reason}", told)

    async def pods(self) -> list[Object]:
        return [pod async for pod in self.kube.list(PODS, self.namespace)]

    async def children(self, selector: str = "") -> list[str]:
        """Kinds and names of what was made for runs."""
        found = [(kind, one) for kind in CHILDREN async for one in self.kube.list(kind, self.namespace, selector)]
        names = [f"{kind.plural}/{one['metadata']['name']}" for kind, one in found]
        return sorted(name for name in names if name != "configmaps/kube-root-ca.crt")

    async def events(self) -> list[tuple[str, str]]:
        """Types and reasons of what was told of runs, the oldest first."""
        raw = [event async for event in self.kube.list(EVENTS, self.namespace)]
        mine = [event for event in raw if event["regarding"]["kind"] == KIND]
        return [(event["type"], event["reason"]) for event in sorted(mine, key=lambda e: e["eventTime"])]

    async def put(self, kind: Kind, body: Object, *, everywhere: bool = False) -> None:
        """Create an object; one outside the namespace goes with it."""
        await self.kube.create(kind, None if everywhere else self.namespace, body)
        if everywhere:
            self._everywhere.append((kind, body["metadata"]["name"]))

    async def delete(self, kind: Kind, name: str) -> None:
        await self.kube._request("DELETE", kind.path(self.namespace, name))

    async def clear(self) -> None:
        """Delete what it has put into the cluster outside its namespace."""
        while self._everywhere:
            kind, name = self._everywhere.pop()
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


def namespace_of(request: Any) -> str:
    """A namespace's name for the test that asks for it."""
    name: str = request.node.name
    return name.translate({ord("_"): "-", ord("["): "-", ord("]"): None})[:60].strip("-").lower()


@contextlib.asynccontextmanager
async def world_of(
    api_server: Kubectl, name: str, behave: Behaviour = succeed, *, kubelet: type[FakeKubelet] | None = FakeKubelet
) -> AsyncIterator[World]:
    """A namespace as long as the context, labelled ``only`` with its name, so that policies can be held to it.

    Its pods are looked after by a ``kubelet``, or by nobody.
    """
    assert api_server.kubeconfig is not None
    async with connect(api_server.kubeconfig) as api:
        kube = Kube(api, timeout_s=20)
        await kube.create(NAMESPACES, None, {"metadata": {"name": name, "labels": {"only": name}}})
        made = World(kube, name, behave)
        playing = kubelet and asyncio.create_task(kubelet(kube, name, lambda pod: made.behave(pod)).run())
        try:
            yield made
        finally:
            if playing:
                playing.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await playing
            await made.clear()
            # Nobody else ends pods on a node without a kubelet.
            api_server.run("-n", name, "delete", "pods", "--all", "--force", "--grace-period=0", "--wait=false")
            api_server.run("delete", "namespace", name, "--wait=false")
