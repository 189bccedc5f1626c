"""Tiers: which tests this machine can run. What cannot run is listed with the reason; in CI that is an error."""

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import browser, recovery
from tests.localcluster import debian, host
from tests.localcluster.errors import ClusterError
from tests.localcluster.golang import find_go
from tests.localcluster.tools import VERSITYGW, ensure_tools
from tests.trainer.servers import vllm


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


def _check_prometheus() -> None:
    debian.require_source(debian.PROMETHEUS)


def _check_registry() -> None:
    debian.require_source(debian.DOCKER_REGISTRY)


def _check_mounts() -> None:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        raise ClusterError("this machine lets nobody mount a file system for a test")


def _check_images() -> None:
    host.require_root()
    host.require_packages(host.IMAGE_PACKAGES)


def _check_s3() -> None:
    find_go()


def _check_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise ClusterError("no NVIDIA GPU, or none that this build of torch can use")


TIERS = (
    Tier(marker="cluster", check=_check_control_plane),
    Tier(marker="e2e", check=_check_nodes),
    Tier(marker="prometheus", check=_check_prometheus),
    Tier(marker="registry", check=_check_registry),
    Tier(marker="mounts", check=_check_mounts),
    Tier(marker="images", check=_check_images),
    Tier(marker="s3", check=_check_s3),
    Tier(marker="browser", check=browser.require_browser),
    Tier(marker="vllm", check=vllm.require_vllm),
    Tier(marker="gpu", check=_check_gpu),
)
_ALONE = ("e2e", "cluster")
"""Tiers in folders of their names, each with one cluster; they start first, since they take longest and mostly wait."""
_MARKERS_OF_FIXTURES = {
    "prometheus": "prometheus", "promtool": "prometheus", "docker_registry": "registry", "versitygw": "s3"
}  # fmt: skip
"""What asks for one of these belongs to the tier of that marker, wherever it lies."""
_OBSTACLES = pytest.StashKey[dict[str, tuple[int, str]]]()


def _scope(nodeid: str) -> str:
    """What runs in one process, one after the other: a tier with a cluster, else the tests of a file."""
    file = nodeid.partition("::")[0]
    return next((tier for tier in _ALONE if file.startswith(f"tests/{tier}/")), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Share tests out by scope. xdist 3.8's own groups have no effect with pytest 9.2, which keeps ids elsewhere."""
    from xdist.scheduler import LoadScopeScheduling

    class Scopes(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _scope(nodeid)

    return Scopes(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of a tier that cannot run; runs last, so that deselected tests do not count."""
    items.sort(key=lambda item: _ALONE.index(scope) if (scope := _scope(item.nodeid)) in _ALONE else len(_ALONE))
    for item in items:
        for fixture in _MARKERS_OF_FIXTURES.keys() & {*getattr(item, "fixturenames", ())}:
            item.add_marker(_MARKERS_OF_FIXTURES[fixture])
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


@pytest.fixture(scope="session")
def prometheus() -> Path:
    """The real server's program, of Debian's package; nothing of it runs unless a test starts it."""
    return debian.ensure_unpacked(debian.PROMETHEUS).path("prometheus")


@pytest.fixture(scope="session")
def promtool() -> Path:
    """Prometheus' own checker of metrics and rules, and runner of rules' unit tests."""
    return debian.ensure_unpacked(debian.PROMETHEUS).path("promtool")


@pytest.fixture(scope="session")
def docker_registry() -> Path:
    """A registry's program, of Debian's package; nothing of it runs unless a test starts it."""
    return debian.ensure_unpacked(debian.DOCKER_REGISTRY).path("docker-registry")


@pytest.fixture(scope="session")
def versitygw() -> Path:
    """An S3 server's program, built from its Go module; nothing of it runs unless a test starts it."""
    return ensure_tools((VERSITYGW,)).path("versitygw")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Take over what a process that tested could not run; one that crashed has told nothing."""
    told = getattr(node, "workeroutput", {}).get("obstacles", {})
    node.config.stash.setdefault(_OBSTACLES, {}).update(told)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand on what could not run; with CI=true every tier has to."""
    obstacles = session.config.stash.get(_OBSTACLES, {})
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["obstacles"] = obstacles
    elif obstacles and os.environ.get("CI") == "true":
        session.exitstatus = pytest.ExitCode.USAGE_ERROR


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show how long runs took to recover from faults, and list the tiers that did not run."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    times = [
        value
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == recovery.PROPERTY
    ]
    if times:
        terminalreporter.section("seconds from a fault")
        terminalreporter.write_line(recovery.HEADER)
        for line in dict.fromkeys(times):
            terminalreporter.write_line(line)
    for marker, (number, reason) in config.stash.get(_OBSTACLES, {}).items():
        terminalreporter.section(f"tier {marker} did not run ({number} tests)")
        terminalreporter.write_line(reason)
        if os.environ.get("CI") == "true":
            terminalreporter.write_line("with CI=true every tier has to run", red=True)
