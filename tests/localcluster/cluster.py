"""The embedded cluster as a Python object, for test fixtures and the command line alike."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.localcluster import controlplane, host, loading, processes
from tests.localcluster.apiclient import ApiClient, connect
from tests.localcluster.errors import ClusterError
from tests.localcluster.instance import Instance, Node, create_instance, instance_lock, load_instance
from tests.localcluster.network import create_bridge, plug
from tests.localcluster.node import prepare_node, start_node
from tests.localcluster.paths import DEFAULT_STATE_ROOT
from tests.localcluster.pki import Authority
from tests.localcluster.shell import log
from tests.localcluster.teardown import tear_down
from tests.localcluster.tools import ALL_TOOL_SETS, KUBERNETES, Tools, ensure_tools

__all__ = ["ClusterError", "ClusterStatus", "LocalCluster"]


@dataclass(frozen=True)
class ClusterStatus:
    """What `status` reports; `processes` maps each program to whether it runs."""

    name: str
    state_dir: str
    exists: bool
    ready: bool
    api_url: str
    kubeconfig: str
    control_plane_only: bool
    nodes: tuple[str, ...]
    processes: dict[str, bool]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


class LocalCluster:
    """One instance by name: nothing happens before `up`, and `down` leaves nothing behind.

    Every method raises ClusterError when it cannot do what its name says.
    """

    def __init__(self, name: str = "dev", *, state_root: Path = DEFAULT_STATE_ROOT) -> None:
        self.name = name
        self.state_root = state_root
        self._tools: Tools | None = None

    def up(self, *, control_plane_only: bool = False, num_nodes: int = 1) -> None:
        """Start the control plane and the nodes and wait until they are ready.

        A running instance of the same kind is left as it is; the remains of a broken one are removed first.
        """
        host.require_root()
        needed = host.CONTROL_PLANE_PACKAGES + (() if control_plane_only else host.NODE_PACKAGES)
        host.require_packages(needed)
        if not control_plane_only:
            host.cgroup_version()
        tools = ensure_tools((KUBERNETES,))
        with instance_lock(self.state_root, self.name):
            existing = load_instance(self.state_root, self.name)
            if existing is not None:
                if self._is_running(existing):
                    self._require_kind(existing, control_plane_only)
                    log(f"instance {self.name!r} is up already")
                    return
                log(f"instance {self.name!r} is broken or half made: removing it first")
                tear_down(existing)
            instance = create_instance(self.state_root, self.name, control_plane_only=control_plane_only)
            self._start(instance, tools, num_nodes)

    def down(self) -> None:
        """Remove the instance; that there is none is fine."""
        host.require_root()
        with instance_lock(self.state_root, self.name):
            instance = load_instance(self.state_root, self.name)
            if instance is not None:
                tear_down(instance)

    def add_node(self) -> str:
        """Add one more real node and wait until it is Ready; returns its name."""
        with instance_lock(self.state_root, self.name):
            instance = self._require_instance()
            if instance.control_plane_only:
                raise ClusterError(
                    f"instance {self.name!r} was started with --control-plane-only and takes no nodes; "
                    "run `down`, then `up` without it"
                )
            number = max((node.number for node in instance.nodes()), default=-1) + 1
            node = instance.node(number)
            self._add_node(instance, node, ensure_tools((KUBERNETES,)), *self._access(instance))
            return node.name

    def load_image(self, what: str, *, nodes: list[str] | None = None) -> None:
        """Put an image (a name in the local storage, or an archive file) onto the nodes, all by default."""
        for name in nodes if nodes is not None else [node.name for node in self._require_instance().nodes()]:
            started = time.monotonic()
            loading.load_image(self.node(name), what)
            log(f"loaded {what} into {name} in {time.monotonic() - started:.1f} s")

    def node(self, name: str) -> Node:
        """Addresses, folders and cgroup of a node of the running instance."""
        present = {node.name: node for node in self._require_instance().nodes()}
        if name not in present:
            raise ClusterError(f"instance {self.name!r} has no node {name!r}; it has {', '.join(present)}")
        return present[name]

    def cut_off(self, name: str) -> None:
        """Cut a node off from everything but the volumes; its pods run on. Cut off twice is cut off."""
        plug(self.node(name), plugged=False)

    def reconnect(self, name: str) -> None:
        """End what `cut_off` began."""
        plug(self.node(name), plugged=True)

    def kill_api_server(self) -> None:
        """Kill the API server as a crash would; nothing starts it again but `start_api_server`."""
        running = processes.recorded(self._require_instance().state_dir)
        processes.stop([one for one in running if one.name == controlplane.API_SERVER], kill_at_once=True)

    def start_api_server(self) -> None:
        """Start the API server again after `kill_api_server`, and wait until it is ready."""
        instance = self._require_instance()
        authority, client = self._access(instance)
        server = controlplane.start_api_server(instance, authority, ensure_tools((KUBERNETES,)))
        controlplane.wait_for_api_server(instance, [server], client)

    def status(self) -> ClusterStatus:
        """What is there and what runs."""
        instance = load_instance(self.state_root, self.name)
        if instance is None:
            folder = str(self.state_root / self.name)
            return ClusterStatus(self.name, folder, False, False, "", "", False, (), {})
        return ClusterStatus(
            name=self.name,
            state_dir=str(instance.state_dir),
            exists=True,
            ready=self._is_running(instance),
            api_url=instance.api_url,
            kubeconfig=str(instance.kubeconfig),
            control_plane_only=instance.control_plane_only,
            nodes=tuple(node.name for node in instance.nodes()),
            processes={process.name: process.is_alive() for process in processes.recorded(instance.state_dir)},
        )

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig of the running instance."""
        return self._require_instance().kubeconfig

    @property
    def instance(self) -> Instance:
        """Addresses and folders of the instance."""
        return self._require_instance()

    def tools(self) -> Tools:
        """The built programs: `cluster.tools().path("kubectl")`; builds what is missing, checks them once."""
        if self._tools is None:
            self._tools = ensure_tools(ALL_TOOL_SETS)
        return self._tools

    def _require_instance(self) -> Instance:
        instance = load_instance(self.state_root, self.name)
        if instance is None:
            raise ClusterError(
                f"there is no instance {self.name!r} in {self.state_root}; run "
                f"`python3 -m tests.localcluster up --name {self.name}` first"
            )
        return instance

    def _require_kind(self, instance: Instance, control_plane_only: bool) -> None:
        if instance.control_plane_only != control_plane_only:
            kind = "without" if instance.control_plane_only else "with"
            raise ClusterError(f"instance {self.name!r} is up {kind} nodes; run `down --name {self.name}` first")

    def _access(self, instance: Instance) -> tuple[Authority, ApiClient]:
        authority = Authority(instance.state_dir / "pki")
        return authority, connect(instance.api_url, authority)

    def _is_running(self, instance: Instance) -> bool:
        started = processes.recorded(instance.state_dir)
        if not started or not all(process.is_alive() for process in started):
            return False
        _, client = self._access(instance)
        return client.why_not_ready() is None

    def _start(self, instance: Instance, tools: Tools, num_nodes: int) -> None:
        started = time.monotonic()
        if not instance.control_plane_only:
            create_bridge(instance)  # the API server listens on its address
        authority = controlplane.create_credentials(instance)
        client = connect(instance.api_url, authority)
        controlplane.start_control_plane(instance, authority, tools, client)
        log(f"control plane of {self.name!r} is up after {time.monotonic() - started:.1f} s")
        if instance.control_plane_only:
            return
        controlplane.allow_proxies(client)
        controlplane.start_dns(instance, tools, client)
        controlplane.start_storage(instance, tools, client)
        for number in range(num_nodes):
            self._add_node(instance, instance.node(number), tools, authority, client)

    def _add_node(self, instance: Instance, node: Node, tools: Tools, authority: Authority, client: ApiClient) -> None:
        started = time.monotonic()
        prepare_node(instance, node, authority)
        loading.load_pause_image(node, tools.path("pause"))
        start_node(instance, node, tools, client)
        log(f"{node.name} of {self.name!r} is Ready after {time.monotonic() - started:.1f} s")
