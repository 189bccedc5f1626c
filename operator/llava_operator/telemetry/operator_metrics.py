"""The metrics of the operator itself: every family of the contract, and what fills it in.

What others say (a reason, a path) gets into a label only where it is one of a known set: no tenant makes series.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from functools import partial
from importlib import metadata

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.metrics import MetricWrapperBase

from llava_api.constants import Phase
from llava_api.status import Status
from llava_operator.kube.objects import Key
from llava_operator.kube.requests import Answered, read_request
from llava_operator.telemetry.contract import OPERATOR_FAMILIES, PREFIX_OPERATOR, Family, Kind
from llava_operator.telemetry.endings import compare


class OperatorMetrics:
    """What the operator tells of itself."""

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        queue_depth: Callable[[], float],
        cached: Mapping[str, Callable[[], float]],
    ) -> None:
        """Register every family; ``queue_depth`` and ``cached`` (by resource) are asked at each scrape."""
        self._families = {family.name: _make(family, registry) for family in OPERATOR_FAMILIES}
        self._info("info").info({"version": metadata.version("llava-finetune-operator")})
        self._gauge("queue_depth").set_function(queue_depth)
        for resource, count in cached.items():
            self._gauge("cached_objects", resource).set_function(count)
        ProcessCollector(registry=registry)

    def expect(self, name: str, *labels: str) -> None:
        """Have a counter or histogram begin at 0: increase() does not see the event that a series begins with."""
        self._of(name, labels)

    def note_leading(self) -> None:
        """This process leads from now on."""
        self._gauge("leader").set(1)

    def note_wait(self, seconds: float) -> None:
        """A run was taken from the queue, so long after it was due."""
        self._histogram("queue_wait_seconds").observe(seconds)

    def note_retry(self) -> None:
        """A pass is put off because the one before ended with an error."""
        self._counter("queue_retries_total").inc()

    def time_pass(self) -> AbstractContextManager[object]:
        """Measure the pass that is made within."""
        return self._histogram("pass_duration_seconds").time()

    def note_pass_error(self, error: type[BaseException]) -> None:
        """A pass ended with an error."""
        self._counter("pass_errors_total", error.__name__).inc()

    def note_relist(self, outcome: str) -> None:
        """A relist has ended: ok or failed."""
        self._counter("relists_total", outcome).inc()

    def note_skipped(self, kind: str, reason: str) -> None:
        """An object was passed over."""
        self._counter("objects_skipped_total", kind, reason).inc()

    def note_request(self, request: Answered) -> None:
        """The API server has answered a request, or not."""
        verb, resource = read_request(request)
        self._counter("api_requests_total", verb, resource, str(request.code)).inc()
        if not request.is_watch:
            self._histogram("api_request_duration_seconds", verb, resource).observe(request.seconds)

    def note_broken_watch(self, request: Answered) -> None:
        """A watch has ended with an error."""
        self._counter("watch_failures_total", read_request(request)[1]).inc()

    def note_report(self, code: int, refused: str | None) -> None:
        """A progress report was answered, and refused for a reason or not."""
        self._counter("reports_total", str(code)).inc()
        if refused is not None:
            self._counter("reports_refused_total", refused).inc()

    def count_closed(self, endpoint: str, reasons: Iterable[str]) -> Callable[[str], None]:
        """What counts connections to an endpoint (report, http or metrics) that were ended, by each reason from 0."""
        for reason in reasons:
            self.expect("connections_closed_total", endpoint, reason)
        return partial(self.note_closed, endpoint)

    def note_closed(self, endpoint: str, reason: str) -> None:
        """A connection to report, http or metrics was ended."""
        self._counter("connections_closed_total", endpoint, reason).inc()

    def note_validity(self, certificate: str, not_before: datetime, not_after: datetime) -> None:
        """A certificate (authority, report or metrics) is the one in use from now on."""
        self._gauge("certificate_not_before_timestamp_seconds", certificate).set(not_before.timestamp())
        self._gauge("certificate_not_after_timestamp_seconds", certificate).set(not_after.timestamp())

    def note_written(self, run: Key, before: Status, after: Status) -> None:
        """A run's status was written: count what has ended by that."""
        ended = compare(before, after)
        # They begin at 0 with the namespace's first run, so that increase() sees its end.
        self._counter("runs_ended_total", run.namespace, Phase.SUCCEEDED, "")
        if ended.run:
            self._counter("runs_ended_total", run.namespace, ended.run.phase, ended.run.reason).inc()
        for stage in ended.stages:
            self._histogram("stage_duration_seconds", stage.stage, stage.state).observe(stage.seconds)
        for attempt in ended.attempts:
            self._counter("attempts_ended_total", run.namespace, attempt.stage, attempt.reason).inc()
        for told in ended.notifications:
            self._counter("notifications_total", told.event, told.state.lower()).inc()
        self._counter("gpu_seconds_total", run.namespace, "productive").inc(ended.productive_gpu_seconds)
        self._counter("gpu_seconds_total", run.namespace, "lost").inc(ended.lost_gpu_seconds)

    def _counter(self, name: str, *labels: str) -> Counter:
        made = self._of(name, labels)
        assert isinstance(made, Counter)
        return made

    def _gauge(self, name: str, *labels: str) -> Gauge:
        made = self._of(name, labels)
        assert isinstance(made, Gauge)
        return made

    def _histogram(self, name: str, *labels: str) -> Histogram:
        made = self._of(name, labels)
        assert isinstance(made, Histogram)
        return made

    def _info(self, name: str) -> Info:
        made = self._of(name, ())
        assert isinstance(made, Info)
        return made

    def _of(self, name: str, labels: tuple[str, ...]) -> MetricWrapperBase:
        made = self._families[PREFIX_OPERATOR + name]
        return made.labels(*labels) if labels else made


def _make(family: Family, registry: CollectorRegistry) -> MetricWrapperBase:
    match family.kind:
        case Kind.COUNTER:
            return Counter(family.name, family.help, family.labels, registry=registry)
        case Kind.GAUGE:
            return Gauge(family.name, family.help, family.labels, registry=registry)
        case Kind.HISTOGRAM:
            return Histogram(family.name, family.help, family.labels, buckets=family.buckets, registry=registry)
        case Kind.INFO:
            # Its labels are given with the series; the client puts _info behind the name by itself.
            return Info(family.name.removesuffix("_info"), family.help, registry=registry)
