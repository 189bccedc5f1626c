"""What the machine must offer before anything is started: rights, Debian packages, cgroups."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.localcluster.errors import ClusterError
from tests.localcluster.shell import environment, log, run

CGROUP_ROOT = Path("/sys/fs/cgroup")
_REQUIRED_CONTROLLERS = ("cpu", "cpuset", "memory", "pids")


@dataclass(frozen=True)
class DebianPackage:
    """A Debian package and the program (or file) by which its presence is told."""

    name: str
    program: str

    def is_present(self) -> bool:
        """Whether the program is on PATH or, when given as an absolute path, is a file."""
        if self.program.startswith("/"):
            return Path(self.program).exists()
        return shutil.which(self.program, path=environment()["PATH"]) is not None


CONTROL_PLANE_PACKAGES = (
    DebianPackage("etcd-server", "etcd"),
    DebianPackage("openssl", "openssl"),
)
NODE_PACKAGES = (
    DebianPackage("containerd", "containerd"),
    DebianPackage("runc", "runc"),
    DebianPackage("containernetworking-plugins", "/usr/lib/cni/bridge"),
    DebianPackage("iptables", "iptables"),
    DebianPackage("iproute2", "ip"),
    DebianPackage("conntrack", "conntrack"),
    DebianPackage("util-linux", "nsenter"),
)
IMAGE_PACKAGES = (
    DebianPackage("buildah", "buildah"),
    DebianPackage("debootstrap", "debootstrap"),
)
ALL_PACKAGES = CONTROL_PLANE_PACKAGES + NODE_PACKAGES + IMAGE_PACKAGES


def require_root() -> None:
    """Raise ClusterError unless the process may make network namespaces, mounts and cgroups."""
    if os.geteuid() != 0:
        raise ClusterError(
            f"the embedded cluster needs root (running as UID {os.geteuid()}): it makes network namespaces, "
            "mounts and cgroups; run the same command as root, for instance with `sudo -E`"
        )


def missing_packages(wanted: Iterable[DebianPackage]) -> list[str]:
    """The names of the Debian packages whose programs are not on this machine."""
    return [package.name for package in wanted if not package.is_present()]


def apt_command(names: Iterable[str]) -> str:
    """The line that a person types to install the packages."""
    return f"apt-get update && apt-get install --yes --no-install-recommends {' '.join(names)}"


def require_packages(wanted: Iterable[DebianPackage]) -> None:
    """Raise ClusterError naming the missing Debian packages and the line that installs them."""
    missing = missing_packages(wanted)
    if missing:
        raise ClusterError(
            f"Debian packages are missing: {' '.join(missing)}; add --install to the command, or run: "
            f"{apt_command(missing)}"
        )


def install_packages(wanted: Iterable[DebianPackage]) -> list[str]:
    """Install the missing Debian packages; returns their names (none when everything was there)."""
    missing = missing_packages(wanted)
    if not missing:
        return []
    require_root()
    if shutil.which("apt-get", path=environment()["PATH"]) is None:
        raise ClusterError(
            f"programs of these Debian packages are missing: {' '.join(missing)}; this system has no apt-get, "
            "so install their equivalents with its own package manager"
        )
    log(f"installing Debian packages: {' '.join(missing)}")
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    lock = ("-o", "DPkg::Lock::Timeout=300")
    run(["apt-get", *lock, "update", "--quiet"], what="apt-get update", timeout_s=600, env=env)
    # A service manager would start Debian's own containerd and etcd, which this cluster does not use.
    run(
        ["apt-get", *lock, "install", "--yes", "--quiet", "--no-install-recommends", *missing],
        what="installing Debian packages",
        timeout_s=1200,
        env={**env, "RUNLEVEL": "1"},
    )
    require_packages(wanted)
    return missing


def cgroup_version() -> int:
    """1 or 2, as mounted on this machine.

    Raises ClusterError when neither is usable: pods need the cpu, cpuset, memory and pids controllers.
    """
    if (CGROUP_ROOT / "cgroup.controllers").exists():
        available = (CGROUP_ROOT / "cgroup.controllers").read_text().split()
        version = 2
    else:
        available = [name for name in _REQUIRED_CONTROLLERS if (CGROUP_ROOT / name / "tasks").exists()]
        version = 1
    missing = [name for name in _REQUIRED_CONTROLLERS if name not in available]
    if missing:
        raise ClusterError(
            f"cgroup controllers are missing under {CGROUP_ROOT}: {' '.join(missing)} "
            f"(read as cgroup v{version}); mount them (v1) or enable them in the root's subtree (v2)"
        )
    return version
