"""A real API server without nodes, for the whole tier."""

from collections.abc import Iterator

import pytest

from tests.kubectl import Kubectl
from tests.localcluster.cluster import LocalCluster

_NAME = "test-api"


@pytest.fixture(scope="session")
def api_server() -> Iterator[Kubectl]:
    """kubectl, as administrator, for a control plane that lives as long as the test session."""
    cluster = LocalCluster(_NAME)
    cluster.down()
    cluster.up(control_plane_only=True)
    yield Kubectl(binary=cluster.tools().path("kubectl"), kubeconfig=cluster.kubeconfig)
    cluster.down()
