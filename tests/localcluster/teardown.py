"""Removing an instance, whole or half made: its processes first, then what they held, then its folder."""

from __future__ import annotations

import shutil
import socket
from contextlib import suppress
from pathlib import Path

from tests.localcluster.cgroups import kill_cgroup, remove_cgroup
from tests.localcluster.errors import ClusterError
from tests.localcluster.instance import MAX_NODES, Instance, release_index
from tests.localcluster.network import remove_networks
from tests.localcluster.processes import marked, recorded, stop
from tests.localcluster.shell import run

_CNI_RESULTS = Path("/var/lib/cni/results")
# The kubelet links every container's log there, wherever its own folders are.
_CONTAINER_LOGS = Path("/var/log/containers")
# A path that no setting of the kubelet changes: the last one that started owns it.
_DEVICE_PLUGINS = Path("/var/lib/kubelet/device-plugins")


def _shim_sockets(instance: Instance) -> list[Path]:
    """Sockets of containerd's shims: outside of the state folder, named by a hash."""
    found = []
    for address in instance.state_dir.glob("node-*/run/io.containerd.runtime.v2.task/k8s.io/*/address"):
        text = address.read_text().strip().removeprefix("unix://")
        if text.startswith("/run/containerd/s/"):
            found.append(Path(text))
    return found


def _end_processes(instance: Instance) -> None:
    kubelets = [process for process in recorded(instance.state_dir) if process.name.startswith("kubelet-")]
    stop(kubelets)  # else they would start the containers that we end next again
    for number in range(MAX_NODES):
        kill_cgroup(instance.node(number).cgroup)
    shims = [process for process in marked(instance.state_dir) if process.name.startswith("containerd-shim")]
    stop(shims, kill_at_once=True)
    stop(marked(instance.state_dir))


def mounts_below(folder: Path) -> list[Path]:
    """Mount points in a folder, the innermost and latest first."""
    prefix = f"{folder}/"
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        # Spaces and the like are written as three octal digits.
        point = line.split()[4].encode().decode("unicode_escape")
        if point.startswith(prefix):
            found.append(Path(point))
    return found[::-1]


def unmount_below(folder: Path) -> None:
    """Unmount everything in a folder; raises ClusterError when something stays mounted."""
    for point in mounts_below(folder):
        run(["umount", point], what=f"unmounting {point}", timeout_s=30, check=False)
    for point in mounts_below(folder):
        # Someone's working folder may lie in it: detach it now, it goes when they leave.
        run(["umount", "--lazy", point], what=f"unmounting {point}", timeout_s=30)
    if left := mounts_below(folder):
        raise ClusterError(f"still mounted: {', '.join(map(str, left))}; nothing in {folder} was deleted")


def _remove_traces(instance: Instance, sockets: list[Path]) -> None:
    """Remove the files that programs insist on writing outside of the state folder."""
    for shim in sockets:
        shim.unlink(missing_ok=True)
    for result in _CNI_RESULTS.glob("*"):
        # Some are named by a pod's network alone, some by the container alone: the namespace in it is ours or not.
        if f"{instance.state_dir}/" in result.read_text(errors="replace"):
            result.unlink(missing_ok=True)
    if _CONTAINER_LOGS.is_dir():
        for link in _CONTAINER_LOGS.iterdir():
            if link.is_symlink() and link.readlink().is_relative_to(instance.state_dir):
                link.unlink(missing_ok=True)


def _remove_dead_device_socket() -> None:
    """Remove the socket for device plug-ins, and its folders, when no kubelet of this machine listens on it."""
    socket_file = _DEVICE_PLUGINS / "kubelet.sock"
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(socket_file))
        except ConnectionRefusedError:
            socket_file.unlink(missing_ok=True)
        except OSError:
            return
    with suppress(OSError):  # not empty: somebody else's
        _DEVICE_PLUGINS.rmdir()
        _DEVICE_PLUGINS.parent.rmdir()


def tear_down(instance: Instance) -> None:
    """Remove everything that `up` and `add-node` made; may be repeated after a failure."""
    sockets = _shim_sockets(instance)
    _end_processes(instance)
    unmount_below(instance.state_dir)
    remove_networks(instance)
    cgroup = str(Path(instance.node(0).cgroup).parent)
    kill_cgroup(cgroup)
    remove_cgroup(cgroup)
    _remove_traces(instance, sockets)
    _remove_dead_device_socket()
    # The record goes last: as long as it is there, `down` can be run again.
    for entry in instance.state_dir.iterdir():
        if entry.name == "instance.json":
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    shutil.rmtree(instance.state_dir)
    release_index(instance)
