"""Installing without Helm: a real API server takes the kustomize base."""

import json
from pathlib import Path

import pytest

from tests.kubectl import Kubectl
from tests.rendering import BASE, NAMESPACE

pytestmark = pytest.mark.cluster


def test_kustomize_base_is_accepted(api_server: Kubectl, installation: Path) -> None:
    """Tried without being stored: the namespace holds what the other tests have installed from the chart."""
    tried = ("--server-side", "--force-conflicts", "--dry-run=server", "-k", str(BASE), "-n", NAMESPACE, "-o", "json")
    made = {
        (item["kind"], item["metadata"]["name"]): item for item in json.loads(api_server.run("apply", *tried))["items"]
    }
    assert made["Deployment", "llava-finetune-operator"]["spec"]["replicas"] == 1
    assert ("CustomResourceDefinition", "llavafinetunes.finetune.llava.dev") in made
