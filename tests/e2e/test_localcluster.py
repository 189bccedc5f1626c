"""The embedded cluster for real: two instances at once, two nodes, volumes, DNS, and nothing left behind."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.kubectl import wait_for
from tests.localcluster import processes
from tests.localcluster.cluster import ClusterError, LocalCluster
from tests.localcluster.images import build_base
from tests.localcluster.instance import Instance
from tests.localcluster.shell import run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

_POD = """
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  securityContext: {{runAsNonRoot: true, runAsUser: 65532, seccompProfile: {{type: RuntimeDefault}}}}
  containers:
  - name: main
    image: {image}
    imagePullPolicy: Never
    command: [sh, -c, "echo written by {name} >>/data/file && echo started {name} && exec python3 -m http.server"]
    readinessProbe: {{httpGet: {{path: /, port: 8000}}, periodSeconds: 1}}
    securityContext:
      readOnlyRootFilesystem: true
      allowPrivilegeEscalation: false
      capabilities: {{drop: [ALL]}}
    volumeMounts: [{{name: data, mountPath: /data}}]
  volumes: [{{name: data, persistentVolumeClaim: {{claimName: data}}}}]
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{selector: {{app: {name}}}, ports: [{{port: 80, targetPort: 8000}}]}}
---
"""
_CLAIM = """
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteMany], resources: {requests: {storage: 1Gi}}}
"""


def _names(folder: str, pattern: str) -> list[str]:
    return [str(path) for path in Path(folder).glob(pattern)]


def _traces(instance: Instance) -> list[str]:
    """Whatever of an instance is on the machine; other instances may come and go meanwhile."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    routes = run(["ip", "route"], what="reading routes", timeout_s=20).stdout.splitlines()
    prefix, state_dir = f"lfc{instance.index}", f"{instance.state_dir}/"
    return [
        *(f"process {process.name}" for process in processes.marked(instance.state_dir)),
        *(mount for mount in mounts if mount.startswith(state_dir)),
        *(route for route in routes if f" {instance.bridge} " in f"{route} "),
        *_names("/sys/class/net", f"{prefix}br"),
        *_names("/sys/class/net", f"{prefix}n*"),
        *_names("/run/netns", f"{prefix}-*"),
        *(path for path in _names("/var/lib/cni/results", "*") if state_dir in Path(path).read_text()),
        *(path for path in _names("/var/log/containers", "*") if state_dir in str(Path(path).readlink())),
        *_names("/sys/fs/cgroup", f"**/llava-{instance.name}"),
        *_names(str(instance.state_dir), "*"),
    ]


def _firewall() -> str:
    # Counters and the times of the dump change by themselves.
    rules = run(["iptables-save"], what="reading the firewall", timeout_s=20).stdout
    return re.sub(r"\[\d+:\d+\]|^#.*$", "", rules, flags=re.MULTILINE)


def _kubectl(cluster: LocalCluster, *arguments: str, stdin: str | None = None) -> str:
    command: list[str | Path] = [cluster.tools().path("kubectl"), "--kubeconfig", cluster.kubeconfig, *arguments]
    return run(command, what=f"kubectl {arguments[0]}", timeout_s=90, stdin=stdin).stdout


def _try_kubectl(cluster: LocalCluster, *arguments: str) -> str | None:
    try:
        return _kubectl(cluster, *arguments)
    except ClusterError:
        return None


def _remove(cluster: LocalCluster) -> None:
    """Take an instance down, twice, and look for what it left."""
    instance = cluster.instance
    assert _traces(instance)
    cluster.down()
    assert _traces(instance) == []
    cluster.down()
    assert not cluster.status().exists


@pytest.fixture
def instances() -> Iterator[tuple[LocalCluster, LocalCluster]]:
    pair = LocalCluster(f"one-{os.getpid()}"), LocalCluster(f"two-{os.getpid()}")
    firewall = _firewall()
    yield pair
    for cluster in pair:
        if cluster.status().exists:
            _remove(cluster)
    assert _firewall() == firewall


def test_two_instances_live_side_by_side(instances: tuple[LocalCluster, LocalCluster]) -> None:
    first, second = instances
    image = build_base()
    # Side by side from the first moment on: numbers, addresses and names must not collide.
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda cluster: cluster.up(), instances))
    assert first.add_node() == "node-1"
    first.up()  # what is up already is left as it is
    for cluster in instances:
        cluster.load_image(image)
    manifests = (
        _CLAIM
        + "---"
        + "".join(_POD.format(name=name, node=node, image=image) for name, node in [("a", "node-0"), ("b", "node-1")])
    )
    _kubectl(first, "apply", "-f", "-", stdin=manifests)
    _kubectl(second, "apply", "-f", "-", stdin=_CLAIM + "---" + _POD.format(name="a", node="node-0", image=image))
    _kubectl(first, "wait", "--for=condition=Ready", "pod/a", "pod/b", "--timeout=60s")
    _kubectl(second, "wait", "--for=condition=Ready", "pod/a", "--timeout=60s")

    _check_nodes_reach_each_other(first)

    # The end of one is nothing to the other.
    _remove(second)
    assert "started a" in _kubectl(first, "logs", "pod/a")
    _check_volume_is_shared_and_removed(first)
    status = first.status()
    assert status.ready
    assert status.nodes == ("node-0", "node-1")


def _check_nodes_reach_each_other(cluster: LocalCluster) -> None:
    fetch = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=10).status)"
    for source, target in (("a", "b"), ("b", "a")):
        url = f"http://{target}.default.svc.cluster.local"
        fetched = partial(_try_kubectl, cluster, "exec", source, "--", "python3", "-c", fetch, url)
        # A pod is Ready before every node's kube-proxy has heard of it.
        assert wait_for(f"{url} from pod {source}", fetched, timeout_s=30).strip() == "200"
        assert f"started {source}" in _kubectl(cluster, "logs", f"pod/{source}")
        # The machine itself reaches services and pods too: tests run programs there.
        address = _kubectl(cluster, "get", "service", target, "-o", "jsonpath={.spec.clusterIP}")
        done = subprocess.run(["python3", "-c", fetch, f"http://{address}"], capture_output=True, text=True, timeout=30)
        assert done.stdout.strip() == "200", done.stderr


def _check_volume_is_shared_and_removed(cluster: LocalCluster) -> None:
    content = _kubectl(cluster, "exec", "a", "--", "cat", "/data/file")
    assert sorted(content.splitlines()) == ["written by a", "written by b"]
    folder = Path(_kubectl(cluster, "get", "pv", "-o", "jsonpath={.items[0].spec.hostPath.path}"))
    assert (folder / "file").is_file()
    _kubectl(cluster, "delete", "pod/a", "pod/b", "pvc/data")
    _kubectl(cluster, "wait", "--for=delete", "pv", "--all", "--timeout=60s")
    assert not folder.exists()


def test_remains_of_a_crash_are_removed(instances: tuple[LocalCluster, LocalCluster]) -> None:
    cluster, other = instances
    cluster.up(control_plane_only=True)
    with pytest.raises(ClusterError, match="takes no nodes"):
        cluster.add_node()
    with pytest.raises(ClusterError, match="is up without nodes"):
        cluster.up()
    api_server = next(p for p in processes.recorded(cluster.instance.state_dir) if p.name == "kube-apiserver")
    # As after a crash: the API server is dead and the rest knows nothing of it; one record is gone as well.
    os.kill(api_server.pid, signal.SIGKILL)
    (cluster.instance.state_dir / "processes" / "etcd.json").unlink()
    assert not cluster.status().ready
    cluster.up(control_plane_only=True)
    assert cluster.status().ready
    assert not other.status().exists
