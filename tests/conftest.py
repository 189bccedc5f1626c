"""Tiers: which tests this machine can run. What cannot run is listed with the reason; in CI that is an error."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.localcluster import host
from tests.localcluster.errors import ClusterError


@dataclass(frozen=True, kw_only=True)
class Tier:
    """Tests with one marker, and what they need of the machine."""

    marker: str
    check: Callable[[], None]
    """Raises ClusterError, saying what is missing."""


def _check_control_plane() -> None:
    host.require_root()
    host.require_packages(host.CONTROL_PLANE_PACKAGES)


def _check_nodes() -> None:
    _check_control_plane()
    host.require_packages(host.NODE_PACKAGES)
    host.cgroup_version()


def _check_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise ClusterError("no NVIDIA GPU, or none that this build of torch can use")


TIERS = (
    Tier(marker="cluster", check=_check_control_plane),
    Tier(marker="e2e", check=_check_nodes),
    Tier(marker="gpu", check=_check_gpu),
)
_OBSTACLES = pytest.StashKey[dict[str, tuple[int, str]]]()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of a tier that cannot run; runs last, so that deselected tests do not count."""
    obstacles: dict[str, tuple[int, str]] = {}
    for tier in TIERS:
        concerned = [item for item in items if item.get_closest_marker(tier.marker)]
        if not concerned:
            continue
        try:
            tier.check()
        except ClusterError as error:
            obstacles[tier.marker] = (len(concerned), str(error))
            for item in concerned:
                item.add_marker(pytest.mark.skip(reason=f"{tier.marker}: {error}"))
    config.stash[_OBSTACLES] = obstacles
    if obstacles and os.environ.get("CI") == "true":
        listed = "; ".join(f"{marker}: {reason}" for marker, (_, reason) in obstacles.items())
        raise pytest.UsageError(f"with CI=true every tier has to run, but: {listed}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """List the tiers that did not run."""
    for marker, (number, reason) in config.stash.get(_OBSTACLES, {}).items():
        terminalreporter.section(f"tier {marker} did not run ({number} tests)")
        terminalreporter.write_line(reason)
