"""The cgroups under which a node's pods run, and the processes found in them, for versions 1 and 2."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.localcluster.errors import ClusterError
from tests.localcluster.host import CGROUP_ROOT, cgroup_version

_KILL_TIMEOUT_S = 20


def _hierarchies() -> list[Path]:
    """The roots below which a group has to exist: one for each controller in version 1."""
    if cgroup_version() == 2:
        return [CGROUP_ROOT]
    return [entry for entry in CGROUP_ROOT.iterdir() if (entry / "cgroup.procs").exists() and not entry.is_symlink()]


def create_cgroup(path: str) -> None:
    """Make the group (an absolute path such as /llava-dev/node-0) wherever the kubelet looks for it."""
    for root in _hierarchies():
        folder = root
        for part in Path(path.lstrip("/")).parts:
            parent, folder = folder, folder / part
            folder.mkdir(exist_ok=True)
            # Version 1 starts a group without processors and memory; a process cannot join it so.
            for file in ("cpuset.cpus", "cpuset.mems"):
                if (parent / "cpuset.clone_children").exists() and not (folder / file).read_text().strip():
                    (folder / file).write_text((parent / file).read_text())


def _groups(path: str) -> list[Path]:
    """The group and all below it, in every hierarchy, deepest first."""
    found: list[Path] = []
    for root in _hierarchies():
        top = root / path.lstrip("/")
        if top.is_dir():
            found += [Path(folder) for folder, _, _ in os.walk(top, topdown=False)]
    return found


def processes_in(path: str) -> set[int]:
    """The ids of all processes in the group and below."""
    pids: set[int] = set()
    for folder in _groups(path):
        try:
            pids.update(int(line) for line in (folder / "cgroup.procs").read_text().split())
        except OSError:
            continue  # the group went away while we looked
    return pids - {0}


def kill_cgroup(path: str) -> None:
    """Kill every process in the group and below, and wait for the last to be gone."""
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while pids := processes_in(path):
        if time.monotonic() >= deadline:
            raise ClusterError(f"processes in cgroup {path} survive SIGKILL: {sorted(pids)}")
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)


def remove_cgroup(path: str) -> None:
    """Remove the group and all below it; its processes must be gone."""
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while groups := _groups(path):
        for folder in groups:
            try:
                folder.rmdir()
            except OSError:
                continue  # a dying process still holds it: the next round gets it
        if time.monotonic() >= deadline:
            raise ClusterError(f"cgroup {groups[-1]} cannot be removed: something still runs in it")
        time.sleep(0.05)
