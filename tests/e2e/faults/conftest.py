"""Two nodes, and what breaks them."""

from collections.abc import Callable

import pytest

from tests.demo.target import Target
from tests.e2e.faults.breaking import GOES, Breaker
from tests.localcluster.cluster import LocalCluster
from tests.recovery import PROPERTY, Recovery


@pytest.fixture(scope="session")
def breaker(cluster: LocalCluster, target: Target) -> Breaker:
    """The cluster with a second node."""
    if GOES not in cluster.status().nodes:
        assert cluster.add_node() == GOES
    for image in (target.operator_image, target.trainer_image):
        cluster.load_image(image, nodes=[GOES])
    return Breaker(cluster=cluster, kubectl=target.kubectl)


@pytest.fixture
def record_recovery(record_property: Callable[[str, object], None]) -> Callable[[Recovery], None]:
    """Has a recovery's times printed at the end of the session (tests/conftest.py)."""
    return lambda recovery: record_property(PROPERTY, str(recovery))
