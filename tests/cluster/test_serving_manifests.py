"""The examples in manifests/serving are what the API server and KServe's definitions take, down to the last field."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from llava_trainer.evaluation.serving import list_served
from tests.kubectl import Kubectl
from tests.localcluster.modules import KSERVE, KSERVE_CRDS, fetch_module
from tests.localcluster.tools import KUSTOMIZE, ensure_tools
from tests.trainer.destinations import ADDRESSES, make_config

pytestmark = pytest.mark.cluster

SERVING = Path(__file__).parents[2] / "manifests" / "serving"
KSERVE_PLURALS = ("inferenceservices", "servingruntimes")


def build(folder: str) -> dict[str, dict[str, Any]]:
    """What kustomize makes of an example, by kind."""
    program = ensure_tools((KUSTOMIZE,)).path("kustomize")
    built = subprocess.run([program, "build", SERVING / folder], check=True, capture_output=True, text=True).stdout
    return {document["kind"]: document for document in yaml.safe_load_all(built)}


def create_strictly(kubectl: Kubectl, body: dict[str, Any]) -> str:
    """What the API server objects to, unknown fields too; nothing is made."""
    command = kubectl.command("create", "--validate=strict", "--dry-run=server", "-f", "-")
    return subprocess.run(command, input=json.dumps(body), capture_output=True, text=True, check=False).stderr


@pytest.fixture(scope="module")
def kserve(api_server: Kubectl) -> Iterator[Kubectl]:
    """kubectl for an API server that knows KServe's kinds; nobody converts them, so a version is as it is stored."""
    folder = fetch_module(KSERVE) / KSERVE_CRDS
    names = [f"crd/{plural}.serving.kserve.io" for plural in KSERVE_PLURALS]
    for plural in KSERVE_PLURALS:
        definition = yaml.safe_load((folder / f"serving.kserve.io_{plural}.yaml").read_text())
        definition["spec"].pop("conversion", None)
        # Too large for the annotation that a client's apply leaves.
        text = json.dumps(definition).encode()
        api_server.run("apply", "--server-side", "-f", "-", stdin=text)
    for name in names:
        # Before a CRD has any condition, waiting for one is an error.
        for condition in ("jsonpath={.status.acceptedNames.kind}", "condition=Established"):
            api_server.run("wait", f"--for={condition}", name, "--timeout=30s")
    yield api_server
    api_server.run("delete", *names, "--timeout=60s")


def test_the_plain_deployment_is_taken(api_server: Kubectl) -> None:
    made = build("vllm")
    assert set(made) == {"ConfigMap", "Deployment", "Service"}
    for body in made.values():
        assert create_strictly(api_server, body) == ""
    made["Deployment"]["spec"]["template"]["spec"]["containers"][0]["arg"] = []
    assert "unknown field" in create_strictly(api_server, made["Deployment"])


def test_what_is_yours_stands_in_one_file() -> None:
    made = build("vllm")
    told = dict(line.split("=") for line in (SERVING / "vllm" / "serving.env").read_text().split())
    pod = made["Deployment"]["spec"]["template"]["spec"]
    assert made["ConfigMap"]["data"] == told
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == told["CLAIM"]
    [container] = pod["containers"]
    assert container["envFrom"] == [{"configMapRef": {"name": made["ConfigMap"]["metadata"]["name"]}}]
    assert {"/run-volume/$(MODEL_FOLDER)", "--served-model-name=$(MODEL_NAME)"} <= set(container["args"])
    assert (
        made["Service"]["spec"]["selector"].items()
        <= made["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    )


def test_kserves_objects_are_taken(kserve: Kubectl) -> None:
    made = build("kserve")
    assert set(made) == {"InferenceService", "ServingRuntime"}
    for body in made.values():
        assert create_strictly(kserve, body) == ""
    for address in ADDRESSES:
        for served in list_served(make_config(address)):
            assert create_strictly(kserve, yaml.safe_load(served.inference_service)) == "", "what reports tell is taken"
    predictor = made["InferenceService"]["spec"]["predictor"]
    assert predictor["model"]["runtime"] == made["ServingRuntime"]["metadata"]["name"]
    predictor["model"]["storageUrl"] = predictor["model"].pop("storageUri")
    assert 'unknown field "spec.predictor.model.storageUrl"' in create_strictly(kserve, made["InferenceService"])
