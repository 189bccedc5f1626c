"""Renders the chart, and the kustomize base from it: ``python -m tests.rendering`` writes the base."""

import subprocess
from pathlib import Path
from typing import Any

import yaml

from llava_api.generated import write_files

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts" / "llava-finetune-operator"
BASE = ROOT / "manifests" / "base"
NAMESPACE = "llava-system"
# helm built from source takes a very old Kubernetes for granted.
KUBE_VERSION = ("--kube-version", "1.34.0")
_HEADER = "# Rendered from charts/llava-finetune-operator by `make generate`: change the chart, not this file.\n"


def render(helm: Path, *arguments: str) -> str:
    """What ``helm template`` prints; raises CalledProcessError where the chart refuses."""
    command = [
        str(helm),
        "template",
        "llava-finetune-operator",
        str(CHART),
        "--namespace",
        NAMESPACE,
        *KUBE_VERSION,
        *arguments,
    ]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def render_base(helm: Path) -> dict[Path, str]:
    """Files of the kustomize base with their content."""
    operator: list[dict[str, Any]] = []
    crds: list[dict[str, Any]] = []
    for document in yaml.safe_load_all(render(helm)):
        if not document:
            continue
        document["metadata"].get("labels", {}).pop("helm.sh/chart", None)
        if document["metadata"].get("labels", {}).get("app.kubernetes.io/managed-by"):
            document["metadata"]["labels"]["app.kubernetes.io/managed-by"] = "kustomize"
        (crds if document["kind"] == "CustomResourceDefinition" else operator).append(document)
    namespace = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["namespace.yaml", "crd.yaml", "operator.yaml"],
    }
    content = {
        "namespace.yaml": [namespace],
        "crd.yaml": crds,
        "operator.yaml": operator,
        "kustomization.yaml": [kustomization],
    }
    return {
        BASE / name: _HEADER + yaml.safe_dump_all(documents, sort_keys=False, width=120, allow_unicode=True)
        for name, documents in content.items()
    }


def main() -> None:
    """Write the kustomize base."""
    from tests.localcluster.tools import HELM, ensure_tools

    write_files(render_base(ensure_tools((HELM,)).path("helm")))


if __name__ == "__main__":
    main()
