"""Metrics in Prometheus' format.

What is said of runs comes from their status at the moment of asking, so it survives a restart and a change of leader.
Values never stand in labels.
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from llava_api.status import StageStatus
from llava_operator.cache.runs import RunView
from llava_operator.clock import from_time

_RUN = ["namespace", "name"]
_PASS_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class RunCollector(Collector):
    """Makes the metrics of all runs from what is cached of them."""

    def __init__(self, runs: Iterable[RunView], now: Callable[[], datetime]) -> None:
        self._runs = runs
        self._now = now

    def collect(self) -> Iterator[Metric]:
        """Every family, with a sample for each run that has the value."""
        families = _families()
        for run in self._runs:
            _add_state(families, run, self._now())
            _add_progress(families, run)
        yield from families.values()


def _families() -> dict[str, GaugeMetricFamily]:
    documented = (
        ("llava_run_phase", "1 for the phase that a run is in.", [*_RUN, "phase"]),
        ("llava_run_stage_state", "1 for the state that a stage is in.", [*_RUN, "stage", "state"]),
        ("llava_run_stage_duration_seconds", "Seconds from a stage's beginning to its end, or to now.",
         [*_RUN, "stage"]),
        ("llava_run_attempts_ended", "Attempts of all stages that have ended without success.",
         [*_RUN, "reason"]),
        ("llava_run_failure", "1 for the reason that a run has failed for.", [*_RUN, "stage", "reason"]),
        ("llava_run_step", "Steps that the reporting stage has done.", [*_RUN, "stage"]),
        ("llava_run_steps_total", "Steps that the reporting stage has in all; 0 while unknown.", [*_RUN, "stage"]),
        ("llava_run_loss", "Training loss of the last reported step, per supervised token.", _RUN),
        ("llava_run_learning_rate", "Learning rate of the last reported step.", _RUN),
        ("llava_run_tokens_per_second", "Real tokens per second over all training processes.", _RUN),
        ("llava_run_samples_per_second", "Samples per second over all processes of the reporting stage.", _RUN),
        ("llava_run_progress_timestamp_seconds", "When the last report came, in seconds since 1970.", _RUN),
        ("llava_run_score", "Score of a model in evaluation.", [*_RUN, "metric", "split", "model"]),
    )  # fmt: skip
    return {name: GaugeMetricFamily(name, text, labels=labels) for name, text, labels in documented}


def _add_state(families: dict[str, GaugeMetricFamily], run: RunView, now: datetime) -> None:
    names = [run.key.namespace, run.key.name]
    status = run.status
    families["llava_run_phase"].add_metric([*names, str(status.phase or "Pending")], 1)
    for stage in status.stages:
        families["llava_run_stage_state"].add_metric([*names, stage.name, stage.state], 1)
        if (seconds := _duration_s(stage, now)) is not None:
            families["llava_run_stage_duration_seconds"].add_metric([*names, stage.name], seconds)
    for reason, count in (status.accounting.restarts_by_reason if status.accounting else {}).items():
        families["llava_run_attempts_ended"].add_metric([*names, reason], count)
    if run.is_finished and status.failure is not None:
        labels = [*names, status.failure.stage or "", status.failure.reason]
        families["llava_run_failure"].add_metric(labels, 1)
    for metric in status.evaluation.metrics if status.evaluation else ():
        for model, value in (("base", metric.base), ("tuned", metric.tuned)):
            families["llava_run_score"].add_metric([*names, metric.name, metric.split, model], value)


def _duration_s(stage: StageStatus, now: datetime) -> float | None:
    if stage.start_time is None:
        return None
    end = from_time(stage.completion_time) if stage.completion_time else now
    return max(0.0, (end - from_time(stage.start_time)).total_seconds())


def _add_progress(families: dict[str, GaugeMetricFamily], run: RunView) -> None:
    progress = run.status.progress
    if progress is None:
        return
    names = [run.key.namespace, run.key.name]
    if progress.unit == "steps":
        families["llava_run_step"].add_metric([*names, progress.stage], progress.step)
        families["llava_run_steps_total"].add_metric([*names, progress.stage], progress.total_steps)
    came = from_time(progress.last_update_time).timestamp()
    families["llava_run_progress_timestamp_seconds"].add_metric(names, came)
    for field in ("loss", "learning_rate", "tokens_per_second", "samples_per_second"):
        if (value := getattr(progress, field)) is not None:
            families[f"llava_run_{field}"].add_metric(names, value)


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
        self.notifications = Counter(
            "llava_operator_notifications", "Notifications by outcome.", ["event", "outcome"], registry=registry
        )
        self.closed = Counter(
            "llava_operator_connections_closed", "Connections that were turned away or ended for what they took.",
            ["endpoint", "reason"], registry=registry,
        )  # fmt: skip
        ProcessCollector(registry=registry)
