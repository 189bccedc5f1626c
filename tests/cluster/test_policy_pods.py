"""What pods of a run may and may not, asked of a real API server: docs/security.md rests on these."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from llava_api.constants import STAGES, TOKEN_AUDIENCE, StageName
from llava_operator.build.job import build_job
from tests.controller.makers import make_attempt, make_run
from tests.controller.test_build_security import PLATFORM, SPECS, notifications
from tests.kubectl import Kubectl, KubectlError

pytestmark = pytest.mark.cluster

NAMESPACE = "policy-pods"


@pytest.fixture(scope="module")
def kubectl(api_server: Kubectl) -> Iterator[Kubectl]:
    """A namespace that enforces the restricted profile."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    api_server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}})
    yield replace(api_server, namespace=NAMESPACE)
    api_server.run("delete", "namespace", NAMESPACE, "--wait=false")


def make_pods(**changes: Any) -> list[dict[str, Any]]:
    """A pod of every stage and notification of every kind of run, as the Job controller makes it."""
    templates = {
        f"{name}-{stage}": build_job(make_attempt(make_run(**spec), stage, 1), PLATFORM)["spec"]["template"]["spec"]
        for name, spec in SPECS.items()
        for stage in STAGES
    }
    for name, spec in SPECS.items():
        for receiver, job in notifications(make_run(**spec)).items():
            templates[f"{name}-{receiver}"] = job["spec"]["template"]["spec"]
    return [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {**pod, **changes}}
            for name, pod in templates.items()]  # fmt: skip


def create(kubectl: Kubectl, pods: list[dict[str, Any]]) -> str:
    return kubectl.run("create", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump_all(pods).encode())


def test_pods_of_every_stage_pass_the_restricted_profile(kubectl: Kubectl) -> None:
    pods = make_pods()
    assert create(kubectl, pods).count("created (server dry run)") == len(pods) == 2 * len(StageName) + 3
    with pytest.raises(KubectlError, match="violates PodSecurity"):
        create(kubectl, make_pods(hostNetwork=True)[:1])


def test_the_api_server_does_not_accept_a_reporting_token(kubectl: Kubectl, tmp_path: Path) -> None:
    assert kubectl.kubeconfig is not None
    config = yaml.safe_load(kubectl.kubeconfig.read_text())

    def ask(*audience: str) -> str:
        token = kubectl.run("create", "token", "default", *audience).strip()
        config["users"] = [{"name": user["name"], "user": {"token": token}} for user in config["users"]]
        file = tmp_path / "kubeconfig"
        file.write_text(yaml.safe_dump(config))
        return replace(kubectl, kubeconfig=file).run("auth", "whoami")

    assert f"system:serviceaccount:{NAMESPACE}:default" in ask()
    with pytest.raises(KubectlError, match=r"Unauthorized|must be logged in"):
        ask(f"--audience={TOKEN_AUDIENCE}")
