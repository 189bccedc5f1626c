"""Every reason for which a run waits: that it is told in time, by the words of the real scheduler, Job controller and
volume controllers, that it costs no restart, and that it goes when its cause is gone.

What a kubelet does is played: the statuses and Events that one writes are written here.
"""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web

from llava_api.constants import LABEL_STAGE, STAGE_CONTAINER
from llava_api.failures import Reason
from llava_operator.kube.client import Kind, Kube
from llava_operator.kube.kinds import EVENTS, JOBS, PODS, RUNS, VOLUME_CLAIMS
from llava_operator.kube.objects import Object
from tests.cluster.operators import OperatorProcess, running
from tests.cluster.worlds import NAMESPACES, FakeKubelet, connect, is_true, make_run, succeed, until
from tests.kubectl import Kubectl

pytestmark = pytest.mark.cluster

IN_TIME_S = 120
"""Within which a reason has to be told; a volume that does not mount has 180 s."""
QUOTAS = Kind("api/v1", "resourcequotas")
VOLUMES = Kind("api/v1", "persistentvolumes")
CLASSES = Kind("apis/storage.k8s.io/v1", "storageclasses")
OLD_EVENTS = Kind("api/v1", "events")
POLICIES = Kind("apis/admissionregistration.k8s.io/v1", "validatingadmissionpolicies")
BINDINGS = Kind("apis/admissionregistration.k8s.io/v1", "validatingadmissionpolicybindings")


@pytest.fixture(scope="module")
def operator(installation: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    log = tmp_path_factory.mktemp("waiting") / "operator.log"
    process = OperatorProcess(pod_name="waiting", kubeconfig=installation, log=log)
    with running(process):
        process.wait_until_leader()
        yield process
    assert "Traceback" not in log.read_text(), log.read_text()


class World:
    """A namespace with one run, whose pods do as told."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self.kube = kube
        self.namespace = namespace
        self.behave: Callable[[Object], Object | None] = lambda pod: None
        """What a kubelet says of a pod; nothing at first."""

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

    async def delete(self, kind: Kind, name: str, *, everywhere: bool = False) -> None:
        await self.kube._request("DELETE", kind.path(None if everywhere else self.namespace, name))

    async def bind(self, claim: str, size: str = "1Gi", *, storage_class: str = "") -> None:
        """Make a volume for a claim; the volume controller binds them."""
        await self.put(
            VOLUMES,
            {
                "metadata": {"name": f"{self.namespace}-{claim}"},
                "spec": {
                    "capacity": {"storage": size}, "accessModes": ["ReadWriteMany"], "hostPath": {"path": "/nowhere"},
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
        yield made
        kubelet.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await kubelet
    api_server.run("delete", "namespace", name, "--wait=false")


@pytest.fixture
async def world(api_server: Kubectl, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    name = request.node.name.replace("_", "-").replace("[", "-").replace("]", "")[:60].strip("-").lower()
    async with world_of(api_server, name) as made:
        yield made


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


@pytest.fixture(scope="module")
def node(api_server: Kubectl) -> Iterator[PlayedNode]:
    played, stop = PlayedNode(api_server), threading.Event()
    api_server.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": played.name}})
    played.beat()
    beats = threading.Thread(target=played.stay_alive, args=(stop,))
    beats.start()
    yield played
    stop.set()
    beats.join()
    api_server.run("delete", "node", played.name)


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def waiting(reason: str, message: str = "") -> Object:
    """Status of a pod whose container cannot be started, as the kubelet writes it."""
    state = {"waiting": {"reason": reason, **({"message": message} if message else {})}}
    container = {
        "name": STAGE_CONTAINER, "state": state, "ready": False, "restartCount": 0, "image": "i", "imageID": "",
    }  # fmt: skip
    return {"phase": "Pending", "containerStatuses": [container]}


# --- what pods say


async def test_image_that_cannot_be_pulled(world: World, operator: OperatorProcess, node: PlayedNode) -> None:
    await world.create_run()
    await world.place_pod()
    world.behave = lambda _: waiting("ErrImagePull", "manifest for trainer:test not found")
    await world.waits(Reason.IMAGE_CANNOT_BE_PULLED, "manifest for trainer:test not found")
    # As the kubelet does, in turns: one reason, one Event.
    world.behave = lambda _: waiting("ImagePullBackOff", 'Back-off pulling image "trainer:test"')
    await world.waits(Reason.IMAGE_CANNOT_BE_PULLED, "Back-off pulling image")
    await world.goes_on()


async def test_container_that_cannot_be_started(world: World, operator: OperatorProcess, node: PlayedNode) -> None:
    await world.create_run()
    await world.place_pod()
    world.behave = lambda _: waiting("CreateContainerError", "context deadline exceeded")
    await world.waits(Reason.CONTAINER_NOT_STARTED, "context deadline exceeded")
    await world.goes_on()


async def test_claim_that_is_not_there_and_gpus_that_are_short(
    world: World, operator: OperatorProcess, node: PlayedNode
) -> None:
    """By the real scheduler: the claim is named by the field that asks for it, what is short by its name."""
    workers = {"replicas": 1, "gpus": 1, "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}
    await world.create_run(
        workers=workers, prepare={"resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}, storage={"size": "1Gi"}
    )
    await world.waits(Reason.MISSING_OBJECT, "PersistentVolumeClaim models", "spec.model.source asks for it")
    await asyncio.gather(world.make_claim("models"), world.make_claim("data"))
    # The run's own claim has no volume: nobody provisions one here.
    await world.waits(Reason.VOLUME_NOT_MOUNTED, "claim run-run", "no storage class is set")
    await world.bind("run-run")

    def placed(pod: Object) -> Object | None:
        return succeed(pod) if pod["spec"].get("nodeName") else None

    world.behave = placed
    await world.waits(Reason.UNSCHEDULABLE, "no node has enough nvidia.com/gpu free", "Insufficient nvidia.com/gpu")
    node.gpus = "1"
    await asyncio.to_thread(node.beat)
    await world.goes_on()


async def test_queue_that_holds_the_job_back(world: World, operator: OperatorProcess) -> None:
    await world.create_run(scheduling={"queueName": "team"})
    await world.waits(Reason.QUEUED, "waits in the queue team")
    admitted: set[str] = set()

    async def admit() -> None:
        while True:
            async for job in world.kube.list(JOBS, world.namespace):
                name = job["metadata"]["name"]
                if job["spec"].get("suspend") and name not in admitted:
                    admitted.add(name)
                    await world.kube.patch(JOBS, world.namespace, name, {"spec": {"suspend": False}})
            await asyncio.sleep(0.2)

    queue = asyncio.create_task(admit())
    await world.goes_on()
    queue.cancel()


# --- what only Events tell


async def test_what_only_events_tell(api_server: Kubectl, operator: OperatorProcess, node: PlayedNode) -> None:
    """Side by side, since each waits until Events are asked for."""
    async with contextlib.AsyncExitStack() as stack:
        worlds = {
            name: await stack.enter_async_context(world_of(api_server, name))
            for name in ("pods-over-quota", "pods-refused", "secret-missing", "not-mounted", "class-missing")
        }
        await asyncio.gather(
            quota_that_leaves_no_room_for_pods(worlds["pods-over-quota"]),
            policy_that_refuses_pods(worlds["pods-refused"]),
            secret_that_is_not_there(worlds["secret-missing"]),
            volume_that_is_not_mounted(worlds["not-mounted"]),
            storage_class_that_is_not_there(worlds["class-missing"]),
        )


async def quota_that_leaves_no_room_for_pods(world: World) -> None:
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    await world.put(QUOTAS, quota)

    async def in_force() -> bool:
        return bool((await world.kube.get(QUOTAS, world.namespace, "none")).get("status", {}).get("hard"))

    await until("the quota to be in force", in_force)
    await world.create_run()
    await world.waits(Reason.QUOTA_EXCEEDED, "cannot make its pods", "exceeded quota: none")
    await world.delete(QUOTAS, "none")
    await world.goes_on()


async def policy_that_refuses_pods(world: World) -> None:
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    spec = {
        "failurePolicy": "Fail", "matchConstraints": {"resourceRules": [rule]},
        "validations": [{"expression": "'cost-centre' in object.metadata.labels", "message": "no cost-centre"}],
    }  # fmt: skip
    chosen = {"namespaceSelector": {"matchLabels": {"only": world.namespace}}}
    binding = {"policyName": world.namespace, "validationActions": ["Deny"], "matchResources": chosen}
    await world.put(POLICIES, {"metadata": {"name": world.namespace}, "spec": spec}, everywhere=True)
    await world.put(BINDINGS, {"metadata": {"name": world.namespace}, "spec": binding}, everywhere=True)
    probe = {"metadata": {"name": "probe"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}

    async def refused() -> bool:
        try:
            await world.kube._request("POST", PODS.path(world.namespace), query={"dryRun": "All"}, body=probe)
        except Exception as error:
            return "no cost-centre" in str(error)
        return False

    await until("pods to be refused", refused)
    await world.create_run()
    await world.waits(Reason.REFUSED, "cannot make its pods", "ValidatingAdmissionPolicy", "no cost-centre")
    await world.delete(BINDINGS, world.namespace, everywhere=True)
    await world.delete(POLICIES, world.namespace, everywhere=True)
    await world.goes_on()


async def play_a_kubelet(world: World, reason: str, message: str) -> None:
    """Have the run's pod on a node that writes this Event about it, as a kubelet does."""
    pod = await world.place_pod()
    name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
    world.behave = lambda _: waiting("ContainerCreating")
    about = {"apiVersion": "v1", "kind": "Pod", "namespace": world.namespace, "name": name, "uid": uid}
    await world.put(
        OLD_EVENTS,
        {
            "metadata": {"name": f"{name}.1"}, "involvedObject": about, "reason": reason, "message": message,
            "type": "Warning", "source": {"component": "kubelet", "host": "somewhere"}, "count": 3,
            "firstTimestamp": now(), "lastTimestamp": now(),
        },
    )  # fmt: skip


async def secret_that_is_not_there(world: World) -> None:
    await world.create_run(model={"source": "hf://llava-hf/llava-1.5-7b-hf", "secretRef": {"name": "hub"}})
    message = 'MountVolume.SetUp failed for volume "secret-model" : secret "hub" not found'
    await play_a_kubelet(world, "FailedMount", message)
    await world.waits(Reason.MISSING_OBJECT, "Secret hub is not there, and spec.model.secretRef asks for it")
    await world.goes_on()


async def volume_that_is_not_mounted(world: World) -> None:
    await world.create_run()
    message = 'Multi-Attach error for volume "pvc-1" Volume is already exclusively attached to one node'
    await play_a_kubelet(world, "FailedAttachVolume", message)
    await world.waits(Reason.VOLUME_NOT_MOUNTED, "Multi-Attach error", timeout_s=180)
    await world.goes_on()


async def storage_class_that_is_not_there(world: World) -> None:
    """Said by the real volume controller of the claim; the scheduler says no more than that it waits for one."""
    for name in ("models", "data"):
        await world.make_claim(name)
    await world.create_run(storage={"size": "1Gi", "storageClassName": "fast"})
    await world.waits(
        Reason.MISSING_OBJECT, "claim run-run", "StorageClass fast is not there", "spec.storage.storageClassName"
    )
    await world.put(
        CLASSES, {"metadata": {"name": "fast"}, "provisioner": "kubernetes.io/no-provisioner"}, everywhere=True
    )
    await world.bind("run-run", storage_class="fast")
    await world.goes_on()
    await world.delete(CLASSES, "fast", everywhere=True)


# --- an API server that answers with errors


class Proxy:
    """Stands between an operator and the API server, and answers what it is told to with an error."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        self.config = config
        self.upstream: str = config["clusters"][0]["cluster"]["server"]
        self.refuse: Callable[[web.BaseRequest], int | None] = lambda _: None

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if code := self.refuse(request):
            body = {"kind": "Status", "status": "Failure", "message": "etcdserver: no space", "code": code}
            return web.json_response(body, status=code)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in ("host", "connection")}
        url = f"{self.upstream}{request.path_qs}"
        async with self.session.request(request.method, url, headers=headers, data=await request.read()) as answer:
            response = web.StreamResponse(status=answer.status)
            response.content_type = answer.content_type
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response

    @contextlib.asynccontextmanager
    async def serve(self, folder: Path) -> AsyncIterator[Path]:
        """A kubeconfig that leads through here."""
        timeout = aiohttp.ClientTimeout(total=None)
        connector = aiohttp.TCPConnector(ssl=False, limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector, auto_decompress=False) as self.session:
            runner = web.ServerRunner(web.Server(self.handle), shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            cluster = self.config["clusters"][0]["cluster"]
            cluster.pop("certificate-authority-data", None)
            cluster.pop("certificate-authority", None)
            cluster["server"] = f"http://127.0.0.1:{runner.addresses[0][1]}"
            path = folder / "proxied.kubeconfig"
            path.write_text(yaml.safe_dump(self.config))
            yield path
            await runner.cleanup()


@pytest.mark.parametrize("code", [429, 503])
async def test_errors_that_the_api_server_keeps_answering(
    world: World, installation: Path, tmp_path: Path, code: int
) -> None:
    """503 stands in the way of the Job; 429 ends every pass, and is told all the same."""
    proxy = Proxy(installation)
    path = JOBS.path(world.namespace)
    proxy.refuse = lambda request: code if (request.method, request.path) == ("POST", path) else None
    log = tmp_path / "operator.log"
    async with proxy.serve(tmp_path) as kubeconfig:
        operator = OperatorProcess(pod_name=f"proxied-{code}", kubeconfig=kubeconfig, log=log)
        await asyncio.to_thread(operator.start)
        try:
            await world.create_run()
            await world.waits(Reason.API_ERROR, "etcdserver: no space")
            proxy.refuse = lambda _: None
            await world.goes_on()
        finally:
            await asyncio.to_thread(operator.stop)


async def test_columns_of_kubectl_get(
    world: World, operator: OperatorProcess, api_server: Kubectl, node: PlayedNode
) -> None:
    await world.create_run()
    await world.place_pod()
    world.behave = lambda _: waiting("ErrImagePull", "no such image")
    await world.waits(Reason.IMAGE_CANNOT_BE_PULLED)
    narrow = api_server.run("-n", world.namespace, "get", "lft").splitlines()
    assert narrow[0].split() == ["NAME", "PHASE", "REASON", "STAGE", "STEP", "PERCENT", "ETA", "SCORE", "AGE"]
    assert narrow[1].split()[:4] == ["run", "Pending", "ImageCannotBePulled", "prepare"]
    wide = api_server.run("-n", world.namespace, "get", "lft", "-o", "wide").splitlines()
    assert wide[0].split()[-3:] == ["ATTEMPT", "RESTARTS", "MESSAGE"]
    (pod,) = await world.pods()
    name = pod["metadata"]["name"]
    assert wide[1].rstrip().endswith(f"prepare: pod {name} waits: ErrImagePull: no such image")
    assert wide[1].split()[5:7] == ["1", "0"]
    assert pod["metadata"]["labels"][LABEL_STAGE] == "prepare"
