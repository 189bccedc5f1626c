"""What one instance of the cluster is: its folders, addresses and names, all derived from one number.

The number is claimed under a machine-wide lock. Distinct numbers mean distinct address ranges and interface
names, distinct names mean distinct folders and cgroups: instances never meet. This module starts nothing.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.localcluster.errors import ClusterError
from tests.localcluster.paths import RUN_ROOT
from tests.localcluster.shell import run

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,22}[a-z0-9])?")
# Two /16 ranges an instance, from 10.128.0.0 up.
MAX_INSTANCES = 60
# Pod ranges are 10.P.<node>.0/24 and 10.P.255.0/24 holds the nodes themselves.
MAX_NODES = 8
_INTERFACES = Path("/sys/class/net")
_STATE_FILE = "instance.json"
_STATE_VERSION = 1
# A socket's path may have 107 characters, and the kubelet makes this one below the instance's folder.
_LONGEST_SOCKET = "/node-0/kubelet/pod-resources/4294967295"
_MAX_STATE_DIR_LENGTH = 107 - len(_LONGEST_SOCKET)


@dataclass(frozen=True)
class Ports:
    """Ports of the control plane; the usual ones unless something else on the machine has them."""

    api: int
    etcd: int
    etcd_peer: int
    controller_manager: int
    scheduler: int


_USUAL_PORTS = Ports(api=6443, etcd=2379, etcd_peer=2380, controller_manager=10257, scheduler=10259)


@dataclass(frozen=True)
class Node:
    """Folders, addresses and names of one node; `number` counts from 0."""

    instance_name: str
    instance_index: int
    state_dir: Path
    number: int

    @property
    def name(self) -> str:
        """The Node object's name."""
        return f"node-{self.number}"

    @property
    def folder(self) -> Path:
        """Everything that this node's programs write."""
        return self.state_dir / self.name

    @property
    def address(self) -> str:
        """The node's InternalIP."""
        return f"{_prefix(self.instance_index)}.255.{10 + self.number}"

    @property
    def pod_range(self) -> str:
        """The addresses of this node's pods."""
        return f"{_prefix(self.instance_index)}.{self.number}.0/24"

    @property
    def network_namespace(self) -> str:
        """Its name under /run/netns."""
        return f"lfc{self.instance_index}-{self.name}"

    @property
    def veth(self) -> str:
        """The machine's end of the node's network cable."""
        return f"lfc{self.instance_index}n{self.number}"

    @property
    def cgroup(self) -> str:
        """The parent of all its pods' cgroups."""
        return f"/llava-{self.instance_name}/{self.name}"

    @property
    def containerd_socket(self) -> Path:
        """Where its container runtime listens."""
        return self.folder / "containerd.sock"

    @property
    def network_name(self) -> str:
        """The CNI network: names files outside of the state folder, hence unique."""
        return f"lfc{self.instance_index}-{self.name}"


def _prefix(index: int) -> str:
    return f"10.{128 + 2 * index}"


@dataclass(frozen=True)
class Instance:
    """One cluster: what `up` decided and every later command reads."""

    name: str
    state_dir: Path
    index: int
    control_plane_only: bool
    ports: Ports

    @property
    def loopback(self) -> str:
        """The loopback address of the parts that no pod talks to."""
        return f"127.77.{self.index}.1"

    @property
    def gateway(self) -> str:
        """The machine's address on the nodes' network."""
        return f"{_prefix(self.index)}.255.1"

    @property
    def api_address(self) -> str:
        """Where the API server listens: on the nodes' network when there are nodes."""
        return self.loopback if self.control_plane_only else self.gateway

    @property
    def api_url(self) -> str:
        """The API server's address for kubeconfigs."""
        return f"https://{self.api_address}:{self.ports.api}"

    @property
    def pod_range(self) -> str:
        """All pods, without the nodes and the machine: kube-proxy rewrites the source of what comes from those.

        Else an answer from another node's pod would take the short way back and arrive from an unknown address.
        """
        return f"{_prefix(self.index)}.0.0/17"

    @property
    def service_range(self) -> str:
        """Services' cluster addresses."""
        return f"10.{129 + 2 * self.index}.0.0/16"

    @property
    def service_api_address(self) -> str:
        """The `kubernetes` service: the range's first address."""
        return f"10.{129 + 2 * self.index}.0.1"

    @property
    def dns_address(self) -> str:
        """The cluster's DNS service."""
        return f"10.{129 + 2 * self.index}.0.10"

    @property
    def bridge(self) -> str:
        """The switch that the nodes' cables are plugged into."""
        return f"lfc{self.index}br"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.state_dir / "admin.kubeconfig"

    @property
    def volumes_dir(self) -> Path:
        """Where the default storage class makes its volumes."""
        return self.state_dir / "volumes"

    def node(self, number: int) -> Node:
        """The description of a node, whether it was added or not."""
        if not 0 <= number < MAX_NODES:
            raise ClusterError(f"node number {number} is outside 0..{MAX_NODES - 1}")
        return Node(self.name, self.index, self.state_dir, number)

    def nodes(self) -> list[Node]:
        """The nodes that were added, by their folders."""
        return [self.node(number) for number in range(MAX_NODES) if self.node(number).folder.is_dir()]


def check_name(name: str) -> str:
    """The name itself; raises ClusterError when it cannot name folders and cgroups."""
    if not _NAME.fullmatch(name):
        raise ClusterError(
            f"instance name {name!r} is not usable: up to 24 lower-case letters, digits and inner hyphens, "
            "the first a letter"
        )
    return name


def free_port(address: str, preferred: int) -> int:
    """`preferred` when nothing listens there, otherwise one that the kernel picks."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ClusterError(f"no free port on {address}")


def _choose_ports(loopback: str) -> Ports:
    return Ports(**{name: free_port(loopback, port) for name, port in asdict(_USUAL_PORTS).items()})


@contextmanager
def machine_lock() -> Iterator[None]:
    """Held while a number is claimed or given back, by all instances of this machine."""
    RUN_ROOT.mkdir(parents=True, exist_ok=True)
    with (RUN_ROOT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def instance_lock(state_root: Path, name: str) -> Iterator[None]:
    """Held by a command that changes an instance; a second one is refused instead of left hanging."""
    state_root.mkdir(parents=True, exist_ok=True)
    with (state_root / f".{check_name(name)}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ClusterError(
                f"instance {name!r}: another command is changing it right now; try again when that has ended"
            ) from error
        yield


def _routed_ranges() -> list[ipaddress.IPv4Network]:
    routes = json.loads(run(["ip", "-4", "-json", "route", "show"], what="reading routes", timeout_s=10).stdout)
    return [ipaddress.IPv4Network(route["dst"], strict=False) for route in routes if route["dst"] != "default"]


def _is_free(index: int, routed: list[ipaddress.IPv4Network]) -> bool:
    claim = RUN_ROOT / f"index-{index}"
    if claim.exists() and Path(claim.read_text()).exists():
        return False
    if (_INTERFACES / f"lfc{index}br").exists():
        return False
    wanted = ipaddress.IPv4Network(f"{_prefix(index)}.0.0/15")
    return not any(wanted.overlaps(known) for known in routed)


def create_instance(state_root: Path, name: str, *, control_plane_only: bool) -> Instance:
    """Claim a number for a new instance and write its state file.

    Raises ClusterError when the name is unusable, the instance exists or all numbers are taken.
    """
    state_dir = state_root / check_name(name)
    if len(str(state_dir)) > _MAX_STATE_DIR_LENGTH:
        raise ClusterError(
            f"the instance's folder {state_dir} has {len(str(state_dir))} characters, too many for the sockets in it; "
            f"choose a --state or a --name that make it {_MAX_STATE_DIR_LENGTH} at most"
        )
    if (state_dir / _STATE_FILE).exists():
        raise ClusterError(f"instance {name!r} exists in {state_dir}; run `down --name {name}` first")
    with machine_lock():
        routed = [] if control_plane_only else _routed_ranges()
        index = next((number for number in range(MAX_INSTANCES) if _is_free(number, routed)), None)
        if index is None:
            raise ClusterError(f"all {MAX_INSTANCES} instance numbers are taken; see {RUN_ROOT}")
        instance = Instance(name, state_dir, index, control_plane_only, _choose_ports(f"127.77.{index}.1"))
        state_dir.mkdir(parents=True, exist_ok=True)
        state = {
            "version": _STATE_VERSION,
            "name": name,
            "index": index,
            "controlPlaneOnly": control_plane_only,
            "ports": asdict(instance.ports),
        }
        scratch = state_dir / f"{_STATE_FILE}.new"
        scratch.write_text(json.dumps(state, indent=2) + "\n")
        scratch.rename(state_dir / _STATE_FILE)
        (RUN_ROOT / f"index-{index}").write_text(str(state_dir))
    return instance


def load_instance(state_root: Path, name: str) -> Instance | None:
    """What `up` recorded, None when there is no such instance.

    Raises ClusterError when the record cannot be read, naming the file.
    """
    state_dir = state_root / check_name(name)
    file = state_dir / _STATE_FILE
    try:
        state = json.loads(file.read_text())
        if state["version"] != _STATE_VERSION:
            raise ValueError(f"version {state['version']}, expected {_STATE_VERSION}")
        return Instance(state["name"], state_dir, state["index"], state["controlPlaneOnly"], Ports(**state["ports"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ClusterError(f"{file} is not a usable record of an instance ({error!r})") from error


def require_no_instance(state_root: Path) -> None:
    """Raise ClusterError when an instance exists, naming all of them."""
    names = sorted(file.parent.name for file in state_root.glob(f"*/{_STATE_FILE}"))
    if names:
        raise ClusterError(
            f"instance {', '.join(names)} in {state_root} uses the cache; run `down --name {names[0]}` first"
        )


def release_index(instance: Instance) -> None:
    """Give the instance's number back once nothing uses it any more."""
    with machine_lock():
        claim = RUN_ROOT / f"index-{instance.index}"
        if claim.exists() and claim.read_text() == str(instance.state_dir):
            claim.unlink()
