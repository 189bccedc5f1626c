"""Modules are those that are pinned."""

from dataclasses import replace

import pytest

from tests.localcluster.errors import ClusterError
from tests.localcluster.modules import PROMETHEUS_OPERATOR, PROMETHEUS_OPERATOR_CRDS, fetch_module


def test_module_has_what_it_is_fetched_for() -> None:
    folder = fetch_module(PROMETHEUS_OPERATOR) / PROMETHEUS_OPERATOR_CRDS
    assert (folder / "monitoring.coreos.com_servicemonitors.yaml").is_file()
    assert (folder / "monitoring.coreos.com_prometheusrules.yaml").is_file()


def test_module_that_is_another_is_refused() -> None:
    with pytest.raises(ClusterError, match="is pinned"):
        fetch_module(replace(PROMETHEUS_OPERATOR, digest="h1:another="))


def test_module_that_cannot_be_had_is_told() -> None:
    with pytest.raises(ClusterError, match=r"fetching example.invalid/x@v0.0.1"):
        fetch_module(replace(PROMETHEUS_OPERATOR, path="example.invalid/x", version="v0.0.1"))
