"""A Prometheus beside the demo's cluster, and how a person gets the dashboards to it."""

from tests.demo.plan import DemoPlan
from tests.demo.target import OPERATOR_NAMESPACE
from tests.localcluster.cluster import LocalCluster
from tests.monitoring.prometheus import ensure_prometheus

_DASHBOARDS = "make dashboards    # Grafana's dashboards as files, to import: docs/monitoring.md"
_FOR_THEIRS = "metrics.serviceMonitor.enabled=true,dashboards.enabled=true"


def start_prometheus(plan: DemoPlan) -> str | None:
    """Have a Prometheus scrape the operator and the kubelet; returns its address.

    On a person's own cluster none is started: this machine reaches no pods there, and their Prometheus does.

    Raises:
        ClusterError: it cannot be had, or ended at once.
    """
    if plan.context:
        return None
    instance = LocalCluster(plan.cluster).instance
    return ensure_prometheus(instance, operator_namespace=OPERATOR_NAMESPACE, exporters={}).url


def list_ways_to_watch(address: str | None) -> list[str]:
    """What to type, or to open, to look at the run's metrics."""
    if address is None:
        return [f"helm upgrade … --set {_FOR_THEIRS}    # for your Prometheus and Grafana: docs/monitoring.md"]
    return [
        f"{address}/graph?g0.expr=llava_run_loss&g0.tab=0    # Prometheus, the data source for Grafana",
        _DASHBOARDS,
    ]
