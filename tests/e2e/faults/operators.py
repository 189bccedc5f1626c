"""The operator itself taken away."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.demo.target import OPERATOR_NAMESPACE, RELEASE
from tests.e2e.runs import Runs
from tests.kubectl import Kubectl, wait_for

STATUS_CURRENT_S = 75
"""Until when a run's status is current again after the operator, or the API server, was away."""


def operator(runs: Runs) -> Kubectl:
    """kubectl for the operator's namespace."""
    return Kubectl(binary=runs.kubectl.binary, kubeconfig=runs.kubectl.kubeconfig, namespace=OPERATOR_NAMESPACE)


@contextmanager
def operator_down(runs: Runs) -> Iterator[None]:
    """No operator runs meanwhile; afterwards one does, and is ready."""
    kubectl = operator(runs)
    scale = ("scale", "deployment", RELEASE)
    kubectl.run(*scale, "--replicas=0")
    try:
        wait_for("the operator to be down", lambda: not kubectl.list("pods"), timeout_s=60)
        yield
    finally:
        kubectl.run(*scale, "--replicas=1")
        kubectl.run("rollout", "status", f"deployment/{RELEASE}", "--timeout=90s", timeout_s=100)
