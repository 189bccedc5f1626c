"""What the API server, its policies and its webhooks refuse: who waits, who fails, and what is said meanwhile."""

import base64
import contextlib
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import web

from llava_operator.kube.errors import KubeError
from llava_operator.kube.kinds import CONFIG_MAPS, EVENTS, JOBS, RUNS, Kind
from llava_operator.kube.objects import Object
from llava_operator.tls.authority_secret import ServerCertificate
from llava_operator.tls.certificates import make_authority, read_issuer
from tests.cluster.operators import OperatorProcess, free_port, running
from tests.cluster.worlds import World, condition_of, is_true, until
from tests.kubectl import Kubectl

pytestmark = pytest.mark.cluster

POLICIES = Kind("apis/admissionregistration.k8s.io/v1", "validatingadmissionpolicies")
BINDINGS = Kind("apis/admissionregistration.k8s.io/v1", "validatingadmissionpolicybindings")
WEBHOOKS = Kind("apis/admissionregistration.k8s.io/v1", "validatingwebhookconfigurations")
RULE = {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}


@pytest.fixture(scope="module")
def operator(installation: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    log = tmp_path_factory.mktemp("refusals") / "operator.log"
    process = OperatorProcess(pod_name="refused", kubeconfig=installation, log=log)
    with running(process):
        process.wait_until_leader()
        yield process


async def waits_for(world: World, *parts: str) -> Object:
    """The status once the first stage's message contains ``parts``; the run has not failed."""

    def holds(status: Object) -> bool:
        assert not is_true(status, "Failed"), status["failure"]
        stages = status.get("stages", [])
        return bool(stages) and all(part in stages[0]["message"] for part in parts)

    return await world.status_when(f"{parts} in the message", holds)


async def until_refused(world: World) -> None:
    """Wait until Jobs are refused in the namespace."""
    job = {"metadata": {"generateName": "try-"}, "spec": {"template": {"spec": {
        "restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}}  # fmt: skip

    async def look() -> bool:
        try:
            await world.kube._request("POST", JOBS.path(world.namespace), query={"dryRun": "All"}, body=job)
        except KubeError:
            return True
        return False

    await until("Jobs to be refused", look)


@contextlib.asynccontextmanager
async def object_of(world: World, kind: Kind, body: Object) -> AsyncIterator[None]:
    """An object of the cluster, as long as the context lasts."""
    name = body["metadata"]["name"]
    await world.kube.create(kind, None, body)
    try:
        yield
    finally:
        await world.kube._request("DELETE", kind.path(None, name))


async def test_admission_policy_is_waited_for(world: World, operator: OperatorProcess) -> None:
    """It answers 422 like the schema, but names no field: tomorrow it may think otherwise."""
    message = "jobs need the label cost-centre"
    policy = {
        "metadata": {"name": world.namespace},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [RULE]},
            "validations": [{"expression": "'cost-centre' in object.metadata.labels", "message": message}],
        },
    }
    chosen = {"namespaceSelector": {"matchLabels": {"only": world.namespace}}}
    binding = {
        "metadata": {"name": world.namespace},
        "spec": {"policyName": world.namespace, "validationActions": ["Deny"], "matchResources": chosen},
    }
    async with object_of(world, POLICIES, policy):
        async with object_of(world, BINDINGS, binding):
            await until_refused(world)
            await world.create_run()
            status = await waits_for(world, "ValidatingAdmissionPolicy", message)
            assert message in condition_of(status, "Ready")["message"]
            assert condition_of(status, "Ready")["reason"] == "Refused"
        assert (await world.ended())["phase"] == "Succeeded"


async def test_webhook_that_denies_is_waited_for(world: World, operator: OperatorProcess) -> None:
    """A real one, over TLS; its answer has code 400."""
    now = datetime.now(UTC)
    authority = make_authority("webhook", now)
    certificate = ServerCertificate(["localhost"])
    certificate.renew(read_issuer(authority.certificate, authority.private_key), now)

    async def deny(request: web.Request) -> web.Response:
        uid = (await request.json())["request"]["uid"]
        response = {"uid": uid, "allowed": False, "status": {"message": "not on a Sunday", "code": 400}}
        return web.json_response({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})

    app = web.Application()
    app.router.add_post("/deny", deny)
    runner, port = web.AppRunner(app, shutdown_timeout=0.1), free_port()
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=certificate.context).start()
    try:
        bundle = base64.b64encode(authority.certificate).decode()
        async with object_of(world, WEBHOOKS, webhook(world, f"https://localhost:{port}/deny", caBundle=bundle)):
            await until_refused(world)
            await world.create_run()
            status = await waits_for(world, "admission webhook", "denied the request: not on a Sunday")
            assert condition_of(status, "Ready")["reason"] == "Refused"
        assert (await world.ended())["phase"] == "Succeeded"
    finally:
        await runner.cleanup()


async def test_webhook_that_does_not_answer_is_waited_for(world: World, operator: OperatorProcess) -> None:
    """The API server answers 500 then."""
    async with object_of(world, WEBHOOKS, webhook(world, f"https://localhost:{free_port()}/nobody")):
        await until_refused(world)
        await world.create_run()
        status = await waits_for(world, "failed calling webhook", "connection refused")
        assert condition_of(status, "Ready")["reason"] == "Refused"
    assert (await world.ended())["phase"] == "Succeeded"


def webhook(world: World, url: str, **client: str) -> Object:
    hook = {
        "name": "jobs.example.org",
        "clientConfig": {"url": url, **client},
        "rules": [RULE],
        "namespaceSelector": {"matchLabels": {"only": world.namespace}},
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "timeoutSeconds": 5,
    }
    return {"metadata": {"name": world.namespace}, "webhooks": [hook]}


async def test_foreign_config_map_stops_reporting_and_not_the_run(world: World, operator: OperatorProcess) -> None:
    foreign = {"metadata": {"name": "run-report-ca"}, "data": {"ca.crt": "FORGED"}}
    await world.kube.create(CONFIG_MAPS, world.namespace, foreign)
    await world.create_run()
    assert (await world.ended())["phase"] == "Succeeded"
    assert (await world.kube.get(CONFIG_MAPS, world.namespace, "run-report-ca"))["data"] == {"ca.crt": "FORGED"}
    events = [event async for event in world.kube.list(EVENTS, world.namespace)]
    told = [event["note"] for event in events if event["reason"] == "ProgressUnreported"]
    assert told
    assert all("configmaps run-report-ca" in one and "does not belong to this run" in one for one in told)


async def test_run_that_is_created_again_waits_for_its_predecessors_children(
    world: World, operator: OperatorProcess, api_server: Kubectl
) -> None:
    """The garbage collector needs longer than the person who deletes and creates."""
    await world.create_run()
    await world.ended()
    # A claim outlives its run as long as a pod mounts it; here as long as somebody's finalizer holds it.
    claim = "persistentvolumeclaim/run-run"
    api_server.run("-n", world.namespace, "patch", claim, "--type=merge", "-p", '{"metadata":{"finalizers":["a.b/c"]}}')
    await world.kube._request("DELETE", RUNS.path(world.namespace, "run"))
    await world.create_run()
    await waits_for(world, "persistentvolumeclaims run-run exists", "is being deleted with an earlier run")
    api_server.run("-n", world.namespace, "patch", claim, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    assert (await world.ended())["phase"] == "Succeeded"
