"""Lives of runs that leave something in every panel: one that was restarted and suspended, one that failed on a GPU.

The first is looked for among the runs that other tests have made, as Prometheus remembers them, before one is made.
"""

import json
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from llava_api.constants import LABEL_MANAGED_BY, LABEL_RUN, LABEL_STAGE, MANAGER, REPORT_PATH, Phase, StageName
from llava_api.failures import Reason
from tests.demo.plan import INPUTS_CLAIM
from tests.demo.target import OPERATOR_NAMESPACE, RELEASE
from tests.e2e.runs import Runs
from tests.kubectl import Kubectl, wait_for
from tests.localcluster.cluster import LocalCluster
from tests.monitoring.prometheus import SCRAPE_INTERVAL_S, Prometheus, Span

GPU_RUN = "asks-for-a-gpu"
OWN_RUN = "restarted-and-suspended"
TEAM_LABEL = "team"
_NODE = "node-0"
_GPU = "nvidia.com/gpu"
_EPOCHS = 30
_WAIT_S = 120


@dataclass(frozen=True, kw_only=True)
class Watching:
    """A Prometheus, and since when it scrapes."""

    prometheus: Prometheus
    since: float

    def span(self) -> Span:
        """All of the time since then."""
        return Span(start=self.since, end=time.time(), step_s=SCRAPE_INTERVAL_S)


def find_eventful_run(watching: Watching) -> str | None:
    """A run that Prometheus has seen restarted by a failure, suspended, select a step, succeed and be published.

    The last by name.
    """
    whole = f"[{watching.span().seconds}s]"
    seen = " and on (name) ".join(
        f"max by (name) ({series})"
        for series in (
            f'max_over_time(llava_run_restarts{{stage="train"}}{whole}) > 0',
            f'last_over_time(llava_run_phase{{phase="Suspended"}}{whole})',
            f'last_over_time(llava_run_phase{{phase="Succeeded"}}{whole})',
            f"last_over_time(llava_run_best_step{whole})",
            f"last_over_time(llava_run_published_bytes{whole})",
        )
    )
    found = watching.prometheus.query(seen, time.time())
    return max((series.labels["name"] for series in found), default=None)


def live_eventfully(runs: Runs) -> str:
    """Make such a run: a training process is killed, later it is suspended and resumed, and it ends well."""
    watched = {"validation": {"everySteps": 40, "samples": 8}, "earlyStopping": {"patience": 100}}
    runs.start(
        OWN_RUN,
        epochs=_EPOCHS,
        top={"publish": {"destinations": [{"address": f"pvc://{INPUTS_CLAIM}/published/{OWN_RUN}"}]}},
        training={"checkpoint": {"everySteps": 10, "keep": 2}, "maxRestarts": 3, **watched},
    )
    runs.wait_for_step(OWN_RUN, 30)
    runs.kill_trainer(OWN_RUN, rank=1)
    wait_for("the second attempt to go on", lambda: _attempt(runs) == 2 or None, timeout_s=_WAIT_S)
    runs.wait_for_step(OWN_RUN, 80)
    _suspend(runs, is_suspended=True)
    wait_for("the run to be suspended", lambda: runs.status(OWN_RUN).phase is Phase.SUSPENDED, timeout_s=_WAIT_S)
    time.sleep(2 * SCRAPE_INTERVAL_S)  # it has to be seen so
    _suspend(runs, is_suspended=False)
    status = runs.wait_for_end(OWN_RUN)
    assert status.phase is Phase.SUCCEEDED, status.failure
    return OWN_RUN


def _attempt(runs: Runs) -> int | None:
    progress = runs.status(OWN_RUN).progress
    return progress.attempt if progress and progress.stage is StageName.TRAIN else None


def _suspend(runs: Runs, *, is_suspended: bool) -> None:
    patch = json.dumps({"spec": {"suspend": is_suspended}})
    runs.kubectl.run("patch", "lft", OWN_RUN, "--type=merge", "-p", patch)


def ask_for_a_gpu(runs: Runs) -> None:
    """Begin a run whose training asks for a GPU that there is not."""
    runs.start(
        GPU_RUN,
        # Processes that use a GPU take more memory than others: with less it is not begun.
        workers={
            "replicas": 1,
            "gpus": 1,
            "gpuMemory": "80Gi",
            "resources": {"requests": {"cpu": "500m", "memory": "6Gi"}, "limits": {"memory": "6Gi"}},
        },
        training={"maxRestarts": 0, "precision": "fp32"},
    )
    runs.kubectl.run("label", "lft", GPU_RUN, f"{TEAM_LABEL}=vision", "--overwrite")
    runs.wait_for_stage(GPU_RUN, StageName.PREPARE)


def get_one_in_name(runs: Runs) -> None:
    """Let that run wait for a while, then have a GPU that is none: it holds one for some seconds, and fails."""

    def waits() -> bool:
        return any(stage.reason == Reason.UNSCHEDULABLE for stage in runs.status(GPU_RUN).stages)

    wait_for("the run to wait for a GPU", waits, timeout_s=_WAIT_S)
    time.sleep(2 * SCRAPE_INTERVAL_S)
    with _gpu_in_name(runs.kubectl):
        status = runs.wait_for_end(GPU_RUN, timeout_s=_WAIT_S)
    assert status.phase is Phase.FAILED
    assert status.failure is not None
    assert status.failure.stage is StageName.TRAIN


@contextmanager
def _gpu_in_name(kubectl: Kubectl) -> Iterator[None]:
    """The node says that it has a GPU; scheduler and kubelet believe it while no device plug-in says otherwise."""

    def say(value: str | None) -> None:
        body = json.dumps({"status": {"capacity": {_GPU: value}, "allocatable": {_GPU: value}}})
        kubectl.run("patch", "node", _NODE, "--subresource=status", "--type=merge", "-p", body)

    say("1")
    try:
        yield
    finally:
        say(None)


def trouble_the_operator(runs: Runs, cluster: LocalCluster) -> None:
    """What an operator should be seen to stand: strangers, objects that look like its own, and no API server."""
    labels = {LABEL_MANAGED_BY: MANAGER, LABEL_RUN: "nobody", LABEL_STAGE: "train"}
    container = {"name": "stage", "image": "none"}
    template = {"metadata": {"labels": labels}, "spec": {"restartPolicy": "Never", "containers": [container]}}
    metadata = {"name": "stranger", "namespace": "default", "labels": labels}
    stranger = {
        "apiVersion": "batch/v1", "kind": "Job", "metadata": metadata,
        "spec": {"suspend": True, "template": template},
    }  # fmt: skip
    kubectl = Kubectl(binary=runs.kubectl.binary, kubeconfig=runs.kubectl.kubeconfig)
    kubectl.apply(stranger)
    address = kubectl.get("service", f"{RELEASE}-report", "-n", OPERATOR_NAMESPACE)["spec"]["clusterIP"]
    with httpx.Client(verify=_unchecked(), trust_env=False) as client:
        answer = client.post(
            f"https://{address}:8443{REPORT_PATH}", json={}, headers={"Authorization": "Bearer stranger"}
        )
    assert answer.status_code == 401, answer.text
    with socket.create_connection((address, 8443)):  # no TLS comes over it
        cluster.kill_api_server()
        time.sleep(2 * SCRAPE_INTERVAL_S)
        cluster.start_api_server()
    kubectl.run("delete", "job", "stranger")


def _unchecked() -> ssl.SSLContext:
    """This machine does not know the operator's authority."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
