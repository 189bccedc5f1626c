"""Breaking things from outside, as a kernel, a cable or an administrator would: nobody inside is asked."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.kubectl import Kubectl, KubectlError
from tests.localcluster.cgroups import processes_in
from tests.localcluster.cluster import LocalCluster
from tests.localcluster.host import CGROUP_ROOT, cgroup_version

Pod = dict[str, Any]

STAYS = "node-0"
"""Node of the operator."""
GOES = "node-1"
"""Node that the tests take away."""
TRAINING = "llava_trainer.training.worker"
"""In the command line of a training process."""
OPERATOR = "llava-operator"
_UNREACHABLE = "node.kubernetes.io/unreachable"
_PERIOD_US = 100_000
_HEADROOM_BYTES = 32 * 2**20
_OVERFLOW_BYTES = 160 * 2**20
# Into memory that counts for the container and belongs to no process: so the largest one is killed, which trains.
_FILL_MEMORY = f"""
with open("/dev/shm/fill", "wb") as file:
    for _ in range({_OVERFLOW_BYTES // 2**20}):
        file.write(bytes(2**20))
        file.flush()
"""


@dataclass(frozen=True, kw_only=True)
class Breaker:
    """Breaks what runs on the nodes of an embedded cluster."""

    cluster: LocalCluster
    kubectl: Kubectl

    def cgroup(self, pod: Pod) -> str:
        """Path of the group that the pod's container is in."""
        node = self.cluster.node(pod["spec"]["nodeName"])
        quality = pod["status"]["qosClass"].lower()
        [container] = pod["status"]["containerStatuses"]
        identifier = container["containerID"].removeprefix("containerd://")
        return f"{node.cgroup}/kubepods/{quality}/pod{pod['metadata']['uid']}/{identifier}"

    def send(self, pod: Pod, program: str, number: signal.Signals) -> None:
        """Send a signal to the one process of the pod that has ``program`` in its command line."""
        [pid] = self.find_processes(pod, program)
        os.kill(pid, number)

    def find_processes(self, pod: Pod, program: str = "") -> list[int]:
        """Processes of the pod's container with ``program`` in their command lines, whatever Kubernetes thinks."""
        return [pid for pid in processes_in(self.cgroup(pod)) if program in _read_command(pid)]

    @contextmanager
    def frozen(self, pods: list[Pod]) -> Iterator[None]:
        """Let nothing in the containers of these pods run meanwhile."""
        self._signal_all(pods, signal.SIGSTOP)
        try:
            yield
        finally:
            self.thaw(pods)

    def thaw(self, pods: list[Pod]) -> None:
        """Let the containers of these pods run again before ``frozen`` does."""
        self._signal_all(pods, signal.SIGCONT)

    def _signal_all(self, pods: list[Pod], number: signal.Signals) -> None:
        for pid in [pid for pod in pods if _runs(pod) for pid in self.find_processes(pod)]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def slow_down(self, pod: Pod, share: float) -> None:
        """Give the container this share of a processor and no more; 0: as much as it likes."""
        group = self.cgroup(pod).lstrip("/")
        quota = str(int(share * _PERIOD_US)) if share else ""
        if cgroup_version() == 1:
            (CGROUP_ROOT / "cpu" / group / "cpu.cfs_quota_us").write_text(quota or "-1")
        else:
            (CGROUP_ROOT / group / "cpu.max").write_text(f"{quota or 'max'} {_PERIOD_US}")

    @contextmanager
    def cordoned(self, node: str) -> Iterator[None]:
        """Let no further pod onto a node."""
        self.kubectl.run("cordon", node)
        try:
            yield
        finally:
            self.kubectl.run("uncordon", node)

    @contextmanager
    def cut_off(self, node: str) -> Iterator[None]:
        """Cut a node off from everything but the volumes."""
        self.cluster.cut_off(node)
        try:
            yield
        finally:
            self.cluster.reconnect(node)

    def is_tainted(self, node: str) -> bool:
        """Whether Kubernetes has given the node up: pods that do not tolerate it are deleted from now on."""
        taints = self.kubectl.get("node", node)["spec"].get("taints", [])
        return any((taint["key"], taint["effect"]) == (_UNREACHABLE, "NoExecute") for taint in taints)

    def exhaust_memory(self, pod: Pod) -> None:
        """Make the container go over its memory limit, which is lowered to a little more than what it takes."""
        memory = "memory" if cgroup_version() == 1 else ""
        folder = CGROUP_ROOT / memory / self.cgroup(pod).lstrip("/")
        usage, limit = (
            ("memory.usage_in_bytes", "memory.limit_in_bytes") if memory else ("memory.current", "memory.max")
        )
        (folder / limit).write_text(str(int((folder / usage).read_text()) + _HEADROOM_BYTES))
        try:
            self.kubectl.run("exec", pod["metadata"]["name"], "--", "python3", "-c", _FILL_MEMORY)
        except KubectlError:
            return  # the container ended meanwhile, and this with it


def _runs(pod: Pod) -> bool:
    return any("running" in status["state"] for status in pod["status"].get("containerStatuses", []))


def _read_command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""  # it ended while we looked
