"""A real API server without nodes, for the whole tier."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from llava_api.crd import build_crd
from tests.cluster.operators import installed
from tests.cluster.worlds import World, namespace_of, world_of
from tests.kubectl import Kubectl
from tests.localcluster.cluster import LocalCluster

_NAME = "test-api"
_REUSED = "LLAVA_TEST_CLUSTER"
"""Environment variable with the name of an embedded cluster that is up already; the tests leave it up."""


@pytest.fixture(scope="session")
def api_server() -> Iterator[Kubectl]:
    """kubectl, as administrator, for a control plane that lives as long as the test session."""
    reused = os.environ.get(_REUSED)
    cluster = LocalCluster(reused or _NAME)
    if not reused:
        cluster.down()
    cluster.up(control_plane_only=True)
    yield Kubectl(binary=cluster.tools().path("kubectl"), kubeconfig=cluster.kubeconfig)
    if not reused:
        cluster.down()


@pytest.fixture(scope="session")
def installation(api_server: Kubectl, crd: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A kubeconfig with the rights that the chart gives the operator, and no more."""
    with installed(api_server, tmp_path_factory.mktemp("installation")) as kubeconfig:
        yield kubeconfig


@pytest.fixture(scope="session")
def crd(api_server: Kubectl) -> None:
    """The CRD, served."""
    api_server.apply(build_crd())
    # Before a CRD has any condition, waiting for one is an error.
    for condition in ("jsonpath={.status.acceptedNames.kind}", "condition=Established"):
        api_server.run("wait", f"--for={condition}", "crd/llavafinetunes.finetune.llava.dev", "--timeout=30s")


@pytest.fixture
async def world(api_server: Kubectl, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """A namespace of the test's own, whose pods succeed unless told otherwise."""
    async with world_of(api_server, namespace_of(request)) as made:
        yield made
