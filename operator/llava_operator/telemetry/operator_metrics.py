"""The metrics of the operator itself."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

_PASS_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class OperatorMetrics:
    """What the operator tells of itself."""

    def __init__(self, registry: CollectorRegistry, *, queue_depth: Callable[[], float]) -> None:
        self.is_leader = Gauge("llava_operator_leader", "1 where this process leads.", registry=registry)
        depth = Gauge("llava_operator_queue_depth", "Runs that wait for a pass.", registry=registry)
        depth.set_function(queue_depth)
        self.pass_seconds = Histogram(
            "llava_operator_pass_duration_seconds", "Seconds that a pass over a run took.",
            buckets=_PASS_BUCKETS_S, registry=registry,
        )  # fmt: skip
        self.pass_errors = Counter(
            "llava_operator_pass_errors", "Passes that ended with an error and are repeated.", ["error"],
            registry=registry,
        )  # fmt: skip
        self.skipped = Counter(
            "llava_operator_objects_skipped",
            "Times that an object was passed over that carries the label of runs' children and is none.",
            ["kind", "reason"], registry=registry,
        )  # fmt: skip
        self.reports = Counter(
            "llava_operator_reports", "Progress reports by the status code of the answer.", ["code"],
            registry=registry,
        )  # fmt: skip
        self.closed = Counter(
            "llava_operator_connections_closed", "Connections that were turned away or ended for what they took.",
            ["endpoint", "reason"], registry=registry,
        )  # fmt: skip
        ProcessCollector(registry=registry)
