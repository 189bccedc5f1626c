"""Every reason for which a run waits: that it is told in time, by the words of the real scheduler, Job controller and
volume controllers, that it costs no restart, and that it goes when its cause is gone.

What a kubelet does is played: the statuses and Events that one writes are written here.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from llava_api.constants import LABEL_STAGE
from llava_api.failures import Reason
from llava_operator.kube.kinds import JOBS, PODS, Kind
from llava_operator.kube.objects import Object
from tests.cluster.kubelets import do_nothing, now, succeed, waiting
from tests.cluster.nodes import PlayedNode, place_pod
from tests.cluster.operators import OperatorProcess, running
from tests.cluster.worlds import World, until, world_of
from tests.kubectl import Kubectl

pytestmark = pytest.mark.cluster

QUOTAS = Kind("api/v1", "resourcequotas")
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


@pytest.fixture
async def world(api_server: Kubectl, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    name = request.node.name.replace("_", "-").replace("[", "-").replace("]", "")[:60].strip("-").lower()
    async with world_of(api_server, name, do_nothing) as made:
        yield made


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


# --- what pods say


async def test_image_that_cannot_be_pulled(world: World, operator: OperatorProcess, node: PlayedNode) -> None:
    await world.create_run()
    await place_pod(world)
    world.behave = lambda _: waiting("ErrImagePull", "manifest for trainer:test not found")
    await world.waits(Reason.IMAGE_CANNOT_BE_PULLED, "manifest for trainer:test not found")
    # As the kubelet does, in turns: one reason, one Event.
    world.behave = lambda _: waiting("ImagePullBackOff", 'Back-off pulling image "trainer:test"')
    await world.waits(Reason.IMAGE_CANNOT_BE_PULLED, "Back-off pulling image")
    await world.goes_on()


async def test_container_that_cannot_be_started(world: World, operator: OperatorProcess, node: PlayedNode) -> None:
    await world.create_run()
    await place_pod(world)
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
            name: await stack.enter_async_context(world_of(api_server, name, do_nothing))
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
    labels = {"app": "probe"}
    probe = {"metadata": {"name": "probe", "labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}}

    async def refused() -> bool:
        try:
            await world.kube._request("POST", PODS.path(world.namespace), query={"dryRun": "All"}, body=probe)
        except Exception as error:
            return "no cost-centre" in str(error)
        return False

    await until("pods to be refused", refused)
    await world.create_run()
    await world.waits(Reason.REFUSED, "cannot make its pods", "ValidatingAdmissionPolicy", "no cost-centre")
    await world.clear()
    await world.goes_on()


async def play_a_kubelet(world: World, reason: str, message: str) -> None:
    """Have the run's pod on a node that writes this Event about it, as a kubelet does."""
    pod = await place_pod(world)
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


async def test_columns_of_kubectl_get(
    world: World, operator: OperatorProcess, api_server: Kubectl, node: PlayedNode
) -> None:
    await world.create_run()
    await place_pod(world)
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
