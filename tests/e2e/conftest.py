"""A real cluster with a node, the operator installed by Helm, and the inputs of every test in one claim."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llava_api.names import volume_claim_name
from llava_api.status import Status
from tests.demo.courier import Courier, claim
from tests.demo.inputs import cached_base
from tests.demo.plan import BASE_PATH, DATA_PATH, INPUTS_CLAIM, INPUTS_SIZE
from tests.demo.target import OPERATOR_NAMESPACE, Target, install_operator
from tests.e2e.lives import GPU_RUN, Watching
from tests.e2e.parts import make_captions, take_apart
from tests.e2e.runs import BAD_PATH, CAPTIONS_PATH, LANGUAGE_MODEL_PATH, SHUFFLED_PATH, VISION_TOWER_PATH, Runs
from tests.kubectl import Kubectl
from tests.localcluster.cluster import LocalCluster
from tests.monitoring.exporters import DCGM_FILE, ensure_kube_state_metrics, serve_recorded
from tests.monitoring.prometheus import ensure_prometheus
from tests.prepare import prepare_everything
from tests.tiny.export import make_export

_CLUSTER = "test-e2e"
_REUSED = "LLAVA_TEST_NODES"
"""Environment variable with the name of an embedded cluster that the tests make if need be, and leave up."""
_NAMESPACE = "tuning"
_PROGRESS_INTERVAL_S = 1


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    """The cluster, with one node."""
    prepare_everything()
    reused = os.environ.get(_REUSED)
    cluster = LocalCluster(reused or _CLUSTER)
    if not reused:
        cluster.down()
    cluster.up()
    yield cluster
    if not reused:
        cluster.down()


@pytest.fixture(scope="session")
def target(cluster: LocalCluster) -> Target:
    """The cluster with the operator in it."""
    tools, built = prepare_everything()
    for image in built.values():
        cluster.load_image(image)
    made = Target(
        kubectl=Kubectl(binary=tools.path("kubectl"), kubeconfig=cluster.kubeconfig, namespace=_NAMESPACE),
        helm=tools.path("helm"),
        operator_image=built["operator"],
        trainer_image=built["trainer"],
        kubectl_line="kubectl",
    )
    values = [
        # A test's hub is at an address that is not known yet.
        'policy.hubTokenHosts=["*"]',
        # Where it stays when a test takes the other node away.
        'nodeSelector={"kubernetes.io/hostname": "node-0"}',
    ]
    install_operator(made, progress_interval_s=_PROGRESS_INTERVAL_S, values=values)
    return made


@pytest.fixture(scope="session")
def courier(target: Target) -> Courier:
    return Courier(kubectl=target.kubectl, image=target.operator_image)


@pytest.fixture(scope="session")
def watching(cluster: LocalCluster, target: Target) -> Iterator[Watching]:
    """A Prometheus that scrapes the operator, the kubelets and kube-state-metrics while all runs of the session run.

    Of DCGM there is a kept exposition alone: it tells of GPUs of the run that asks for one.
    """
    text = DCGM_FILE.read_text().replace("NAMESPACE", _NAMESPACE).replace("RUN", GPU_RUN)
    with serve_recorded(text) as dcgm:
        exporters = {"kube-state-metrics": ensure_kube_state_metrics(cluster.instance), "dcgm": dcgm}
        since = time.time()
        server = ensure_prometheus(cluster.instance, operator_namespace=OPERATOR_NAMESPACE, exporters=exporters)
        yield Watching(prometheus=server, since=since)


@pytest.fixture(scope="session")
def runs(target: Target, courier: Courier, watching: Watching, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A namespace that enforces the restricted profile, with base and datasets in a claim."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    target.kubectl.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": _NAMESPACE, "labels": labels}},
        claim(INPUTS_CLAIM, INPUTS_SIZE),
    )
    folders: dict[str, Path] = {BASE_PATH: cached_base()}
    for path in (DATA_PATH, SHUFFLED_PATH, BAD_PATH):
        folders[path] = tmp_path_factory.mktemp(path)
    make_export(folders[DATA_PATH])
    make_export(folders[SHUFFLED_PATH], format="llava", shuffled=True)
    make_export(folders[BAD_PATH])
    damaged = folders[BAD_PATH] / "images" / "tray-0003.png"
    damaged.write_bytes(damaged.read_bytes()[:100])
    (folders[BAD_PATH] / "images" / "tray-0007.png").unlink()
    for path in (LANGUAGE_MODEL_PATH, VISION_TOWER_PATH, CAPTIONS_PATH):
        folders[path] = tmp_path_factory.mktemp(path)
    take_apart(folders[BASE_PATH], folders[LANGUAGE_MODEL_PATH], folders[VISION_TOWER_PATH])
    make_captions(folders[CAPTIONS_PATH])
    courier.put(folders, INPUTS_CLAIM)
    return Runs(kubectl=target.kubectl)


@pytest.fixture(scope="module")
def volume(
    request: pytest.FixtureRequest, finished: Status, courier: Courier, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A copy of what the module's run, called NAME there and ended, left on its volume."""
    folder = tmp_path_factory.mktemp("volume")
    courier.fetch(volume_claim_name(request.module.NAME), ".", folder)
    return folder
