"""An operator that starts: what it writes, what it is in no hurry to do, and which clusters it does not serve."""

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from aiohttp import web

from llava_api.constants import LABEL_STAGE
from llava_operator.kube.client import Kube
from llava_operator.kube.kinds import RUNS
from llava_operator.kube.objects import Object
from tests.cluster.kubelets import FakeKubelet, succeed
from tests.cluster.kubelets import running as pod_runs
from tests.cluster.operators import OperatorProcess, install, running
from tests.cluster.worlds import NAMESPACES, connect, make_run, until
from tests.kubectl import Kubectl, wait_for

pytestmark = pytest.mark.cluster

WRITES = ("POST", "PUT", "PATCH", "DELETE", "APPLY")
WRITTEN = ("llavafinetunes", "events", "configmaps", "jobs", "services", "persistentvolumeclaims")
"""Resources that the operator writes; Leases and the endpoint's own objects apart."""


def count_writes(api_server: Kubectl) -> Counter[str]:
    """Requests by verb and resource, refused ones as well, as the API server counts them itself."""
    counted: Counter[str] = Counter()
    for line in api_server.run("get", "--raw", "/metrics").splitlines():
        if not line.startswith("apiserver_request_total{"):
            continue
        labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
        # The Job controller writes Events of the old kind, the scheduler counts up its own by PATCH.
        if labels["resource"] == "events" and (labels["group"] != "events.k8s.io" or labels["verb"] == "PATCH"):
            continue
        # It writes the status of Jobs, too.
        if labels["resource"] == "jobs" and labels["subresource"]:
            continue
        if labels["verb"] in WRITES and labels["resource"] in WRITTEN:
            counted[f"{labels['verb']} {labels['resource']}"] += int(float(line.rsplit(" ", 1)[1]))
    return counted


def held(pod: Object) -> Object | None:
    """Training runs and does not end."""
    if pod["metadata"]["labels"][LABEL_STAGE] != "train":
        return succeed(pod)
    return pod_runs() if pod["status"]["phase"] == "Pending" else None


async def test_restart_with_active_runs_writes_nothing(api_server: Kubectl, installation: Path, tmp_path: Path) -> None:
    """Neither a status, nor an Event that is there already, nor a ConfigMap."""
    assert api_server.kubeconfig is not None
    namespace = "restarted"
    log = tmp_path / "operator.log"
    operator = OperatorProcess(pod_name="op", kubeconfig=installation, log=log, extra={"RESYNC_SECONDS": "1"})
    async with connect(api_server.kubeconfig) as api:
        kube = Kube(api, timeout_s=20)
        await kube.create(NAMESPACES, None, {"metadata": {"name": namespace}})
        kubelet = asyncio.create_task(FakeKubelet(kube, namespace, held).run())
        try:
            with running(operator):
                operator.wait_until_leader()
                for number in range(3):
                    await kube.create(RUNS, namespace, make_run(f"run-{number}", namespace))

                async def all_train() -> bool:
                    runs = [run async for run in kube.list(RUNS, namespace)]
                    stages = [stage for run in runs for stage in run.get("status", {}).get("stages", [])]
                    return sum(stage["message"] == "2 pods run" for stage in stages) == 3

                await until("three runs to train", all_train)
                # Passes that follow have nothing to do.
                await asyncio.sleep(2)
                assert operator.stop() == 0
                before = count_writes(api_server)
                operator.start()
                operator.wait_until_leader()

                def num_passes() -> float:
                    text = operator.fetch("/metrics")[1]
                    found = re.search(r"^llava_operator_pass_duration_seconds_count (.+)$", text, re.MULTILINE)
                    return float(found[1]) if found else 0

                await asyncio.to_thread(wait_for, "three relists", lambda: num_passes() >= 12, timeout_s=30)
                assert count_writes(api_server) - before == {}
                assert before["POST events"] > 0, "the API server counts under other names than this test takes"
                assert before["PATCH llavafinetunes"] > 0
        finally:
            kubelet.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await kubelet
            api_server.run("delete", "namespace", namespace, "--wait=false")


async def test_status_that_the_crd_prunes_takes_no_others_along(
    api_server: Kubectl, installation: Path, tmp_path: Path
) -> None:
    """An older CRD drops a new field without a word: the pass is repeated with backoff, and the log says why."""
    crd = "crd/llavafinetunes.finetune.llava.dev"
    summary = "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties/summary"
    schema = api_server.get(crd)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    kept = yaml.safe_dump(schema["properties"]["summary"], default_flow_style=True, width=10**6)
    log = tmp_path / "operator.log"
    operator = OperatorProcess(pod_name="op", kubeconfig=installation, log=log)
    assert api_server.kubeconfig is not None
    async with connect(api_server.kubeconfig) as api, pruned(api_server, crd, summary, kept):
        kube = Kube(api, timeout_s=20)
        await kube.create(NAMESPACES, None, {"metadata": {"name": "pruned"}})
        with running(operator):
            operator.wait_until_leader()
            await kube.create(RUNS, "pruned", make_run("run", "pruned"))
            await asyncio.to_thread(
                wait_for, "the reason in the log",
                lambda: "nothing new of summary was kept in the status of pruned/run" in log.read_text(), timeout_s=30,
            )  # fmt: skip
            await asyncio.sleep(3)
            # After 0.5, 1, 2 and 4 s.
            assert 2 <= log.read_text().count("pass over pruned/run failed") <= 5, log.read_text()
            assert operator.fetch("/healthz")[0] == 200


@contextlib.asynccontextmanager
async def pruned(api_server: Kubectl, crd: str, path: str, content: str) -> AsyncIterator[None]:
    """The CRD without a field, as long as the context lasts."""
    api_server.run("patch", crd, "--type=json", "-p", f'[{{"op": "remove", "path": "{path}"}}]')
    try:
        # Until every API server has the new schema.
        await asyncio.sleep(2)
        yield
    finally:
        api_server.run("delete", "namespace", "pruned", "--wait=false", "--ignore-not-found")
        added = yaml.safe_load(content)
        patch = yaml.safe_dump([{"op": "add", "path": path, "value": added}], default_flow_style=True, width=10**6)
        api_server.run("patch", crd, "--type=json", "-p", patch)
        await asyncio.sleep(2)


def test_deleted_namespace_takes_no_others_along(api_server: Kubectl, installation: Path, tmp_path: Path) -> None:
    """The operator's role in it went with it, so that it may not be listed: neither now nor after a restart."""
    for namespace in ("served-a", "served-b"):
        api_server.run("create", "namespace", namespace)
    kubeconfig = install(api_server, tmp_path, "limited-operator", "--set", "watchNamespaces={served-a,served-b}")
    served = {"NAME": "limited-operator", "WATCH_NAMESPACES": "served-a,served-b", "RESYNC_SECONDS": "1"}
    operator = OperatorProcess(pod_name="limited", kubeconfig=kubeconfig, log=tmp_path / "log", extra=served)
    remaining = replace(api_server, namespace="served-b")

    def is_served(name: str) -> None:
        remaining.apply(make_run(name, "served-b"))
        begun = "its phase", lambda: remaining.get("lft", name).get("status", {}).get("phase") == "Pending"
        wait_for(*begun, timeout_s=30)

    try:
        with running(operator):
            operator.wait_until_leader()
            is_served("before")
            api_server.run("delete", "namespace", "served-a", "--wait=true")
            is_served("after")
            assert operator.stop() == 0
            operator.start()
            operator.wait_until_leader()
            is_served("restarted")
        assert "relist of namespace served-a was refused" in operator.log.read_text()
    finally:
        api_server.run("delete", "namespace", "served-a", "served-b", "--wait=false", "--ignore-not-found")
        api_server.run("delete", "clusterrole,clusterrolebinding", "limited-operator", "--ignore-not-found")


async def test_cluster_that_is_too_old_is_refused(tmp_path: Path) -> None:
    """An API server that says so of itself: there is none as old as that to build."""

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/version":
            return web.json_response({"major": "1", "minor": "30+"})
        if request.method in ("POST", "PUT"):
            return web.json_response(await request.json())
        return web.json_response({"kind": "Status", "reason": "NotFound"}, status=404)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    kubeconfig = tmp_path / "kubeconfig"
    config = {
        "clusters": [{"name": "old", "cluster": {"server": f"http://127.0.0.1:{runner.addresses[0][1]}"}}],
        "users": [{"name": "op", "user": {"token": "t"}}],
        "contexts": [{"name": "old", "context": {"cluster": "old", "user": "op"}}],
        "current-context": "old",
    }
    kubeconfig.write_text(yaml.safe_dump(config))
    operator = OperatorProcess(pod_name="op", kubeconfig=kubeconfig, log=tmp_path / "log")
    operator.start()
    try:
        assert operator.process is not None
        assert await asyncio.to_thread(operator.process.wait, timeout=30) == 1
    finally:
        await runner.cleanup()
    assert "the cluster is Kubernetes 1.30, but this operator needs 1.31 or later" in operator.log.read_text()
