"""Two instances never share a number, an address or a name."""

from __future__ import annotations

import ipaddress
import json
import socket
from pathlib import Path

import pytest

from tests.localcluster import instance as module
from tests.localcluster.errors import ClusterError
from tests.localcluster.instance import (
    MAX_INSTANCES,
    MAX_NODES,
    Instance,
    create_instance,
    free_port,
    instance_lock,
    load_instance,
    release_index,
    require_no_instance,
)


@pytest.fixture
def state_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A relative path: pytest's own is too long for sockets."""
    monkeypatch.chdir(tmp_path)
    return Path("state")


@pytest.fixture(autouse=True)
def _run_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RUN_ROOT", tmp_path / "run")
    monkeypatch.setattr(module, "_INTERFACES", tmp_path / "interfaces")
    monkeypatch.setattr(module, "_routed_ranges", list)


def _create(state_root: Path, name: str, *, control_plane_only: bool = True) -> Instance:
    return create_instance(state_root, name, control_plane_only=control_plane_only)


def test_record_is_read_back(state_root: Path) -> None:
    created = _create(state_root, "dev", control_plane_only=False)
    assert load_instance(state_root, "dev") == created
    assert load_instance(state_root, "other") is None


def test_instances_have_nothing_in_common(state_root: Path) -> None:
    first, second = _create(state_root, "a"), _create(state_root, "b")
    assert first.state_dir != second.state_dir
    assert first.loopback != second.loopback
    assert first.bridge != second.bridge
    ranges = [ipaddress.IPv4Network(text) for i in (first, second) for text in (i.pod_range, i.service_range)]
    assert not any(one.overlaps(other) for one in ranges for other in ranges if one is not other)
    nodes = [first.node(0), first.node(1), second.node(0)]
    for attribute in ("address", "veth", "network_namespace", "cgroup", "containerd_socket", "folder", "pod_range"):
        assert len({getattr(node, attribute) for node in nodes}) == len(nodes), attribute


def test_names_fit_the_kernel(state_root: Path) -> None:
    created = _create(state_root, "a")
    last = Instance("a", created.state_dir, MAX_INSTANCES - 1, False, created.ports)
    assert len(last.bridge) <= 15
    assert len(last.node(MAX_NODES - 1).veth) <= 15
    ipaddress.IPv4Network(last.service_range)


def test_number_is_free_again_after_release(state_root: Path) -> None:
    first = _create(state_root, "a")
    assert _create(state_root, "b").index == 1
    release_index(first)
    assert _create(state_root, "c").index == 0


def test_claim_of_a_deleted_folder_counts_for_nothing(state_root: Path) -> None:
    first = _create(state_root, "a")
    (first.state_dir / "instance.json").unlink()
    first.state_dir.rmdir()
    assert _create(state_root, "b").index == first.index


def test_routed_ranges_are_avoided(state_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    routed = [ipaddress.IPv4Network("10.129.7.0/24"), ipaddress.IPv4Network("10.130.0.0/15")]
    monkeypatch.setattr(module, "_routed_ranges", lambda: routed)
    assert _create(state_root, "a", control_plane_only=False).index == 2


def test_existing_instance_is_not_overwritten(state_root: Path) -> None:
    _create(state_root, "a")
    with pytest.raises(ClusterError, match=r"'a' exists .*down --name a"):
        _create(state_root, "a")


@pytest.mark.parametrize("name", ["", "A", "a/b", "-a", "a-", "..", "a" * 25])
def test_unusable_names_are_refused(state_root: Path, name: str) -> None:
    with pytest.raises(ClusterError, match="not usable"):
        _create(state_root, name)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 99}'])
def test_damaged_record_names_its_file(state_root: Path, text: str) -> None:
    file = _create(state_root, "a").state_dir / "instance.json"
    file.write_text(text)
    with pytest.raises(ClusterError, match=r"instance\.json is not a usable record"):
        load_instance(state_root, "a")


def test_record_from_another_version_says_so(state_root: Path) -> None:
    file = _create(state_root, "a").state_dir / "instance.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "version": 99}))
    with pytest.raises(ClusterError, match="version 99, expected 1"):
        load_instance(state_root, "a")


def test_second_command_on_an_instance_is_refused(state_root: Path) -> None:
    with (
        instance_lock(state_root, "a"),
        instance_lock(state_root, "b"),
        pytest.raises(ClusterError, match="another command is changing it"),
        instance_lock(state_root, "a"),
    ):
        pass


def test_taken_port_is_passed_over() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = listener.getsockname()[1]
        assert free_port("127.0.0.1", taken) != taken
    assert free_port("127.0.0.1", taken) == taken


def test_folder_that_is_too_long_for_sockets_is_refused(state_root: Path) -> None:
    with pytest.raises(ClusterError, match=r"has \d+ characters, too many .* choose a --state or a --name"):
        _create(state_root / ("x" * 60), "a")


def test_the_shared_cache_is_not_deleted_under_an_instance(state_root: Path) -> None:
    require_no_instance(state_root)
    _create(state_root, "one")
    with pytest.raises(ClusterError, match="instance one in state uses the cache; run `down --name one` first"):
        require_no_instance(state_root)
