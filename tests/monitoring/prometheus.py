"""A real Prometheus beside an embedded cluster: started, configured as the Prometheus operator would, and asked.

It belongs to the cluster's instance: ``down`` ends it with everything else.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.localcluster import debian, processes
from tests.localcluster.instance import Instance
from tests.localcluster.pki import Authority
from tests.localcluster.shell import wait_until
from tests.monitoring import discovery
from tests.monitoring.discovery import ensure_discovery

PORT = 9090
SCRAPE_INTERVAL_S = 5
_PROGRAM = "prometheus"
_READY_TIMEOUT_S = 60
_USED_OF_CADVISOR = "container_memory_working_set_bytes|container_cpu_usage_seconds_total"


@dataclass(frozen=True, kw_only=True)
class Span:
    """A piece of time, in seconds since 1970, and how finely it is looked at."""

    start: float
    end: float
    step_s: float

    @property
    def seconds(self) -> int:
        """Its length."""
        return max(1, math.ceil(self.end - self.start))


@dataclass(frozen=True, kw_only=True)
class Series:
    """One series of an answer."""

    labels: dict[str, str]
    points: list[tuple[float, float]]
    """Time and value, in the order of time."""


class PrometheusError(Exception):
    """Prometheus refused a query; the message is its own."""


@dataclass(frozen=True)
class Prometheus:
    """A running server, by its address."""

    url: str

    def query(self, expression: str, at: float) -> list[Series]:
        """What a query gives at an instant."""
        found = self._get("query", {"query": expression, "time": at})
        if found["resultType"] == "scalar":
            return [Series(labels={}, points=[_point(found["result"])])]
        return [Series(labels=one["metric"], points=[_point(one["value"])]) for one in found["result"]]

    def query_range(self, expression: str, span: Span) -> list[Series]:
        """What a query gives over a piece of time."""
        asked = {"query": expression, "start": span.start, "end": span.end, "step": span.step_s}
        found = self._get("query_range", asked)["result"]
        return [Series(labels=one["metric"], points=[_point(value) for value in one["values"]]) for one in found]

    def label_values(self, selector: str, label: str, span: Span) -> list[str]:
        """Values that a label has in the series of a selector."""
        asked = {"match[]": selector, "start": span.start, "end": span.end}
        values: list[str] = self._get(f"label/{label}/values", asked)
        return values

    def why_not_scraping(self, *jobs: str) -> str | None:
        """None when every job has a target and each of them answers."""
        health = dict.fromkeys(jobs, "has no target")
        for target in self._get("targets", {"state": "active"})["activeTargets"]:
            if target["scrapePool"] in health:
                said = target["lastError"] or target["health"]
                health[target["scrapePool"]] = "" if target["health"] == "up" else said
        return "; ".join(f"{job} {said}" for job, said in health.items() if said) or None

    def rules(self) -> list[dict[str, Any]]:
        """Every rule that it has, with `health` and `lastError` of its last evaluation."""
        return [rule for group in self._get("rules", {})["groups"] for rule in group["rules"]]

    def _get(self, path: str, parameters: Mapping[str, Any]) -> Any:
        # A proxy of the machine has nothing to do with an address of its own.
        with httpx.Client(trust_env=False, timeout=30) as client:
            answer = client.get(f"{self.url}/api/v1/{path}", params=dict(parameters))
        body = answer.json()
        if body["status"] != "success":
            raise PrometheusError(f"{body.get('error')}: {parameters}")
        return body["data"]


def _point(pair: list[Any]) -> tuple[float, float]:
    return float(pair[0]), float(pair[1])


def ensure_prometheus(instance: Instance, *, operator_namespace: str, exporters: Mapping[str, str]) -> Prometheus:
    """Start Prometheus for a cluster unless it runs, and wait until it answers.

    Args:
        instance: the cluster's.
        operator_namespace: where the operator's Service is.
        exporters: further jobs, by the address of their only target.

    Raises:
        ClusterError: it cannot be had, or ended at once; the message has the end of its log.
    """
    server = Prometheus(f"http://{instance.loopback}:{PORT}")
    folder = instance.state_dir / _PROGRAM
    config = json.dumps(_configure(instance, exporters), indent=1)
    running = [one for one in processes.recorded(instance.state_dir) if one.name == _PROGRAM and one.is_alive()]
    if running and (folder / "prometheus.yml").read_text() == config:
        return server
    processes.stop(running)
    folder.mkdir(exist_ok=True)
    ensure_discovery(instance, folder, operator_namespace)
    # YAML is what it reads, and JSON is YAML.
    (folder / "prometheus.yml").write_text(config)
    process = processes.start(_PROGRAM, _command(instance, folder), state_dir=instance.state_dir)

    def why_not_ready() -> str | None:
        process.require_alive()
        try:
            answer = httpx.get(f"{server.url}/-/ready", trust_env=False, timeout=5)
        except httpx.TransportError as error:
            return str(error)
        return None if answer.is_success else answer.text

    wait_until(f"Prometheus at {server.url}", why_not_ready, timeout_s=_READY_TIMEOUT_S)
    return server


def _command(instance: Instance, folder: Path) -> list[str | Path]:
    return [
        debian.ensure_unpacked(debian.PROMETHEUS).path(_PROGRAM),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--storage.tsdb.retention.time=1d",
        f"--web.listen-address={instance.loopback}:{PORT}",
        "--log.level=warn",
    ]


def _configure(instance: Instance, exporters: Mapping[str, str]) -> dict[str, Any]:
    return {
        "global": {"scrape_interval": f"{SCRAPE_INTERVAL_S}s", "scrape_timeout": f"{SCRAPE_INTERVAL_S}s"},
        "scrape_configs": [
            _scrape_operator(instance),
            _scrape_kubelets(instance),
            *(
                {"job_name": job, "honor_labels": True, "static_configs": [{"targets": [address]}]}
                for job, address in exporters.items()
            ),
        ],
    }


def _scrape_operator(instance: Instance) -> dict[str, Any]:
    """As the Prometheus operator makes it of a ServiceMonitor with honorLabels."""
    attached = {
        "namespace": "__meta_kubernetes_namespace",
        "service": "__meta_kubernetes_service_name",
        "pod": "__meta_kubernetes_pod_name",
        "container": "__meta_kubernetes_pod_container_name",
        "endpoint": "__meta_kubernetes_endpoint_port_name",
        "job": "__meta_kubernetes_service_name",
    }
    return {
        "job_name": "operator",
        "honor_labels": True,
        "file_sd_configs": [_discover(instance, discovery.ENDPOINTS_FILE)],
        "relabel_configs": [
            {"source_labels": ["__meta_kubernetes_endpoint_port_name"], "regex": "metrics", "action": "keep"},
            *({"source_labels": [source], "target_label": label} for label, source in attached.items()),
        ],
    }


def _scrape_kubelets(instance: Instance) -> dict[str, Any]:
    """cAdvisor of every node, through the API server."""
    authority = Authority(instance.state_dir / "pki")
    return {
        "job_name": "kubelet",
        "honor_labels": True,
        "scheme": "https",
        "tls_config": {
            "ca_file": str(authority.certificate),
            "cert_file": str(authority.certificate_of("admin")),
            "key_file": str(authority.key_of("admin")),
        },
        "file_sd_configs": [_discover(instance, discovery.NODES_FILE)],
        "relabel_configs": [
            {
                "source_labels": ["__meta_kubernetes_node_name"],
                "target_label": "__metrics_path__",
                "replacement": "/api/v1/nodes/$1/proxy/metrics/cadvisor",
            },
            {"target_label": "__address__", "replacement": instance.api_url.removeprefix("https://")},
            {"source_labels": ["__meta_kubernetes_node_name"], "target_label": "instance"},
        ],
        "metric_relabel_configs": [{"source_labels": ["__name__"], "regex": _USED_OF_CADVISOR, "action": "keep"}],
    }


def _discover(instance: Instance, file: str) -> dict[str, Any]:
    return {"files": [str(instance.state_dir / _PROGRAM / file)], "refresh_interval": f"{SCRAPE_INTERVAL_S}s"}
