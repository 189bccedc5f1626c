"""Alerts in a real Prometheus that scrapes a real operator, and the commands of their runbooks as they stand, against
runs in the states that they are about.

API server, scheduler, volume and Job controllers are real; nodes are objects, and their kubelet is played.
"""

import asyncio
import json
import os
import re
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from llava_api.constants import LABEL_RUN, LABEL_RUN_UID, LABEL_STAGE, StageName
from llava_monitoring.alerts.rules import ALERTS
from llava_operator.kube.client import Kind, Kube
from llava_operator.kube.errors import NotFoundError
from llava_operator.kube.kinds import RUNS, SECRETS, VOLUME_CLAIMS
from llava_operator.kube.objects import Object
from tests.cluster.alerting import alerting
from tests.cluster.kubelets import ended, succeed
from tests.cluster.kubelets import running as pod_runs
from tests.cluster.nodes import playing
from tests.cluster.operators import NAME as OPERATOR
from tests.cluster.operators import SYSTEM_NAMESPACE, OperatorProcess, running
from tests.cluster.worlds import NAMESPACES, VOLUMES, connect, make_run, until
from tests.kubectl import Kubectl
from tests.localcluster.modules import PROMETHEUS_OPERATOR, PROMETHEUS_OPERATOR_CRDS, fetch_module
from tests.localcluster.tools import HELM, ensure_tools
from tests.monitoring.alerts.pages import commands
from tests.monitoring.prometheus import Prometheus
from tests.rendering import render

pytestmark = pytest.mark.cluster

NAMESPACE = "runbooks"
CLASS = "runbooks"
CLASSES = Kind("apis/storage.k8s.io/v1", "storageclasses")
BLOCKED, WAITING, TRAINING, FAILED = "blocked", "waiting", "training", "failed"
TAKING_OVER, MAKING_ANEW = "taking-over", "making-anew"
"""Two runs whose claim an earlier one has left."""
EARLIER = "3c0c5a3e-0000-4000-8000-000000000000"

_STATES = {
    "LlavaRunBlocked": BLOCKED,
    "LlavaRunWaitingTooLong": WAITING,
    "LlavaRunFailed": FAILED,
    "LlavaRunsFailAlike": FAILED,
}
"""Which run an alert's page is read for; of the others, one that trains."""
_STATES_OF_COMMANDS = {"existingClaim": TAKING_OVER, "pvc NAME-run": MAKING_ANEW}
"""Which run a command is for, by what is in it: ways out that exclude each other."""
NOT_RUN = {
    r"kubectl .*\blogs ": "logs come from the kubelet of a node, and these are played",
    r"kubectl .*\bexec ": "and so does what runs in their pods",
    r"kubectl .*\btop ": "metrics-server is no part of this cluster",
}
"""Commands that are not run here, by a pattern, and why."""
NOT_TOLD = {
    ".status.progress": "pods that are played report nothing",
    ".status.evaluation": "no evaluation is run",
    ".status.plan": "nor does their prepare tell of the model, from which a plan is made",
}
"""What a command asks for and these runs have not, and why: it runs and shows nothing."""


def stage_of(pod: Object) -> tuple[str, StageName]:
    labels = pod["metadata"]["labels"]
    return labels[LABEL_RUN], StageName(labels[LABEL_STAGE])


def behave(pod: Object, _: list[Object]) -> Object | None:
    run, stage = stage_of(pod)
    if run == FAILED:
        return ended(65, "") if pod["status"]["phase"] == "Running" else pod_runs()
    if stage is StageName.TRAIN:
        return pod_runs() if pod["status"]["phase"] == "Pending" else None
    return succeed(pod)


@dataclass(frozen=True)
class Shell:
    """A shell whose kubectl is for the cluster."""

    kubectl: Kubectl

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        folder = str(self.kubectl.binary.parent)
        environ = {**os.environ, "KUBECONFIG": str(self.kubectl.kubeconfig), "PATH": f"{folder}:{os.environ['PATH']}"}
        return subprocess.run(["bash", "-c", command], env=environ, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def operator(installation: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    # Nobody takes over here: a lease as long as by default.
    lease = {"LEASE_DURATION_SECONDS": "15", "LEASE_RENEW_DEADLINE_SECONDS": "10", "LEASE_RETRY_SECONDS": "2"}
    log = tmp_path_factory.mktemp("runbooks") / "operator.log"
    process = OperatorProcess(pod_name="runbooks", kubeconfig=installation, log=log, extra=lease)
    with running(process):
        process.wait_until_leader()
        yield process


@pytest.fixture(scope="module")
def helm() -> Path:
    return ensure_tools((HELM,)).path("helm")


@pytest.fixture(scope="module")
def deployment(api_server: Kubectl, installation: Path, helm: Path) -> Iterator[None]:
    """The operator's Deployment, as the chart has it; no kubelet starts its pods."""
    documents = yaml.safe_load_all(render(helm))
    [made] = [document for document in documents if document and document["kind"] == "Deployment"]
    system = replace(api_server, namespace=SYSTEM_NAMESPACE)
    system.apply(made)
    yield
    system.run("delete", "deployment", OPERATOR, "--wait=false")


@pytest.fixture
async def kube(api_server: Kubectl) -> AsyncIterator[Kube]:
    assert api_server.kubeconfig is not None
    volumes = ("models", "data", *(f"{run}-run" for run in (WAITING, TRAINING, FAILED, TAKING_OVER, MAKING_ANEW)))
    async with connect(api_server.kubeconfig) as api:
        kube = Kube(api, timeout_s=20)
        await kube.create(NAMESPACES, None, {"metadata": {"name": NAMESPACE}})
        provisioner = {"provisioner": "example.com/none", "allowVolumeExpansion": True}
        await kube.create(CLASSES, None, {"metadata": {"name": CLASS}, **provisioner})
        for name in volumes:
            await kube.create(VOLUMES, None, {"metadata": {"name": name}, "spec": volume_for(name)})
        for name in ("models", "data"):
            await kube.create(VOLUME_CLAIMS, NAMESPACE, {"metadata": {"name": name}, "spec": CLAIM})
        for run in (TAKING_OVER, MAKING_ANEW):
            metadata = {"name": f"{run}-run", "labels": {LABEL_RUN_UID: EARLIER}}
            await kube.create(VOLUME_CLAIMS, NAMESPACE, {"metadata": metadata, "spec": CLAIM})
        yield kube
    api_server.run("delete", "namespace", NAMESPACE, "--timeout=180s", timeout_s=200)
    api_server.run("delete", "pv", *volumes, "--ignore-not-found", "--wait=false")
    api_server.run("delete", "storageclass", CLASS)


CLAIM = {
    "accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": CLASS,
}  # fmt: skip


def volume_for(claim: str) -> Object:
    return {
        "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce"],
        "hostPath": {"path": "/nowhere"}, "storageClassName": CLASS, "persistentVolumeReclaimPolicy": "Retain",
        "claimRef": {"namespace": NAMESPACE, "name": claim},
    }  # fmt: skip


async def create_runs(kube: Kube) -> None:
    small = {"limits": {"cpu": "1", "memory": "1Gi"}}
    workers = {"replicas": 2, "gracePeriodSeconds": 15, "resources": small, "shmSize": "1Gi"}
    storage = {"size": "1Gi", "storageClassName": CLASS}
    absent = {"source": "pvc://absent/set", "format": "llava", "file": "train.json"}
    for name, spec in {
        BLOCKED: {"workers": {**workers, "gpus": 0}, "dataset": absent},
        WAITING: {"workers": {**workers, "gpus": 1}},
        TRAINING: {"workers": {**workers, "gpus": 0}},
        FAILED: {"workers": {**workers, "gpus": 0}},
        TAKING_OVER: {"workers": {**workers, "gpus": 0}},
        MAKING_ANEW: {"workers": {**workers, "gpus": 0}},
    }.items():
        await kube.create(RUNS, NAMESPACE, make_run(name, NAMESPACE, storage=storage, **spec))


async def ready_reason(kube: Kube, run: str) -> str:
    status = (await kube.get(RUNS, NAMESPACE, run)).get("status", {})
    return next((one["reason"] for one in status.get("conditions", []) if one["type"] == "Ready"), "")


async def wait_for_states(kube: Kube) -> None:
    async def all_there() -> bool:
        reasons = [await ready_reason(kube, run) for run in (BLOCKED, WAITING, FAILED, TAKING_OVER, MAKING_ANEW)]
        training = (await kube.get(RUNS, NAMESPACE, TRAINING)).get("status", {}).get("stages", [])
        trains = any(stage["name"] == "train" and stage["state"] == "Running" for stage in training)
        return trains and reasons == [
            "MissingObject", "Unschedulable", "InvalidData", "VolumeOfEarlierRun", "VolumeOfEarlierRun",
        ]  # fmt: skip

    await until("a run in each state", all_there, timeout_s=240)


def not_run(command: str) -> str:
    """Why a command is not run; empty where it is."""
    return next((why for pattern, why in NOT_RUN.items() if re.match(pattern, command)), "")


def test_each_exception_is_needed_and_most_commands_run() -> None:
    every = [command for alert in ALERTS for command in commands(alert.name)]
    for pattern in NOT_RUN:
        assert any(re.match(pattern, command) for command in every), pattern
    assert len([command for command in every if not_run(command)]) < len(every) / 4


async def test_rule_is_what_prometheus_operator_takes(api_server: Kubectl, helm: Path, installation: Path) -> None:
    folder = fetch_module(PROMETHEUS_OPERATOR) / PROMETHEUS_OPERATOR_CRDS
    definition = folder / "monitoring.coreos.com_prometheusrules.yaml"
    # Too large for the annotation that a client's apply leaves.
    api_server.run("apply", "--server-side", "-f", str(definition))
    try:
        # Before a CRD has any condition, waiting for one is an error.
        for condition in ("jsonpath={.status.acceptedNames.kind}", "condition=Established"):
            api_server.run("wait", f"--for={condition}", "-f", str(definition), "--timeout=30s")
        [rule] = [
            one
            for one in yaml.safe_load_all(render(helm, "--set", "alerts.enabled=true"))
            if one and one["kind"] == "PrometheusRule"
        ]
        made = await asyncio.to_thread(_create_strictly, api_server, rule)
        assert (made.returncode, made.stderr) == (0, "")
        rule["spec"]["groups"][0]["rules"][0]["severity"] = "misplaced"
        assert 'unknown field "spec.groups[0].rules[0].severity"' in _create_strictly(api_server, rule).stderr
    finally:
        api_server.run("delete", "-f", str(definition), "--timeout=60s")


def _create_strictly(kubectl: Kubectl, body: Object) -> "subprocess.CompletedProcess[str]":
    command = kubectl.command("-n", SYSTEM_NAMESPACE, "create", "--validate=strict", "--dry-run=server", "-f", "-")
    return subprocess.run(command, input=json.dumps(body), capture_output=True, text=True, check=False)


async def test_alerts_fire_and_their_pages_commands_run(
    api_server: Kubectl, kube: Kube, operator: OperatorProcess, deployment: None, helm: Path, prometheus: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    async with playing(kube, NAMESPACE, behave) as nodes:
        await nodes.add("runbooks", 0)
        await create_runs(kube)
        await wait_for_states(kube)
        with alerting(prometheus, tmp_path, operator, helm) as server:
            await until("alerts of the runs' states", lambda: _fires_what_should(server), timeout_s=150)
            assert {rule["health"] for rule in server.rules()} == {"ok"}
            assert len(server.rules()) == len(ALERTS)
        failures = [failure for alert in ALERTS async for failure in try_commands(Shell(api_server), kube, alert.name)]
        assert not failures, "\n".join(failures)


async def _fires_what_should(server: Prometheus) -> bool:
    firing = await asyncio.to_thread(server.query, 'ALERTS{alertstate="firing"}', time.time())
    told = {(one.labels["alertname"], one.labels.get("namespace"), one.labels.get("name")) for one in firing}
    expected = {
        ("LlavaRunFailed", NAMESPACE, FAILED),
        ("LlavaRunBlocked", NAMESPACE, BLOCKED),
        ("LlavaRunBlocked", NAMESPACE, TAKING_OVER),
        ("LlavaRunBlocked", NAMESPACE, MAKING_ANEW),
        ("LlavaRunWaitingTooLong", NAMESPACE, WAITING),
    }
    assert told <= expected, "an alert that has no cause"
    return told == expected


async def try_commands(shell: Shell, kube: Kube, alert: str) -> AsyncIterator[str]:
    """What is wrong with a page's commands, as they are run one after the other."""
    for command in commands(alert):
        if not_run(command):
            continue
        named = (run for part, run in _STATES_OF_COMMANDS.items() if part in command)
        run = next(named, _STATES.get(alert, TRAINING))
        # Columns have names, too.
        filled = re.sub(r"\bNAMESPACE\b(?!:)", NAMESPACE, command)
        filled = re.sub(r"\bNAME\b(?!:)", run, filled)
        done = await asyncio.to_thread(shell.run, filled)
        if done.returncode != 0:
            yield f"{alert}: {filled}: {done.stdout}{done.stderr}"
        for why in await look(kube, run, filled, done):
            yield f"{alert}: {why}"


async def look(kube: Kube, run: str, command: str, done: Any) -> list[str]:
    """What is wrong with a command's effect, or with what it shows."""
    wrong = []
    if '"suspend": true' in command:
        await until(f"{run} to be suspended", lambda: _has_reason(kube, run, "Suspended"), timeout_s=60)
    if '"suspend": false' in command:
        await until(f"{run} to go on", lambda: _has_not_reason(kube, run, "Suspended"), timeout_s=60)
    if "rollout restart" in command:
        # kubectl refuses another one within the same second, and several pages have it.
        await asyncio.sleep(1)
    if "existingClaim" in command:
        await until(f"{run} to take the claim over", lambda: _has_claim(kube, run, EARLIER), timeout_s=60)
    if "delete pvc" in command:
        uid = (await kube.get(RUNS, NAMESPACE, run))["metadata"]["uid"]
        await until(f"{run} to make a claim of its own", lambda: _has_claim(kube, run, uid), timeout_s=120)
    if '"tls.crt": null' in command:
        await until("the operator to make an authority", lambda: _has_authority(kube), timeout_s=60)
    shows = any(part in command for part in (" get lft", "get pods -l finetune", "get pvc", "get nodes"))
    if shows and not done.stdout.strip() and not any(part in command for part in NOT_TOLD):
        wrong.append(f"{command} shows nothing")
    return wrong


async def _has_claim(kube: Kube, run: str, owner: str) -> bool:
    """Whether a run goes on with the claim NAME-run, and that is the one of this label."""
    try:
        claim = await kube.get(VOLUME_CLAIMS, NAMESPACE, f"{run}-run")
    except NotFoundError:
        return False
    used = (await kube.get(RUNS, NAMESPACE, run))["status"]["artifacts"]["volumeClaim"]
    is_wanted: bool = (used, claim["metadata"]["labels"][LABEL_RUN_UID]) == (f"{run}-run", owner)
    return is_wanted and await ready_reason(kube, run) != "VolumeOfEarlierRun"


async def _has_authority(kube: Kube) -> bool:
    secret = await kube.get(SECRETS, SYSTEM_NAMESPACE, f"{OPERATOR}-report-ca")
    return bool((secret.get("data") or {}).get("tls.crt"))


async def _has_reason(kube: Kube, run: str, reason: str) -> bool:
    return await ready_reason(kube, run) == reason


async def _has_not_reason(kube: Kube, run: str, reason: str) -> bool:
    return await ready_reason(kube, run) != reason
