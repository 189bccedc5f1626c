"""The operator as a process against a real control plane: whole runs, every way to fail, two replicas."""

import asyncio
import base64
import json
import re
import ssl
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from llava_api.constants import LABEL_ATTEMPT, LABEL_COMPLETION_INDEX, LABEL_STAGE, TOKEN_AUDIENCE, StageName
from llava_api.failures import Reason
from llava_api.report import ProgressReport, StageFailure, StageResult
from llava_operator.build.network_policy import build_network_policy
from llava_operator.kube.errors import NotFoundError
from llava_operator.kube.kinds import (
    CONFIG_MAPS,
    JOBS,
    NETWORK_POLICIES,
    NODES,
    RUNS,
    SECRETS,
    Kind,
)
from llava_operator.kube.objects import Object
from llava_operator.run import parse_run
from tests.api.test_memory import make_7b
from tests.cluster.kubelets import RESULTS, ended, holds, succeed
from tests.cluster.kubelets import running as pod_runs
from tests.cluster.operators import NAME, OperatorProcess, running
from tests.cluster.worlds import World, is_true, make_run, until
from tests.controller.authorities import Foreign
from tests.kubectl import Kubectl, wait_for
from tests.rendering import NAMESPACE as SYSTEM_NAMESPACE

pytestmark = pytest.mark.cluster

QUOTAS = Kind("api/v1", "resourcequotas")
SERVICE_ACCOUNTS = Kind("api/v1", "serviceaccounts")


@pytest.fixture(scope="module")
def replicas(
    installation: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[OperatorProcess, OperatorProcess]]:
    """Two replicas of one operator that isolates training, with the rights that the chart gives them."""
    folder = tmp_path_factory.mktemp("operators")
    first, second = (
        OperatorProcess(
            pod_name=f"op-{n}", kubeconfig=installation, log=folder / f"op-{n}.log", extra={"ISOLATE_TRAINING": "true"}
        )
        for n in "01"
    )
    with running(first, second):
        yield first, second
    for replica in (first, second):
        log = replica.log.read_text()
        assert "Traceback" not in log, log
        assert not re.search(r"cannot \w+ resource", log), f"the chart's rights do not suffice: {log}"


@pytest.fixture
def operator(replicas: tuple[OperatorProcess, OperatorProcess]) -> OperatorProcess:
    """The replica that leads."""
    for replica in replicas:
        if replica.process is None:
            replica.start()
            replica.wait_until_ready()
    return wait_for("a leader", lambda: next(filter(lambda r: r.is_leader, replicas), None), timeout_s=30, poll_s=0.1)


async def stage_message(world: World, stage: str, part: str) -> str:
    """A stage's message once it contains ``part``."""

    def message_of(status: Object) -> str:
        return next((one["message"] for one in status.get("stages", []) if one["name"] == stage), "")

    return message_of(await world.status_when(f"{part!r} in {stage}", lambda status: part in message_of(status)))


async def first_pod(world: World, stage: str) -> Object:
    """The first pod of a stage, once it runs."""

    async def look() -> Object | None:
        for pod in await world.pods():
            labels = pod["metadata"]["labels"]
            is_first = labels.get(LABEL_COMPLETION_INDEX, "0") == "0"
            if labels[LABEL_STAGE] == stage and is_first and pod["status"]["phase"] == "Running":
                return pod
        return None

    return await until(f"the first pod of {stage} to run", look)


# --- a run from apply to the end


async def test_whole_run(world: World, operator: OperatorProcess, api_server: Kubectl) -> None:
    await world.create_run()
    status = await world.ended()
    assert status["phase"] == "Succeeded"
    assert [stage["state"] for stage in status["stages"]] == ["Succeeded"] * 4
    assert all(stage["attempts"][0]["jobUid"] and stage["completionTime"] for stage in status["stages"])
    assert status["summary"]["score"] == "0.00→0.90"
    assert status["artifacts"]["digests"] == {"adapter": "sha256:a", "merged": "sha256:b", "report": "sha256:c"}
    assert status["data"]["samplesTrain"] == 800
    api_server.run("-n", world.namespace, "wait", "--for=condition=Complete", "lft/run", "--timeout=5s")

    run = await world.run()
    assert "finalizers" not in run["metadata"]
    assert "annotations" not in run["metadata"], "kopf must not write to a run"
    writers = {entry["manager"] for entry in run["metadata"]["managedFields"] if entry.get("subresource") == "status"}
    assert writers == {"llava-finetune-operator"}
    for job in [job async for job in world.kube.list(JOBS, world.namespace)]:
        assert set(job["metadata"].get("annotations", {})) <= {"batch.kubernetes.io/job-tracking"}
    names = [name for name in await world.children() if not name.startswith("pods/")]
    assert names == [
        "configmaps/run-evaluate-1", "configmaps/run-merge-1", "configmaps/run-prepare-1", "configmaps/run-report-ca",
        "configmaps/run-train-1", "jobs/run-evaluate-1", "jobs/run-merge-1", "jobs/run-prepare-1", "jobs/run-train-1",
        "networkpolicies/run-train", "persistentvolumeclaims/run-run", "services/run-train",
    ]  # fmt: skip
    assert len(await world.pods()) == 5
    policy = await world.kube.get(NETWORK_POLICIES, world.namespace, "run-train")
    # The API server may write down more than it was given, and must not understand it otherwise.
    assert policy["spec"] == build_network_policy(parse_run(run), StageName.TRAIN)["spec"]

    async def all_events() -> bool:
        return len(await world.events()) >= 9

    await until("every Event", all_events)
    reasons = [
        "Preparing",
        "Prepared",
        "Training",
        "Trained",
        "Merging",
        "Merged",
        "Evaluating",
        "Evaluated",
        "Complete",
    ]
    assert sorted(await world.events()) == sorted(("Normal", reason) for reason in reasons)
    table = api_server.run("-n", world.namespace, "get", "lft", "run", "--no-headers").split()
    assert table[:6] == ["run", "Succeeded", "Succeeded", "evaluate", "100", "0.00→0.90"]
    metrics = operator.fetch("/metrics")[1]
    labels = f'name="run",namespace="{world.namespace}"'
    assert f'llava_run_phase{{{labels},phase="Succeeded"}} 1.0' in metrics
    assert f'llava_run_score{{metric="exact_match",model="tuned",{labels},split="validation"}} 0.9' in metrics
    assert operator.fetch("/healthz")[0] == 200


# --- ways to fail


async def test_a_plan_that_fits_no_gpu_ends_the_run_before_training(
    world: World, operator: OperatorProcess, api_server: Kubectl
) -> None:
    """What prepare has read of the model, against the labels of a Node, with the rights that the chart gives."""
    labels = {
        "pool": world.namespace, "nvidia.com/gpu.product": "Tiny", "nvidia.com/gpu.memory": "2048",
        "nvidia.com/gpu.compute.major": "9", "nvidia.com/gpu.compute.minor": "0",
    }  # fmt: skip
    await world.kube.create(NODES, None, {"metadata": {"name": world.namespace, "labels": labels}})
    numbers = RESULTS[StageName.PREPARE].prepare.model_copy(update={"model": make_7b()})
    result = RESULTS[StageName.PREPARE].model_copy(update={"prepare": numbers})
    world.behave = lambda pod: pod_runs() if pod["status"]["phase"] == "Pending" else ended(
        0, result.to_termination_message()
    )  # fmt: skip
    try:
        await world.create_run(
            workers={"gpus": 2}, scheduling={"nodeSelector": {"pool": world.namespace}},
            training={"batch": {"perDevice": 1, "global": 2}},
        )  # fmt: skip
        status = await world.ended()
    finally:
        api_server.run("delete", "node", world.namespace, "--wait=false")
    assert status["failure"]["reason"] == "PlanDoesNotFit"
    assert "a GPU has 2.0Gi (labels of a node with Tiny)" in status["failure"]["message"]
    assert status["plan"]["deviceMemoryAvailable"] == "2.0Gi"
    assert status["plan"]["totalSteps"] == 400
    assert [stage["state"] for stage in status["stages"]] == ["Succeeded", "Failed", "Pending", "Pending"]
    assert not any(name.startswith("jobs/run-train") for name in await world.children())


async def test_run_that_aligns_alone(world: World, operator: OperatorProcess, api_server: Kubectl) -> None:
    """Method none: phase 1 over two pods, which find each other by a Service of their own, and no phase 2."""
    captions = {"source": "pvc://data/captions", "format": "llava", "file": "captions.json"}
    alignment = {"dataset": captions, "freshProjector": True, "batch": {"perDevice": 1, "global": 2}}
    await world.create_run(training={"method": "none"}, alignment=alignment)
    status = await world.ended()
    assert status["phase"] == "Succeeded"
    assert [stage["name"] for stage in status["stages"]] == ["prepare", "align", "merge", "evaluate"]
    assert status["artifacts"]["projector"] == "projector"
    assert "adapter" not in status["artifacts"]
    api_server.run("-n", world.namespace, "wait", "--for=condition=Aligned", "lft/run", "--timeout=5s")
    assert not any(condition["type"] == "Trained" for condition in status["conditions"])
    services = [name for name in await world.children() if name.startswith("services/")]
    assert services == ["services/run-align"]
    pods = [pod for pod in await world.pods() if pod["metadata"]["labels"][LABEL_STAGE] == "align"]
    assert sorted(pod["spec"]["hostname"] for pod in pods) == ["run-align-1-0", "run-align-1-1"]
    assert {pod["spec"]["subdomain"] for pod in pods} == {"run-align"}


async def test_failed_training_pod_fails_the_run_and_leaves_nothing_running(
    world: World, operator: OperatorProcess, api_server: Kubectl
) -> None:
    said = StageFailure(reason=Reason.WORKER_KILLED, message="rank 1 was killed by signal 9", rank=1, log_tail="step 3")
    message = StageResult(stage=StageName.TRAIN, attempt=1, failure=said).to_termination_message()

    def behave(pod: Object) -> Object | None:
        labels = pod["metadata"]["labels"]
        if labels[LABEL_STAGE] != StageName.TRAIN:
            return succeed(pod)
        if pod["status"]["phase"] == "Pending":
            return pod_runs()
        return ended(71, message) if labels[LABEL_COMPLETION_INDEX] == "1" else None

    world.behave = behave
    await world.create_run(training={"batch": {"perDevice": 1, "global": 2}, "maxRestarts": 0})
    status = await world.ended()
    api_server.run("-n", world.namespace, "wait", "--for=condition=Failed", "lft/run", "--timeout=5s")
    failure = status["failure"]
    assert (failure["reason"], failure["stage"], failure["rank"], failure["exitCode"]) == (
        "WorkerKilled",
        "train",
        1,
        71,
    )
    assert failure["logTail"] == "step 3"
    assert failure["hint"]
    assert failure["pod"].startswith("run-train-1-1-")
    assert not [pod for pod in await world.pods() if pod["status"]["phase"] in ("Pending", "Running")]
    assert not [name for name in await world.children() if "merge" in name or "evaluate" in name]

    async def warned() -> bool:
        return ("Warning", "WorkerKilled") in await world.events()

    await until("the Event", warned)
    metrics = operator.fetch("/metrics")[1]
    assert f'namespace="{world.namespace}",reason="WorkerKilled",stage="train"' in metrics


async def test_deleted_job_is_made_up_for_by_another_attempt(
    world: World, operator: OperatorProcess, api_server: Kubectl
) -> None:
    world.behave = holds(StageName.PREPARE)
    await world.create_run()
    await first_pod(world, "prepare")
    await stage_message(world, "prepare", "its pod runs")
    api_server.run("-n", world.namespace, "delete", "job", "run-prepare-1", "--wait=false")
    world.behave = succeed
    status = await world.ended()
    prepare = status["stages"][0]
    assert is_true(status, "Complete")
    assert [(one["because"], one["counts"]) for one in prepare["attempts"]] == [
        ("JobDeleted", False), ("Succeeded", False),
    ]  # fmt: skip
    assert ("Warning", "JobDeleted") in await world.events()


async def test_a_gang_restarts_as_one_from_what_a_worker_has_reported(world: World, operator: OperatorProcess) -> None:
    """The second worker is killed in the first attempt, and the first worker stopped with it."""

    def behave(pod: Object) -> Object | None:
        labels = pod["metadata"]["labels"]
        is_first = (labels[LABEL_STAGE], labels[LABEL_ATTEMPT]) == (StageName.TRAIN, "1")
        if not is_first:
            return succeed(pod)
        if pod["status"]["phase"] == "Pending":
            return pod_runs()
        return ended(137, "", reason="OOMKilled") if labels[LABEL_COMPLETION_INDEX] == "1" else None

    world.behave = behave
    await world.create_run()
    status = await world.ended()
    assert is_true(status, "Complete")
    train = next(stage for stage in status["stages"] if stage["name"] == "train")
    assert [one["because"] for one in train["attempts"]] == ["OutOfMemory", "Succeeded"]
    assert train["restarts"] == 1
    assert train["attempts"][0]["completionTime"] <= train["attempts"][1]["startTime"]
    assert "failure" not in status


async def test_suspend_frees_everything_and_goes_on_at_another_size(
    world: World, operator: OperatorProcess, api_server: Kubectl
) -> None:
    world.behave = holds(StageName.TRAIN)
    await world.create_run()
    await stage_message(world, "train", "2 pods run")
    await world.change_run(suspend=True)

    async def is_free() -> bool:
        return not [pod for pod in await world.pods() if pod["status"]["phase"] in ("Pending", "Running")]

    await until("free workers", is_free)
    api_server.run("-n", world.namespace, "wait", "--for=condition=Suspended", "lft/run", "--timeout=10s")
    world.behave = succeed
    await world.change_run(suspend=False, workers={"replicas": 1})
    status = await world.ended()
    assert is_true(status, "Complete")
    train = next(stage for stage in status["stages"] if stage["name"] == "train")
    assert [(one["because"], one["settings"]["replicas"]) for one in train["attempts"]] == [
        ("Suspended", 2), ("Succeeded", 1),
    ]  # fmt: skip
    assert train["restarts"] == 0


async def test_foreign_object_of_a_childs_name_fails_the_run(world: World, operator: OperatorProcess) -> None:
    await world.kube.create(CONFIG_MAPS, world.namespace, {"metadata": {"name": "run-prepare-1"}})
    await world.create_run()
    status = await world.ended()
    assert status["failure"]["reason"] == "NameConflict"
    assert "configmaps run-prepare-1" in status["failure"]["message"]
    foreign = await world.kube.get(CONFIG_MAPS, world.namespace, "run-prepare-1")
    assert "ownerReferences" not in foreign["metadata"]
    assert "data" not in foreign


async def test_child_that_the_api_server_refuses_fails_the_run(world: World, operator: OperatorProcess) -> None:
    resources = {"requests": {"memory": "2Gi"}, "limits": {"memory": "1Gi"}}
    await world.create_run(prepare={"resources": resources})
    status = await world.ended()
    assert status["failure"]["reason"] == "Rejected"
    assert "must be less than or equal to memory limit" in status["failure"]["message"]


async def test_quota_is_waited_for(world: World, operator: OperatorProcess) -> None:
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"count/jobs.batch": "0"}}}
    await world.kube.create(QUOTAS, world.namespace, quota)

    async def is_counted() -> bool:
        return "hard" in (await world.kube.get(QUOTAS, world.namespace, "none")).get("status", {})

    await until("the quota to be counted", is_counted)
    await world.create_run()
    await stage_message(world, "prepare", "exceeded quota")
    assert not is_true(await world.status(), "Failed")
    await world.kube.patch(QUOTAS, world.namespace, "none", {"spec": {"hard": {"count/jobs.batch": "9"}}})
    assert (await world.ended())["phase"] == "Succeeded"


async def test_waiting_pods_reason_is_in_the_status(world: World, operator: OperatorProcess) -> None:
    world.behave = lambda _: None
    await world.create_run()
    message = await stage_message(world, "prepare", "Unschedulable")
    assert "no nodes available" in message
    assert (await world.status())["phase"] == "Pending"


async def test_run_of_another_version_is_reported_and_left_alone(
    world: World, operator: OperatorProcess, api_server: Kubectl
) -> None:
    # The schema lets nothing of the kind through; another version's schema would.
    crd = api_server.get("crd", "llavafinetunes.finetune.llava.dev")
    patch = '[{"op":"add","path":"/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/novelty",' \
            '"value":{"type":"string"}}]'  # fmt: skip
    api_server.run("patch", "crd", crd["metadata"]["name"], "--type=json", "-p", patch)
    try:

        async def is_served() -> bool:
            body = make_run("run", world.namespace, novelty="yes")
            tried = await world.kube._request("POST", RUNS.path(world.namespace), query={"dryRun": "All"}, body=body)
            return "novelty" in tried["spec"]

        await until("the other version's schema", is_served)
        await world.create_run(novelty="yes")

        async def reported() -> bool:
            ready: Object = next((c for c in (await world.status()).get("conditions", []) if c["type"] == "Ready"), {})
            return ready.get("reason") == "Unreadable" and "spec.novelty" in ready["message"]

        await until("the condition", reported)
        assert await world.events() == [("Warning", "Unreadable")]
        assert await world.children() == []
    finally:
        await world.kube.patch(RUNS, world.namespace, "run", {"spec": {"novelty": None}})
        remove = patch.replace('"add"', '"remove"')
        api_server.run("patch", "crd", crd["metadata"]["name"], "--type=json", "-p", remove)


# --- deletion


@pytest.mark.parametrize("is_up", [True, False], ids=["up", "down"])
async def test_deleted_run_takes_its_children_along(
    world: World, replicas: tuple[OperatorProcess, OperatorProcess], operator: OperatorProcess, is_up: bool
) -> None:
    world.behave = holds(StageName.TRAIN)
    await world.create_run()
    await first_pod(world, "train")
    if not is_up:
        for replica in replicas:
            replica.kill()
    await world.kube._request("DELETE", RUNS.path(world.namespace, "run"))
    with pytest.raises(NotFoundError):
        await world.run()

    async def is_empty() -> bool:
        # Claims wait for their protection controller, which needs no more than the pods to be gone.
        return await world.children() == []

    await until("every child to be gone", is_empty)


# --- progress


async def ask_token(world: World, pod: Object, audience: str = TOKEN_AUDIENCE) -> str:
    bound = {"apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
    body = {"spec": {"audiences": [audience], "expirationSeconds": 3600, "boundObjectRef": bound}}
    path = f"{SERVICE_ACCOUNTS.path(world.namespace, 'default')}/token"
    answer = await world.kube._request("POST", path, body=body)
    token: str = answer["status"]["token"]
    return token


class Reporter:
    """Pushes reports as a pod does, over TLS that trusts only the run's ConfigMap."""

    def __init__(self, world: World, operator: OperatorProcess, ca: str) -> None:
        self._world = world
        self._operator = operator
        self._context = ssl.create_default_context(cadata=ca)

    async def push(self, token: str, body: bytes) -> tuple[int, str]:
        """Push over a connection of its own; more of these in a second than one address may open are turned away."""
        for _ in range(20):
            try:
                return await self._push(token, body)
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.5)
        return await self._push(token, body)

    async def _push(self, token: str, body: bytes) -> tuple[int, str]:
        url = f"https://127.0.0.1:{self._operator.report_port}/v1/progress"
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"} if token else {}) as session,
            session.post(
                url, data=body, ssl=self._context, server_hostname=f"{NAME}-report.{SYSTEM_NAMESPACE}.svc"
            ) as answer,
        ):
            text = await answer.text()
            return answer.status, json.loads(text).get("error", "")


async def test_progress_reaches_the_status_and_only_from_the_first_pod_of_the_current_stage(
    world: World, operator: OperatorProcess
) -> None:
    world.behave = holds(StageName.TRAIN)
    await world.create_run()
    pod = await first_pod(world, "train")
    await stage_message(world, "train", "2 pods run")
    uid = (await world.run())["metadata"]["uid"]
    ca = (await world.kube.get(CONFIG_MAPS, world.namespace, "run-report-ca"))["data"]["ca.crt"]
    reporter = Reporter(world, operator, ca)
    token = await ask_token(world, pod)
    report = ProgressReport(
        run_uid=uid, stage=StageName.TRAIN, attempt=1, step=3, total_steps=12, eta_seconds=90.4, loss=1.5,
        tokens_per_second=100.0, losses=(2.0, 1.5),
    )  # fmt: skip
    good = report.model_dump_json().encode()

    assert await reporter.push(token, good) == (200, "")

    async def written() -> Object | None:
        return (await world.status()).get("progress")

    progress = await until("progress in the status", written)
    assert (progress["step"], progress["totalSteps"], progress["etaSeconds"], progress["loss"]) == (3, 12, 90, 1.5)
    assert progress["podUid"] == pod["metadata"]["uid"]
    assert (await world.status())["summary"]["percent"] == "25"
    labels = f'name="run",namespace="{world.namespace}"'

    async def measured() -> bool:
        return f"llava_run_loss{{{labels}}} 1.5" in operator.fetch("/metrics")[1]

    await until("the loss in the metrics", measured)

    assert (await reporter.push("", good))[0] == 401
    assert (await reporter.push("nonsense", good))[0] == 401
    assert (await reporter.push(await ask_token(world, pod, "somebody-else"), good))[0] == 401
    second = next(p for p in await world.pods() if p["metadata"]["labels"].get(LABEL_COMPLETION_INDEX) == "1")
    assert (await reporter.push(await ask_token(world, second), good))[0] == 403
    # The pod's own token of the stage before: the pod has ended, its token lives on.
    prepare = next(p for p in await world.pods() if p["metadata"]["labels"][LABEL_STAGE] == "prepare")
    assert (await reporter.push(await ask_token(world, prepare), good))[0] == 403
    assert (await reporter.push(token, b"{}"))[0] == 400
    assert (await reporter.push(token, b"x" * 70_000))[0] == 413
    stale = report.model_copy(update={"attempt": 7}).model_dump_json().encode()
    assert (await reporter.push(token, stale))[0] == 409

    async def too_hasty() -> bool:
        status = (await reporter.push(token, good))[0]
        assert status in (200, 429)
        return status == 429

    await until("a report too many", too_hasty)


async def test_an_authority_of_somebody_else_is_served_and_a_damaged_one_ends_nothing(
    world: World, operator: OperatorProcess
) -> None:
    """cert-manager's: an RSA key, an intermediate, its root beside. It once ended the process, again and again."""
    root = Foreign(key=rsa.generate_private_key(65537, 2048))
    foreign = Foreign(name="issuing authority", key=rsa.generate_private_key(65537, 2048), parent=root)
    secret = f"{NAME}-report-ca"

    async def fill(data: dict[str, str | None]) -> None:
        await world.kube.patch(SECRETS, SYSTEM_NAMESPACE, secret, {"data": data})

    world.behave = holds(StageName.TRAIN)
    await world.create_run()
    pod = await first_pod(world, "train")
    await stage_message(world, "train", "2 pods run")
    uid = (await world.run())["metadata"]["uid"]
    good = (
        ProgressReport(run_uid=uid, stage=StageName.TRAIN, attempt=1, step=3, total_steps=12).model_dump_json().encode()
    )
    token = await ask_token(world, pod)
    try:
        await fill({**foreign.data(roots=root.pem)})

        async def is_handed_out() -> bool:
            return (await world.kube.get(CONFIG_MAPS, world.namespace, "run-report-ca"))["data"][
                "ca.crt"
            ] == root.pem.decode()

        await until("the run's ConfigMap to have the new root", is_handed_out)
        reporter = Reporter(world, operator, root.pem.decode())
        assert await reporter.push(token, good) == (200, "")
        await fill({"tls.key": base64.b64encode(b"damaged").decode()})
        await until("the operator to tell it", lambda: tells(operator, "tls.key holds no private key"))
        assert (await reporter.push(token, good))[0] in (200, 429)
        assert (await world.kube.get(SECRETS, SYSTEM_NAMESPACE, secret))["data"]["tls.key"] == "ZGFtYWdlZA=="
    finally:
        await fill({"tls.crt": None, "tls.key": None, "ca.crt": None})
    await until("another authority of its own", lambda: tells(operator, "progress can be reported again"))
    assert operator.fetch("/healthz")[0] == 200


async def tells(operator: OperatorProcess, text: str) -> bool:
    """Whether it stands in its log."""
    return text in operator.log.read_text()


# --- two replicas


def series_of_runs(replica: OperatorProcess) -> list[str]:
    """What a replica tells of runs."""
    status, text = replica.fetch("/metrics")
    assert status == 200
    assert "# TYPE llava_run_phase gauge" in text
    return [line for line in text.splitlines() if line.startswith("llava_run_")]


async def test_killed_leader_is_replaced_and_the_run_goes_on_untouched(
    world: World, replicas: tuple[OperatorProcess, OperatorProcess], operator: OperatorProcess
) -> None:
    world.behave = holds(StageName.TRAIN)
    await world.create_run()
    pod = await first_pod(world, "train")
    standby = next(replica for replica in replicas if replica is not operator)
    assert standby.fetch("/readyz")[0] == 200
    assert not standby.is_leader
    # Two that tell of the same run would count it twice.
    assert series_of_runs(operator)
    assert not series_of_runs(standby)
    operator.kill()
    standby.wait_until_leader()
    assert (await first_pod(world, "train"))["metadata"]["uid"] == pod["metadata"]["uid"]
    world.behave = succeed
    status = await world.ended()
    assert status["phase"] == "Succeeded"
    assert series_of_runs(standby)
    assert len(await world.pods()) == 5
    jobs = [job["metadata"]["uid"] async for job in world.kube.list(JOBS, world.namespace)]
    assert sorted(jobs) == sorted(stage["attempts"][0]["jobUid"] for stage in status["stages"])


def test_leader_ends_when_its_lease_is_taken(
    replicas: tuple[OperatorProcess, OperatorProcess], operator: OperatorProcess, api_server: Kubectl
) -> None:
    patch = '{"spec": {"holderIdentity": "someone-else", "leaseDurationSeconds": 3}}'
    api_server.run("-n", SYSTEM_NAMESPACE, "patch", "lease", NAME, "--type=merge", "-p", patch)
    assert operator.process is not None
    assert operator.process.wait(timeout=20) == 1
    operator.process = None
    assert "held by someone-else" in operator.log.read_text()


def test_stopped_leader_hands_over_at_once_and_ends_well(
    replicas: tuple[OperatorProcess, OperatorProcess], operator: OperatorProcess, api_server: Kubectl
) -> None:
    assert operator.stop() == 0
    holder = api_server.get("-n", SYSTEM_NAMESPACE, "lease", NAME)["spec"].get("holderIdentity", "")
    assert holder != operator.pod_name


def test_process_says_what_is_wrong_with_its_environment(tmp_path: Path) -> None:
    wrong = OperatorProcess(
        pod_name="op-x", kubeconfig=tmp_path / "none", log=tmp_path / "log", extra={"PASSES": "0", "TYPO": "1"}
    )
    wrong.start()
    assert wrong.process is not None
    assert wrong.process.wait(timeout=20) != 0
    text = wrong.log.read_text()
    assert "LLAVA_OPERATOR_PASSES: Input should be greater than or equal to 1" in text
    assert "LLAVA_OPERATOR_TYPO: Extra inputs are not permitted" in text
