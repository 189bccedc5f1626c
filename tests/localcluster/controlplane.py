"""etcd, the API server, the controller manager and the scheduler; DNS and volumes when there are nodes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.localcluster.apiclient import ApiClient
from tests.localcluster.instance import Instance
from tests.localcluster.pki import Authority, create_authority, write_private
from tests.localcluster.processes import Process, start
from tests.localcluster.shell import wait_until
from tests.localcluster.tools import Tools

STORAGE_CLASS = "local"
API_SERVER = "kube-apiserver"
_PROVISIONER = "localcluster/folder"
_READY_TIMEOUT_S = 90
# Kubernetes waits 50 s; tests that cut a node off would wait with it. A kubelet has four tries in this time.
_NODE_SILENT_S = 20


def create_credentials(instance: Instance) -> Authority:
    """Make the authority, the control plane's certificates and the kubeconfigs."""
    authority = create_authority(instance.state_dir / "pki")
    names = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
    addresses = ["127.0.0.1", instance.loopback, instance.gateway, instance.service_api_address]
    alternative = ",".join([*(f"DNS:{name}" for name in names), *(f"IP:{address}" for address in addresses)])
    authority.issue("apiserver", "/CN=kube-apiserver", alternative)
    subjects = {
        "admin": "/O=system:masters/CN=admin",
        "controller-manager": "/CN=system:kube-controller-manager",
        "scheduler": "/CN=system:kube-scheduler",
        "proxy": "/CN=system:kube-proxy",
    }
    for name, subject in subjects.items():
        authority.issue(name, subject, f"DNS:{name}")
        write_private(instance.state_dir / f"{name}.kubeconfig", authority.kubeconfig(name, instance.api_url))
    return authority


def _start_etcd(instance: Instance) -> Process:
    client = f"http://{instance.loopback}:{instance.ports.etcd}"
    peer = f"http://{instance.loopback}:{instance.ports.etcd_peer}"
    return start(
        "etcd",
        [
            "etcd", "--data-dir", instance.state_dir / "etcd",
            # Fit for tests, unfit for any claim about durability.
            "--unsafe-no-fsync",
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", f"default={peer}",
        ],
        state_dir=instance.state_dir,
        extra_environment={"ETCD_UNSUPPORTED_ARCH": "arm64"},
    )  # fmt: skip


def start_api_server(instance: Instance, authority: Authority, tools: Tools) -> Process:
    """Start the API server alone; `wait_for_api_server` says when it answers."""
    pki = authority.folder
    return start(
        API_SERVER,
        [
            tools.path("kube-apiserver"),
            f"--etcd-servers=http://{instance.loopback}:{instance.ports.etcd}",
            f"--bind-address={instance.api_address}",
            f"--secure-port={instance.ports.api}",
            f"--advertise-address={instance.api_address}",
            # A loopback address is refused as an endpoint; without nodes nobody looks for one.
            f"--endpoint-reconciler-type={'none' if instance.control_plane_only else 'lease'}",
            f"--service-cluster-ip-range={instance.service_range}",
            f"--client-ca-file={authority.certificate}",
            f"--tls-cert-file={authority.certificate_of('apiserver')}",
            f"--tls-private-key-file={authority.key_of('apiserver')}",
            f"--service-account-key-file={pki / 'sa.pub'}",
            f"--service-account-signing-key-file={pki / 'sa.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged",
            f"--kubelet-client-certificate={authority.certificate_of('admin')}",
            f"--kubelet-client-key={authority.key_of('admin')}",
            f"--kubelet-certificate-authority={authority.certificate}",
            # By address: no node's name has to be resolvable on this machine.
            "--kubelet-preferred-address-types=InternalIP",
        ],
        state_dir=instance.state_dir,
    )


def _start_controllers(instance: Instance, authority: Authority, tools: Tools) -> list[Process]:
    state = instance.state_dir
    controller_manager: list[str | Path] = [
        tools.path("kube-controller-manager"),
        f"--kubeconfig={state / 'controller-manager.kubeconfig'}",
        f"--bind-address={instance.loopback}",
        f"--secure-port={instance.ports.controller_manager}",
        f"--service-account-private-key-file={authority.folder / 'sa.key'}",
        f"--root-ca-file={authority.certificate}",
        "--use-service-account-credentials",
        f"--cluster-signing-cert-file={authority.certificate}",
        f"--cluster-signing-key-file={authority.key}",
        # Pod ranges follow from the nodes' numbers, see instance.Node.
        "--allocate-node-cidrs=false",
        f"--flex-volume-plugin-dir={state / 'volume-plugins'}",
        f"--node-monitor-grace-period={_NODE_SILENT_S}s",
        # The defaults (20 a second) are for clusters that others live on too; tests would wait for them.
        "--kube-api-qps=500",
        "--kube-api-burst=500",
        "--leader-elect=false",
    ]
    scheduler: list[str | Path] = [
        tools.path("kube-scheduler"),
        f"--kubeconfig={state / 'scheduler.kubeconfig'}",
        f"--bind-address={instance.loopback}",
        f"--secure-port={instance.ports.scheduler}",
        "--leader-elect=false",
    ]
    return [
        start("kube-controller-manager", controller_manager, state_dir=state),
        start("kube-scheduler", scheduler, state_dir=state),
    ]


def wait_for_api_server(instance: Instance, needed: Sequence[Process], client: ApiClient) -> None:
    """Wait until the API server answers as ready; raises ClusterError when one of the processes has ended."""

    def why_not_ready() -> str | None:
        for process in needed:
            process.require_alive()
        return client.why_not_ready()

    wait_until(f"the API server at {instance.api_url}", why_not_ready, timeout_s=_READY_TIMEOUT_S)


def start_control_plane(instance: Instance, authority: Authority, tools: Tools, client: ApiClient) -> None:
    """Start the control plane and wait until the API server answers as ready."""
    etcd = _start_etcd(instance)
    wait_for_api_server(instance, [etcd, start_api_server(instance, authority, tools)], client)
    controllers = _start_controllers(instance, authority, tools)

    def why_no_service_account() -> str | None:
        for process in controllers:
            process.require_alive()
        answer = client.request("GET", "/api/v1/namespaces/default/serviceaccounts?limit=1")
        return None if answer["items"] else "it has not been made yet"

    # Pods cannot be created before it exists, and its maker being up says that the controllers run.
    wait_until("the default service account", why_no_service_account, timeout_s=60)


_COREFILE = """\
.:53 {{
    bind {address}
    errors
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {kubeconfig}
        pods insecure
    }}
}}
"""


def start_dns(instance: Instance, tools: Tools, client: ApiClient) -> None:
    """Start CoreDNS on the machine's address in the nodes' network and give it the usual service address."""
    corefile = instance.state_dir / "Corefile"
    corefile.write_text(_COREFILE.format(address=instance.gateway, kubeconfig=instance.kubeconfig))
    start("coredns", [tools.path("coredns"), "-conf", corefile], state_dir=instance.state_dir)
    namespace = "kube-system"
    ports = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]
    client.create(
        f"/api/v1/namespaces/{namespace}/services",
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": namespace},
            "spec": {"clusterIP": instance.dns_address, "ports": ports},
        },
    )
    client.create(
        f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices",
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "kube-dns-1",
                "namespace": namespace,
                "labels": {"kubernetes.io/service-name": "kube-dns"},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": [instance.gateway]}],
            "ports": ports,
        },
    )


def start_storage(instance: Instance, tools: Tools, client: ApiClient) -> None:
    """Start the provisioner of the default storage class: a folder a volume, on every node at once."""
    instance.volumes_dir.mkdir(exist_ok=True)
    Path(instance.volumes_dir).chmod(0o755)
    start(
        "provisioner",
        [
            tools.path("provisioner"),
            f"--kubeconfig={instance.kubeconfig}",
            f"--name={_PROVISIONER}",
            f"--root={instance.volumes_dir}",
        ],
        state_dir=instance.state_dir,
    )
    client.create(
        "/apis/storage.k8s.io/v1/storageclasses",
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": STORAGE_CLASS,
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
            },
            "provisioner": _PROVISIONER,
            "volumeBindingMode": "Immediate",
            "reclaimPolicy": "Delete",
        },
    )


def allow_proxies(client: ApiClient) -> None:
    """Let kube-proxy read services and endpoints."""
    client.create(
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "localcluster-kube-proxy"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "system:node-proxier",
            },
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "system:kube-proxy"}],
        },
    )
