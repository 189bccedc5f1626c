"""Installing without Helm: a real API server takes the kustomize base."""

import pytest

from tests.kubectl import Kubectl
from tests.rendering import BASE, NAMESPACE

pytestmark = pytest.mark.cluster


def test_kustomize_base_is_accepted(api_server: Kubectl) -> None:
    try:
        api_server.run("apply", "--server-side", "-k", str(BASE), "-n", NAMESPACE)
        deployment = api_server.get("deployment", "llava-finetune-operator", "-n", NAMESPACE)
        assert deployment["spec"]["replicas"] == 1
        assert api_server.exists("crd", "llavafinetunes.finetune.llava.dev")
    finally:
        # Not the CustomResourceDefinition: the other tests of this session use it.
        # Waited for: other tests make the namespace anew.
        api_server.run("delete", "namespace", NAMESPACE, "--wait=true", timeout_s=120)
        api_server.run("delete", "clusterrole,clusterrolebinding", "llava-finetune-operator")
