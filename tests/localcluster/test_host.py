"""What the machine lacks is said with the line that mends it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.localcluster import host
from tests.localcluster.errors import ClusterError
from tests.localcluster.host import DebianPackage

_ABSENT = DebianPackage("no-such-package", "no-such-program-anywhere")
_PRESENT = DebianPackage("coreutils", "ls")


def test_missing_packages_are_told_by_their_programs(tmp_path: Path) -> None:
    by_file = DebianPackage("by-file", str(tmp_path / "plugin"))
    assert host.missing_packages([_PRESENT, _ABSENT, by_file]) == ["no-such-package", "by-file"]
    (tmp_path / "plugin").touch()
    assert host.missing_packages([_PRESENT, by_file]) == []


def test_message_names_packages_and_command() -> None:
    with pytest.raises(ClusterError) as caught:
        host.require_packages([_PRESENT, _ABSENT])
    message = str(caught.value)
    assert "no-such-package" in message
    assert "coreutils" not in message
    assert "apt-get install --yes --no-install-recommends no-such-package" in message
    assert "--install" in message


def test_nothing_is_installed_when_nothing_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "run", lambda *_, **__: pytest.fail("ran apt-get"))
    assert host.install_packages([_PRESENT]) == []


def test_system_without_apt_is_told_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    with pytest.raises(ClusterError, match=r"no-such-package; this system has no apt-get"):
        host.install_packages([_ABSENT])


def test_other_users_than_root_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(ClusterError, match=r"needs root \(running as UID 1000\).*sudo"):
        host.require_root()


def test_missing_cgroup_controllers_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host, "CGROUP_ROOT", tmp_path)
    for name in ("cpu", "cpuset", "pids"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tasks").touch()
    with pytest.raises(ClusterError, match=r"missing under .*: memory \(read as cgroup v1\)"):
        host.cgroup_version()
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "tasks").touch()
    assert host.cgroup_version() == 1
    (tmp_path / "cgroup.controllers").write_text("cpu cpuset memory pids io\n")
    assert host.cgroup_version() == 2
