"""A real Prometheus with the chart's rules that scrapes an operator's process."""

import contextlib
import copy
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import yaml

from tests.cluster.operators import SYSTEM_NAMESPACE, OperatorProcess
from tests.kubectl import wait_for
from tests.monitoring.alerts.promtool import JOB, render_rules
from tests.monitoring.prometheus import Prometheus
from tests.ports import free_port


@contextlib.contextmanager
def alerting(program: Path, folder: Path, operator: OperatorProcess, helm: Path) -> Iterator[Prometheus]:
    """Prometheus with rules about runs that fire without delay; it scrapes the operator as a ServiceMonitor has it."""
    rules = copy.deepcopy(render_rules(helm, "--set", "alerts.limits.blockedSeconds=60"))
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        # The operator's have time: before the first scrape, it is as good as down.
        if rule["alert"].startswith("LlavaRun"):
            rule["for"] = "0s"
    target = {
        "targets": [f"127.0.0.1:{operator.http_port}"],
        "labels": {"namespace": SYSTEM_NAMESPACE, "pod": operator.pod_name, "service": JOB, "endpoint": "metrics"},
    }
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": JOB, "honor_labels": True, "static_configs": [target]}],
    }
    (folder / "rules.yml").write_text(yaml.safe_dump(rules))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
             f"--web.listen-address={address}"],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        wait_for("Prometheus", lambda: _is_ready(f"http://{address}/-/ready"), timeout_s=60)
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        process.wait(timeout=30)


def _is_ready(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url, trust_env=False, timeout=5).is_success
    return False
