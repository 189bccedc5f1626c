"""A real node: containerd, kubelet and kube-proxy in a network namespace, under a cgroup of their own."""

from __future__ import annotations

import json
from pathlib import Path

from tests.localcluster.apiclient import ApiClient
from tests.localcluster.cgroups import create_cgroup
from tests.localcluster.instance import Instance, Node
from tests.localcluster.network import cni_configuration, create_node_network
from tests.localcluster.pki import Authority, write_private
from tests.localcluster.processes import start
from tests.localcluster.shell import run, wait_until
from tests.localcluster.tools import Tools

PAUSE_IMAGE = "localhost/llava-localcluster/pause:1"
_KUBELET_PORT = 10250
_RUNTIME_TIMEOUT_S = 30
_READY_TIMEOUT_S = 90

# runc fails with "can't get final child's PID from pipe" when it may not lower oom_score_adj, as in a
# container without CAP_SYS_RESOURCE: hence restrict_oom_score_adj. Pods' network namespaces lie in the state
# folder, so that `down` finds them.
_CONTAINERD = """\
version = 2
root = "{folder}/containerd"
state = "{folder}/run"
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  sandbox_image = "{pause}"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "{folder}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
"""


def kubelet_configuration(instance: Instance, node: Node, authority: Authority) -> dict[str, object]:
    """The KubeletConfiguration: nothing in it is shared with another node of this machine."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node.address,
        "port": _KUBELET_PORT,
        "healthzBindAddress": node.address,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(authority.certificate)},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(authority.certificate_of(node.name)),
        "tlsPrivateKeyFile": str(authority.key_of(node.name)),
        "clusterDomain": "cluster.local",
        "clusterDNS": [instance.dns_address],
        # Pods that want the machine's own resolver get none: they see what the cluster gives them.
        "resolvConf": "/dev/null",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": node.cgroup,
        "failCgroupV1": False,
        "failSwapOn": False,
        "containerRuntimeEndpoint": f"unix://{node.containerd_socket}",
        # Two kubelets that share /var/log/pods delete each other's logs.
        "podLogsDir": str(node.folder / "pod-logs"),
        "volumePluginDir": str(node.folder / "volume-plugins"),
        # Images are put there by hand and cannot be pulled again: never collect them.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        # Else a machine with a nearly full disk would carry a taint from the start.
        "evictionPressureTransitionPeriod": "10s",
        "nodeStatusUpdateFrequency": "5s",
        # Renewed four times as often: a node that is cut off is noticed soon (controlplane).
        "nodeLeaseDurationSeconds": 20,
    }


def _write_configuration(instance: Instance, node: Node, authority: Authority) -> None:
    folder = node.folder
    (folder / "cni").mkdir(parents=True, exist_ok=True)
    (folder / "cni" / "10-bridge.conflist").write_text(json.dumps(cni_configuration(node), indent=2) + "\n")
    (folder / "containerd.toml").write_text(
        _CONTAINERD.format(folder=folder, socket=node.containerd_socket, pause=PAUSE_IMAGE)
    )
    authority.issue(node.name, f"/O=system:nodes/CN=system:node:{node.name}", f"DNS:{node.name},IP:{node.address}")
    write_private(folder / "kubelet.kubeconfig", authority.kubeconfig(node.name, instance.api_url))
    configuration = kubelet_configuration(instance, node, authority)
    (folder / "kubelet.json").write_text(json.dumps(configuration, indent=2) + "\n")


def ctr(node: Node, *arguments: str | Path, what: str, timeout_s: float = 60) -> str:
    """Run containerd's own client against the node, in the namespace that the kubelet uses."""
    command: list[str | Path] = ["ctr", "--address", node.containerd_socket, "--namespace", "k8s.io", *arguments]
    return run(command, what=what, timeout_s=timeout_s).stdout


def _start_runtime(instance: Instance, node: Node) -> None:
    process = start(
        f"containerd-{node.number}",
        ["containerd", "--config", node.folder / "containerd.toml"],
        state_dir=instance.state_dir,
        network_namespace=node.network_namespace,
    )

    def why_not_up() -> str | None:
        process.require_alive()
        if not node.containerd_socket.exists():
            return f"{node.containerd_socket} does not exist yet"
        command: list[str | Path] = ["ctr", "--address", node.containerd_socket, "version"]
        answer = run(command, what="asking containerd", timeout_s=10, check=False)
        return None if answer.returncode == 0 else answer.stderr.strip()

    wait_until(f"containerd of {node.name}", why_not_up, timeout_s=_RUNTIME_TIMEOUT_S, interval_s=0.1)


def prepare_node(instance: Instance, node: Node, authority: Authority) -> None:
    """Make the node's network, cgroup and configuration and start its container runtime.

    Images can be loaded from here on, before the first pod wants one.
    """
    others = [other for other in instance.nodes() if other != node]
    node.folder.mkdir(parents=True, exist_ok=True)
    create_node_network(instance, node, others)
    create_cgroup(node.cgroup)
    _write_configuration(instance, node, authority)
    _start_runtime(instance, node)


def start_node(instance: Instance, node: Node, tools: Tools, client: ApiClient) -> None:
    """Start a prepared node's kubelet and kube-proxy and wait until the node is Ready."""
    kubelet = start(
        f"kubelet-{node.number}",
        [
            tools.path("kubelet"),
            f"--config={node.folder / 'kubelet.json'}",
            f"--kubeconfig={node.folder / 'kubelet.kubeconfig'}",
            f"--hostname-override={node.name}",
            f"--node-ip={node.address}",
            f"--root-dir={node.folder / 'kubelet'}",
            # Where cAdvisor asks what is behind a cgroup: without an answer its metrics name no pod.
            f"--containerd={node.containerd_socket}",
            f"--cert-dir={node.folder / 'kubelet-pki'}",
        ],
        state_dir=instance.state_dir,
        network_namespace=node.network_namespace,
    )
    proxy = start(
        f"kube-proxy-{node.number}",
        [
            tools.path("kube-proxy"),
            f"--kubeconfig={instance.state_dir / 'proxy.kubeconfig'}",
            f"--hostname-override={node.name}",
            f"--cluster-cidr={instance.pod_range}",
            f"--bind-address={node.address}",
            f"--healthz-bind-address={node.address}:10256",
            f"--metrics-bind-address={node.address}:10249",
            "--proxy-mode=iptables",
            # The machine's connection tracking is not ours to resize.
            "--conntrack-max-per-core=0",
            "--conntrack-min=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
        ],
        state_dir=instance.state_dir,
        network_namespace=node.network_namespace,
    )

    def why_not_ready() -> str | None:
        kubelet.require_alive()
        proxy.require_alive()
        return client.why_node_not_ready(node.name)

    wait_until(f"{node.name} to be Ready", why_not_ready, timeout_s=_READY_TIMEOUT_S)
