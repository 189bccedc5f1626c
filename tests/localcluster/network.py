"""The nodes' network: one bridge an instance, one network namespace and cable a node.

Each node has a network namespace to itself, so the rules that kube-proxy and the CNI plug-ins write live and
die with it: nothing of the machine's own firewall is touched. Every route on the machine goes away with the
bridge.
"""

from __future__ import annotations

from pathlib import Path

from tests.localcluster.instance import Instance, Node
from tests.localcluster.shell import run


def _ip(*arguments: str, what: str) -> None:
    run(["ip", *arguments], what=what, timeout_s=20)


def create_bridge(instance: Instance) -> None:
    """Make the switch that connects the machine and the nodes."""
    what = f"making bridge {instance.bridge}"
    _ip("link", "add", instance.bridge, "type", "bridge", what=what)
    _ip("address", "add", f"{instance.gateway}/24", "dev", instance.bridge, what=what)
    _ip("link", "set", instance.bridge, "up", what=what)


def create_node_network(instance: Instance, node: Node, others: list[Node]) -> None:
    """Make a node's network namespace, plug it into the bridge and tell everyone where its pods are.

    `others` are the nodes that exist already.
    """
    namespace, inside = node.network_namespace, ("-n", node.network_namespace)
    what = f"making the network of {node.name}"
    _ip("netns", "add", namespace, what=what)
    _ip("link", "add", node.veth, "type", "veth", "peer", "name", "eth0", "netns", namespace, what=what)
    _ip("link", "set", node.veth, "master", instance.bridge, "up", what=what)
    _ip(*inside, "address", "add", f"{node.address}/24", "dev", "eth0", what=what)
    _ip(*inside, "link", "set", "lo", "up", what=what)
    _ip(*inside, "link", "set", "eth0", "up", what=what)
    _ip(*inside, "route", "add", "default", "via", instance.gateway, what=what)
    run(
        ["nsenter", f"--net=/run/netns/{namespace}", "--", "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"],
        what=f"allowing {node.name} to forward its pods' packets",
        timeout_s=20,
    )
    _ip("route", "add", node.pod_range, "via", node.address, what=what)
    for other in others:
        _ip(*inside, "route", "add", other.pod_range, "via", other.address, what=what)
        _ip("-n", other.network_namespace, "route", "add", node.pod_range, "via", node.address, what=what)
    if not others:
        # Any node translates service addresses; the machine asks the first.
        _ip("route", "add", instance.service_range, "via", node.address, what=what)


def plug(node: Node, *, plugged: bool) -> None:
    """Pull the node's network cable, or put it back: addresses and routes stay, and pods of one node reach each other.

    What pods write to volumes goes on: those are folders of the machine.
    """
    state = "up" if plugged else "down"
    _ip("link", "set", node.veth, state, what=f"setting the network cable of {node.name} {state}")


def remove_networks(instance: Instance) -> None:
    """Remove the namespaces, cables and the bridge; what is gone already is fine."""
    prefix = f"lfc{instance.index}-"
    for namespace in sorted(Path("/run/netns").glob(f"{prefix}node-*")):
        _ip("netns", "delete", namespace.name, what=f"removing network namespace {namespace.name}")
    links = [instance.bridge, *(instance.node(number).veth for number in range(8))]
    for link in links:
        # A namespace takes its cable along, but only a moment after it is gone.
        run(["ip", "link", "delete", link], what=f"removing {link}", timeout_s=20, check=False)


def cni_configuration(node: Node) -> dict[str, object]:
    """What the runtime reads to connect a pod: a bridge inside the node, addresses of the node's range."""
    bridge = {
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            # Its default folder would be shared by all nodes and instances of the machine.
            "dataDir": str(node.folder / "cni-addresses"),
            "ranges": [[{"subnet": node.pod_range}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    return {
        "cniVersion": "1.0.0",
        "name": node.network_name,
        "plugins": [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}],
    }
