"""Where Prometheus finds the operator's pods and the nodes of an embedded cluster.

Debian builds Prometheus without its discovery of Kubernetes, so a process beside it asks the API server, and writes
files that Prometheus reads again by itself. The labels are those which its own discovery would give.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.kubectl import Kubectl, KubectlError
from tests.localcluster import processes
from tests.localcluster.instance import Instance
from tests.localcluster.tools import KUBERNETES, ensure_tools

NAME = "prometheus-discovery"
ENDPOINTS_FILE, NODES_FILE = "endpoints.json", "nodes.json"
_EVERY_S = 2
_META = "__meta_kubernetes_"


def ensure_discovery(instance: Instance, folder: Path, namespace: str) -> None:
    """Start it unless it runs, once both files are there for the first time."""
    if any(one.name == NAME and one.is_alive() for one in processes.recorded(instance.state_dir)):
        return
    kubectl = Kubectl(
        binary=ensure_tools((KUBERNETES,)).path("kubectl"), kubeconfig=instance.kubeconfig, namespace=namespace
    )
    write_targets(kubectl, folder)
    command = [sys.executable, "-m", __name__, str(kubectl.binary), str(instance.kubeconfig), namespace, str(folder)]
    root = Path(__file__).parents[2]
    processes.start(NAME, command, state_dir=instance.state_dir, extra_environment={"PYTHONPATH": str(root)})


def write_targets(kubectl: Kubectl, folder: Path) -> None:
    """Write what is there now.

    Raises:
        KubectlError: the API server does not answer.
    """
    slices = json.loads(kubectl.run("get", "endpointslices", "--output=json"))["items"]
    nodes = json.loads(kubectl.run("get", "nodes", "--output=json"))["items"]
    _write(folder / ENDPOINTS_FILE, list(_list_endpoints(slices)))
    _write(
        folder / NODES_FILE, [_target(node["metadata"]["name"], node_name=node["metadata"]["name"]) for node in nodes]
    )


def _list_endpoints(slices: list[Any]) -> Iterator[dict[str, Any]]:
    for made in slices:
        service = made["metadata"]["labels"]["kubernetes.io/service-name"]
        for endpoint in made["endpoints"] or ():
            pod = endpoint.get("targetRef", {}).get("name", "")
            for port in made["ports"]:
                yield _target(
                    f"{endpoint['addresses'][0]}:{port['port']}",
                    namespace=made["metadata"]["namespace"], service_name=service, pod_name=pod,
                    pod_container_name="operator", endpoint_port_name=port.get("name", ""),
                )  # fmt: skip


def _target(address: str, **labels: str) -> dict[str, Any]:
    return {"targets": [address], "labels": {_META + label: value for label, value in labels.items()}}


def _write(path: Path, targets: list[dict[str, Any]]) -> None:
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps(targets))
    aside.replace(path)


def main() -> None:
    """Entry point: write again and again, until the cluster's `down` ends it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kubectl", type=Path)
    parser.add_argument("kubeconfig", type=Path)
    parser.add_argument("namespace")
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    kubectl = Kubectl(binary=given.kubectl, kubeconfig=given.kubeconfig, namespace=given.namespace)
    while True:
        time.sleep(_EVERY_S)
        try:
            write_targets(kubectl, given.folder)
        except (KubectlError, subprocess.TimeoutExpired) as error:
            # Targets stay as they were last known, as with Prometheus' own discovery.
            sys.stderr.write(f"{error}\n")
            sys.stderr.flush()


if __name__ == "__main__":
    main()
