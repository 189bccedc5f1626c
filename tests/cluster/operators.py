"""Real operator processes for the cluster tests."""

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from tests.kubectl import Kubectl, wait_for
from tests.localcluster.tools import HELM, ensure_tools
from tests.ports import free_port
from tests.rendering import NAMESPACE as SYSTEM_NAMESPACE
from tests.rendering import render

NAME = "llava-finetune-operator"
START_S = 30


@dataclass(kw_only=True)
class OperatorProcess:
    """One replica, with its log."""

    pod_name: str
    kubeconfig: Path
    log: Path
    http_port: int = field(default_factory=free_port)
    report_port: int = field(default_factory=free_port)
    extra: dict[str, str] = field(default_factory=dict)
    code: tuple[Path, ...] = ()
    """Folders of another version's packages; none: today's."""
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Start it; it is the same replica if it ran before."""
        settings = {
            "NAMESPACE": SYSTEM_NAMESPACE,
            "NAME": NAME,
            "POD_NAME": self.pod_name,
            "POD_IP": "192.0.2.1",
            "TRAINER_IMAGE": "trainer:test",
            "HTTP_PORT": str(self.http_port),
            "REPORT_PORT": str(self.report_port),
            "PROGRESS_INTERVAL_SECONDS": "1",
            "RESYNC_SECONDS": "5",
            "LEASE_DURATION_SECONDS": "3",
            "LEASE_RENEW_DEADLINE_SECONDS": "2",
            "LEASE_RETRY_SECONDS": "0.5",
            "HEARTBEAT_SECONDS": "1",
            **self.extra,
        }
        environ = {**os.environ, "KUBECONFIG": str(self.kubeconfig)}
        if self.code:
            environ["PYTHONPATH"] = os.pathsep.join(map(str, self.code))
        environ.update({f"LLAVA_OPERATOR_{key}": value for key, value in settings.items()})
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "llava_operator.main"], env=environ, stdout=log, stderr=log
            )

    def fetch(self, path: str) -> tuple[int, str]:
        """Status and body of a probe or of the metrics; status 0 if nothing answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    @property
    def is_leader(self) -> bool:
        """Whether it says so in its metrics."""
        return "llava_operator_leader 1.0" in self.fetch("/metrics")[1]

    def wait_until_ready(self) -> None:
        """Wait for /readyz."""
        wait_for(f"{self.pod_name} to be ready", lambda: self.fetch("/readyz")[0] == 200, timeout_s=START_S, poll_s=0.1)

    def wait_until_leader(self) -> None:
        """Wait until it leads."""
        wait_for(f"{self.pod_name} to lead", lambda: self.is_leader, timeout_s=START_S, poll_s=0.1)

    def kill(self) -> None:
        """End it as a lost node would: without a chance to tidy up."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """End it as a rollout would; its exit status."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(timeout=20)
        self.process = None
        return status


@contextmanager
def installed(kubectl: Kubectl, folder: Path) -> Iterator[Path]:
    """The chart's objects but for the Deployment; yields a kubeconfig with the operator's rights and no more."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM_NAMESPACE}}
    kubectl.apply(namespace)
    yield install(kubectl, folder, NAME, "--set", "isolateTraining=true")
    kubectl.run("delete", "namespace", SYSTEM_NAMESPACE, "--wait=false")


def install(kubectl: Kubectl, folder: Path, name: str, *arguments: str) -> Path:
    """Apply the chart's objects, but for CRD and Deployment, under a name; a kubeconfig with the operator's rights."""
    text = render(ensure_tools((HELM,)).path("helm"), *arguments).replace(NAME, name)
    for made in filter(None, yaml.safe_load_all(text)):
        if made["kind"] not in ("CustomResourceDefinition", "Deployment"):
            replace(kubectl, namespace=made["metadata"].get("namespace", SYSTEM_NAMESPACE)).apply(made)
    return _operators_kubeconfig(replace(kubectl, namespace=SYSTEM_NAMESPACE), folder, name)


def _operators_kubeconfig(system: Kubectl, folder: Path, name: str) -> Path:
    assert system.kubeconfig is not None
    config = yaml.safe_load(system.kubeconfig.read_text())
    token = system.run("create", "token", name, "--duration=1h").strip()
    config["users"] = [{"name": user["name"], "user": {"token": token}} for user in config["users"]]
    path = folder / f"{name}.kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path


@contextmanager
def running(*operators: OperatorProcess) -> Iterator[None]:
    """Start them, and end them whatever happens."""
    try:
        for operator in operators:
            operator.start()
        for operator in operators:
            operator.wait_until_ready()
        yield
    finally:
        for operator in operators:
            if operator.process is not None:
                with suppress(subprocess.TimeoutExpired):
                    operator.stop()
            if operator.process is not None:
                operator.kill()
