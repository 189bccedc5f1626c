"""Metrics of others that dashboards and alerts name: whose they are, and which labels they have.

A name that stands neither here nor in the operator's contract is refused when a query is checked.
"""

from dataclasses import dataclass

from llava_operator.telemetry.contract import Kind


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """One metric of another exporter."""

    name: str
    exporter: str
    kind: Kind = Kind.GAUGE
    labels: tuple[str, ...] = ()


TARGET_LABELS = ("namespace", "pod", "service", "container", "endpoint", "job", "instance")
"""What a ServiceMonitor attaches to every series, where the series (honorLabels) has none of that name itself."""

_KSM, _CADVISOR, _DCGM, _PROCESS = "kube-state-metrics", "cAdvisor", "DCGM", "the operator's process"
_CONTAINER = ("namespace", "pod", "container", "id", "image", "name")
_RESOURCE = ("namespace", "pod", "uid", "container", "node", "resource", "unit")
# The node's name is left out: `Hostname` until version 4.5.3 of the exporter, and `hostname` after that.
_GPU = ("gpu", "UUID", "device", "modelName", "namespace", "pod", "container")

FOREIGN = (
    Foreign(name="kube_pod_status_phase", exporter=_KSM, labels=("namespace", "pod", "uid", "phase")),
    Foreign(name="kube_pod_container_resource_limits", exporter=_KSM, labels=_RESOURCE),
    Foreign(name="kube_pod_container_resource_requests", exporter=_KSM, labels=_RESOURCE),
    Foreign(name="container_memory_working_set_bytes", exporter=_CADVISOR, labels=_CONTAINER),
    Foreign(name="container_cpu_usage_seconds_total", exporter=_CADVISOR, kind=Kind.COUNTER,
            labels=(*_CONTAINER, "cpu")),
    Foreign(name="DCGM_FI_DEV_GPU_UTIL", exporter=_DCGM, labels=_GPU),
    Foreign(name="DCGM_FI_DEV_FB_USED", exporter=_DCGM, labels=_GPU),
    Foreign(name="DCGM_FI_DEV_POWER_USAGE", exporter=_DCGM, labels=_GPU),
    Foreign(name="DCGM_FI_DEV_GPU_TEMP", exporter=_DCGM, labels=_GPU),
    Foreign(name="DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", exporter=_DCGM, labels=_GPU),
    Foreign(name="process_resident_memory_bytes", exporter=_PROCESS),
    Foreign(name="process_cpu_seconds_total", exporter=_PROCESS, kind=Kind.COUNTER),
    Foreign(name="process_start_time_seconds", exporter=_PROCESS),
    Foreign(name="process_open_fds", exporter=_PROCESS),
    Foreign(name="process_max_fds", exporter=_PROCESS),
    Foreign(name="up", exporter="Prometheus"),
)  # fmt: skip
