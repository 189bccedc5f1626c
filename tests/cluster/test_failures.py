"""Each row of the table of failures that Kubernetes or the operator causes, caused by them.

API server, scheduler, taint manager and Job controller are real; nodes are objects, and their kubelets are played.
"""

import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from llava_api.constants import LABEL_ATTEMPT, LABEL_COMPLETION_INDEX, LABEL_RUN, LABEL_STAGE, StageName
from llava_api.failures import BY_REASON, DISRUPTIONS, Reason
from llava_api.report import StageFailure, StageResult
from llava_api.status import Progress
from llava_operator.clock import now, to_time
from llava_operator.kube.errors import ForbiddenError
from llava_operator.kube.kinds import CHILD_SELECTOR, JOBS, PODS, RUNS, Kind
from llava_operator.kube.objects import Key, Object
from tests.cluster.kubelets import ended, succeed
from tests.cluster.kubelets import running as pod_runs
from tests.cluster.nodes import GPU, NODES, Nodes, playing, provide
from tests.cluster.operators import OperatorProcess, running
from tests.cluster.test_operator_crashes import Process
from tests.cluster.worlds import World, is_true, namespace_of, until, world_of
from tests.kubectl import Kubectl

pytestmark = pytest.mark.cluster

PRIORITIES = Kind("apis/scheduling.k8s.io/v1", "priorityclasses")
DISTURBED = {
    Reason.PREEMPTED: "preempted",
    Reason.NODE_LOST: "lost",
    Reason.DRAINED: "drained",
    Reason.POD_DISRUPTED: "shut-down",
    Reason.EVICTED: "overdrawn",
    Reason.POD_FAILED: "silent",
    Reason.POD_DELETED: "deleted",
    Reason.RESULT_LOST: "forgotten",
}
"""Runs whose first attempt of training ends by each, and which then go on to their end."""
OTHERS = {Reason.NO_PROGRESS: "stuck", Reason.DEADLINE_EXCEEDED: "late"}


@pytest.fixture(scope="module")
def operator(installation: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    log = tmp_path_factory.mktemp("failures") / "operator.log"
    process = OperatorProcess(pod_name="failures", kubeconfig=installation, log=log)
    with running(process):
        process.wait_until_leader()
        yield process
    assert "Traceback" not in log.read_text(), log.read_text()


@pytest.fixture
async def world(api_server: Kubectl, crd: None, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """One whose pods are bound by the real scheduler, to nodes that are played."""
    async with world_of(api_server, namespace_of(request), kubelet=None) as made:
        yield made


def behave(pod: Object, _: list[Object]) -> Object | None:
    """Training's first attempt runs until something happens to it, but for those that fail by themselves."""
    labels = pod["metadata"]["labels"]
    run, attempt = labels[LABEL_RUN], labels[LABEL_ATTEMPT]
    if run == "none":
        return pod_runs() if pod["status"]["phase"] == "Pending" else None
    if labels[LABEL_STAGE] != StageName.TRAIN or (attempt != "1" and run != "stuck"):
        return succeed(pod)
    if pod["status"]["phase"] == "Pending":
        return pod_runs()
    if labels[LABEL_COMPLETION_INDEX] != "1":
        return None
    if run == "stuck":
        said = StageFailure(reason=Reason.WORKER_KILLED, message="killed", step=0, attempt_steps=0)
        return ended(
            71, StageResult(stage=StageName.TRAIN, attempt=int(attempt), failure=said).to_termination_message()
        )
    if run == "silent":
        return ended(137, "")
    if run == "overdrawn":
        # As the kubelet writes it for an emptyDir that is too large: no condition DisruptionTarget.
        return {
            **ended(137, ""),
            "reason": "Evicted",
            "message": "Usage of EmptyDir volume tmp exceeds the limit 10Gi.",
        }
    if run == "shut-down":
        disrupted = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "TerminationByKubelet",
            "message": "shutdown",
        }
        return {**ended(143, ""), "conditions": [disrupted]}
    return None


async def training_pod(world: World, run: str) -> Object:
    """The first pod of a run's training, once it runs and the operator knows."""

    async def look() -> Object | None:
        selector = f"{LABEL_RUN}={run},{LABEL_STAGE}=train,{LABEL_COMPLETION_INDEX}=0"
        pods = [pod async for pod in world.kube.list(PODS, world.namespace, selector)]
        attempts = (await stage_of(world, run)).get("attempts", [])
        is_known = bool(attempts) and attempts[-1]["state"] == "Running"
        return pods[0] if pods and is_known and pods[0]["status"]["phase"] == "Running" else None

    return await until(f"the training of {run}", look, timeout_s=90)


async def stage_of(world: World, run: str) -> Object:
    status = (await world.kube.get(RUNS, world.namespace, run)).get("status", {})
    return next((stage for stage in status.get("stages", []) if stage["name"] == "train"), {})


async def create_runs(world: World, nodes: Nodes) -> None:
    small = {"limits": {"cpu": "1", "memory": "1Gi"}}
    for name in (*DISTURBED.values(), *OTHERS.values()):
        # A place for each of its pods, and none to spare.
        for number in range(2):
            await nodes.add(f"{name}-{number}", 1, pool=name)
        workers = {"replicas": 2, "gpus": 1, "gracePeriodSeconds": 15, "resources": small, "shmSize": "1Gi"}
        spec = {"workers": workers, "scheduling": {"nodeSelector": {"pool": name}}}
        if name == "late":
            spec["activeDeadlineSeconds"] = 25
        await world.create_run(name, **spec)


async def disturb(world: World, operator: OperatorProcess, api_server: Kubectl) -> None:
    """Do to each run what it is named for."""
    pod = await training_pod(world, "deleted")
    api_server.run("-n", world.namespace, "delete", "pod", pod["metadata"]["name"], "--wait=false")
    pod = await training_pod(world, "drained")
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod["metadata"]["name"]}}
    await world.kube._request("POST", f"{PODS.path(world.namespace, pod['metadata']['name'])}/eviction", body=eviction)
    pod = await training_pod(world, "lost")
    taint = {"key": "gone", "effect": "NoExecute"}
    await world.kube.patch(NODES, None, pod["spec"]["nodeName"], {"spec": {"taints": [taint]}})
    pod = await training_pod(world, "preempted")
    await world.put(PRIORITIES, {"metadata": {"name": "important"}, "value": 1000}, everywhere=True)
    limits = {"limits": {GPU: "1"}}
    rival = {
        "metadata": {"name": "rival", "labels": {LABEL_STAGE: "none", LABEL_RUN: "none", LABEL_ATTEMPT: "1"}},
        "spec": {
            "priorityClassName": "important", "nodeSelector": {"pool": "preempted"},
            "containers": [{"name": "stage", "image": "i", "resources": limits}],
        },
    }  # fmt: skip

    async def is_admitted() -> bool:
        # The API server's own cache may not have the priority class yet.
        with contextlib.suppress(ForbiddenError):
            await world.kube.create(PODS, world.namespace, rival)
            return True
        return False

    await until("the rival to be admitted", is_admitted)
    await training_pod(world, "forgotten")


async def lose_result(world: World, operator: OperatorProcess, api_server: Kubectl) -> None:
    """Training ends well while no operator looks, and its pods are collected before one does."""
    operator.kill()
    selector = f"{LABEL_RUN}=forgotten,{LABEL_STAGE}=train"
    pods = [pod["metadata"]["name"] async for pod in world.kube.list(PODS, world.namespace, selector)]
    for name in pods:
        await world.kube.patch(PODS, world.namespace, name, {"status": ended(0, "")}, subresource="status")

    async def is_complete() -> bool:
        job = await world.kube.get(JOBS, world.namespace, "forgotten-train-1")
        return is_true(job["status"], "Complete")

    await until("the Job to be complete", is_complete)
    api_server.run("-n", world.namespace, "delete", "pod", *pods, "--grace-period=0", "--force")
    operator.start()
    operator.wait_until_leader()


async def test_what_happens_to_a_run_has_its_reason_and_its_price(
    world: World, operator: OperatorProcess, api_server: Kubectl
) -> None:
    async with playing(world.kube, world.namespace, behave) as nodes:
        names = [*DISTURBED.values(), *OTHERS.values()]
        await provide(world, "models", "data", *(f"{name}-run" for name in names))
        await create_runs(world, nodes)
        await disturb(world, operator, api_server)
        await lose_result(world, operator, api_server)
        # What is in their way goes, and they find a place again.
        api_server.run("-n", world.namespace, "delete", "pod", "rival", "--grace-period=0", "--force")
        for number in range(2):
            await world.kube.patch(NODES, None, f"lost-{number}", {"spec": {"taints": []}})
        for reason, name in DISTURBED.items():
            status = await over(world, name)
            assert is_true(status, "Complete"), (name, status["failure"])
            await check_first(world, name, reason)
        for reason, name in OTHERS.items():
            status = await over(world, name)
            assert status["failure"]["reason"] == reason, name
            assert status["failure"]["hint"] == BY_REASON[reason].hint


async def check_first(world: World, run: str, reason: Reason) -> None:
    """The first attempt ended by ``reason``, at the price that the table names, and the second went on."""
    stage = await stage_of(world, run)
    row = BY_REASON[reason]
    first = stage["attempts"][0]
    # A played kubelet lets go of a pod within a moment, at times before anybody has seen what was done to it; the Job
    # knows of what kind it was.
    told = (reason, Reason.POD_DISRUPTED) if reason in DISRUPTIONS.values() else (reason,)
    assert first["because"] in told, json.dumps(first)
    assert first["counts"] == (row.counts and not row.first_is_free), json.dumps(first)
    assert stage["restarts"] == int(first["counts"]), run
    assert stage["attempts"][-1]["because"] == "Succeeded"


async def over(world: World, run: str) -> Object:
    async def look() -> Object | None:
        status = (await world.kube.get(RUNS, world.namespace, run)).get("status", {})
        return status if is_true(status, "Complete") or is_true(status, "Failed") else None

    return await until(f"the end of {run}", look, timeout_s=120)


async def test_the_same_step_for_longer_than_can_be(world: World) -> None:
    """With a clock that makes an hour of every second once it trains, and reports as the endpoint takes them."""
    trains_since: datetime | None = None

    def hurried() -> datetime:
        return now() + (now() - trains_since) * 3600 if trains_since else now()

    await provide(world, "models", "data")
    process = Process(world.kube)
    process.reconciler.now = hurried
    await world.create_run("still", workers={"replicas": 1, "gpus": 0})
    async with playing(world.kube, world.namespace, behave) as nodes:
        await nodes.add("still-0", 0)
        await provide(world, "still-run")

        async def look() -> Object | None:
            nonlocal trains_since
            run = await world.kube.get(RUNS, world.namespace, "still")
            process.runs.note(run)
            async for job in world.kube.list(JOBS, world.namespace, CHILD_SELECTOR):
                process.children.note_job(job)
            async for pod in world.kube.list(PODS, world.namespace, CHILD_SELECTOR):
                process.children.note_pod(pod)
            attempts = (await stage_of(world, "still")).get("attempts", [])
            if attempts and attempts[0]["state"] == "Running":
                trains_since = trains_since or now()
                progress = Progress(stage=StageName.TRAIN, attempt=1, pod_uid="u", step=3, total_steps=9,
                                    last_update_time=to_time(hurried()))  # fmt: skip
                process.reconciler.progress.put(run["metadata"]["uid"], progress, hurried() - timedelta(minutes=1))
            await process.reconciler.reconcile(Key(world.namespace, "still"))
            attempts = (await stage_of(world, "still")).get("attempts", [])
            return attempts[0] if attempts and attempts[0].get("because") else None

        first = await until("the end of the attempt", look, timeout_s=180)
    assert first["because"] == Reason.REPORTS_STAND_STILL, json.dumps(first)
