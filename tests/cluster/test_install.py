"""Installing without Helm: a real API server takes the kustomize base."""

from pathlib import Path

import pytest

from tests.kubectl import Kubectl
from tests.rendering import BASE, NAMESPACE

pytestmark = pytest.mark.cluster


def test_kustomize_base_is_accepted(api_server: Kubectl, installation: Path) -> None:
    """Over what the tests have installed from the chart: the namespace is theirs, too, and stays."""
    base = ("--server-side", "--force-conflicts", "-k", str(BASE), "-n", NAMESPACE)
    api_server.run("apply", *base)
    deployment = api_server.get("deployment", "llava-finetune-operator", "-n", NAMESPACE)
    assert deployment["spec"]["replicas"] == 1
    assert api_server.exists("crd", "llavafinetunes.finetune.llava.dev")
    api_server.run("delete", "deployment", "llava-finetune-operator", "-n", NAMESPACE)
