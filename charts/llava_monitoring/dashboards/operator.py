"""The operator itself: whether one leads, keeps up with its runs, reaches the API server and is spoken to well."""

from grafana_foundation_sdk.models import dashboard as models

from llava_monitoring.dashboards.board import OPERATOR, build
from llava_monitoring.panels import (
    BYTES,
    COUNT,
    GREEN,
    OF_PHASES,
    RED,
    SECONDS,
    YELLOW,
    Query,
    Row,
    bars,
    graph,
    number,
    row,
)
from llava_monitoring.queries import select
from llava_monitoring.variables import choice

_HERE = 'namespace="$namespace"'
_CONTAINER = 'container="operator"'
_PER_SECOND = "reqps"


def _of(metric: str, *matchers: str) -> str:
    return select(metric, _HERE, *matchers)


def _rate(metric: str, *labels: str, matchers: tuple[str, ...] = ()) -> str:
    return f"sum by ({', '.join(labels)}) (rate({_of(metric, *matchers)}[$__rate_interval]))"


def _within(metric: str, *labels: str) -> str:
    """How much a counter has gone up in the time shown. Its namespace is the runs', so none is chosen.

    `increase` does not see what a series begins with: of one that began in this time it is added.
    """
    rise, began = (
        f"increase({metric}[$__range])",
        f"(min_over_time({metric}[$__range]) unless {metric} offset $__range)",
    )
    return f"sum by ({', '.join(labels)}) (({rise} + {began}) or {rise})"


def _quantile(quantile: float, histogram: str, *labels: str) -> str:
    return f"histogram_quantile({quantile}, {_rate(f'{histogram}_bucket', 'le', *labels)})"


def _process(metric: str) -> str:
    """A metric of the operator's processes alone: every other program has one of that name as well."""
    return f"{_of(metric)} and on (namespace, pod) {_of('llava_operator_info')}"


def _health() -> Row:
    return row(
        "Health",
        number("Leading", "Pods that lead: one. With none nothing goes on, and trainings that run are not disturbed; "
               "with two for longer than a lease, look at their clocks.", COUNT,
               Query(f"sum({_of('llava_operator_leader')})"), steps=[(None, RED), (1, GREEN), (2, RED)]),
        number("Pods", "Operator pods that answer Prometheus.", COUNT, Query(f"count({_of('llava_operator_leader')})"),
               steps=[(None, RED), (1, GREEN)]),
        number("Version", "Of the operator; two while one replaces the other.", COUNT,
               Query(f"max by (version) ({_of('llava_operator_info')})", "{{version}}"), named=True, absent="-"),
        number("Up since", "How long ago the youngest operator process began.", SECONDS,
               Query(f"time() - max({_process('process_start_time_seconds')})"), absent="-"),
        number("Runs waiting for a pass", "The queue's length right now: a few, or a thousand for seconds after a "
               "start.",
               COUNT, Query(f"sum({_of('llava_operator_queue_depth')})"),
               steps=[(None, GREEN), (100, YELLOW), (1000, RED)]),
        number("Failing passes", "Passes that ended with an error, a second: more than a few in a row is what an "
               "alert is for.", _PER_SECOND, Query(f"sum({_rate('llava_operator_pass_errors_total', 'error')})"),
               steps=[(None, GREEN), (0.1, YELLOW), (1, RED)]),
        graph("Leader", "1 for the pod that leads. A line that hands over to another is a restart or an update.", COUNT,
              Query(f"max by (pod) ({_of('llava_operator_leader')})", "{{pod}}"), width=12, most=1),
        graph("Runs in each phase", "What it looks after, as it tells.", COUNT,
              Query("count by (phase) (max by (namespace, name, phase) (llava_run_phase == 1))", "{{phase}}"), width=12,
              stacked=True, colors=OF_PHASES),
    )  # fmt: skip


def _passes() -> Row:
    duration, wait = "llava_operator_pass_duration_seconds", "llava_operator_queue_wait_seconds"
    return row(
        "Passes and their queue",
        graph("Passes", "Passes over runs, a second.", _PER_SECOND, Query(_rate(f"{duration}_count"), "passes")),
        graph("How long a pass takes", "Mostly round trips to the API server. Half of all passes are below the lower "
              "line, 99 of 100 below the upper one.", SECONDS, Query(_quantile(0.5, duration), "half of all"),
              Query(_quantile(0.99, duration), "99 of 100")),
        graph("Passes that failed", "By the error's class; each is repeated after a while. The log has the whole of "
              "it.",
              _PER_SECOND, Query(_rate("llava_operator_pass_errors_total", "error"), "{{error}}")),
        graph("Queue", "Runs that wait for a pass.", COUNT,
              Query(f"max by (pod) ({_of('llava_operator_queue_depth')})", "{{pod}}")),
        graph("How long runs wait for a pass", "From when a pass was due. More than a second for long: the operator "
              "does not keep up, or the API server makes it wait.", SECONDS, Query(_quantile(0.5, wait), "half of all"),
              Query(_quantile(0.99, wait), "99 of 100")),
        graph("Passes put off", "Passes repeated later because the one before failed, a second.", _PER_SECOND,
              Query(_rate("llava_operator_queue_retries_total"), "put off")),
    )  # fmt: skip


def _api() -> Row:
    requests, duration = "llava_operator_api_requests_total", "llava_operator_api_request_duration_seconds"
    refused = ('code=~"[45].*|0"',)
    return row(
        "The API server, as the operator sees it",
        graph("Requests", "By verb, a second. 40 a second is much: progress of all runs shares a rate.", _PER_SECOND,
              Query(_rate(requests, "verb"), "{{verb}}"), stacked=True),
        graph("Refused or unanswered", "Answers of 400 and above, and 0 where none came. 404 and 409 are part of "
              "ordinary work: what is not there yet, and what is there already.", _PER_SECOND,
              Query(_rate(requests, "verb", "resource", "code", matchers=refused), "{{verb}} {{resource}} {{code}}")),
        graph("How long answers take", "99 of 100 answers came faster, by verb; watches are left out.", SECONDS,
              Query(_quantile(0.99, duration, "verb"), "{{verb}}")),
        graph("Relists", "Runs and their children are listed anew from time to time, and after a watch broke.",
              _PER_SECOND, Query(_rate("llava_operator_relists_total", "outcome"), "{{outcome}}")),
        graph("Watches that broke", "Watches that ended with an error and were begun anew, a second.", _PER_SECOND,
              Query(_rate("llava_operator_watch_failures_total", "resource"), "{{resource}}")),
        graph("Objects in memory", "What the operator keeps of the cluster; children of finished runs are not kept.",
              COUNT, Query(f"max by (resource) ({_of('llava_operator_cached_objects')})", "{{resource}}")),
    )  # fmt: skip


def _callers() -> Row:
    return row(
        "Who speaks to it",
        graph("Reports", "Progress reports of stages by the answer's status, a second.", _PER_SECOND,
              Query(_rate("llava_operator_reports_total", "code"), "{{code}}"), stacked=True),
        graph("Reports refused", "By why, a second: not_current is an attempt that was replaced, token and "
              "not_a_pod_of_a_run somebody who should not be there.", _PER_SECOND,
              Query(_rate("llava_operator_reports_refused_total", "reason"), "{{reason}}")),
        graph("Connections ended", "By endpoint and why: too many, too slow, or no TLS in time.", _PER_SECOND,
              Query(_rate("llava_operator_connections_closed_total", "endpoint", "reason"), "{{endpoint}} {{reason}}")),
        graph("Objects passed over", "Jobs and pods with the label of runs' children that are none, a second: the log "
              "names the first of a kind in each namespace.", _PER_SECOND,
              Query(_rate("llava_operator_objects_skipped_total", "kind", "reason"), "{{kind}} {{reason}}")),
        graph("Notifications", "Notifications of runs by outcome, a second.", _PER_SECOND,
              Query(_rate("llava_operator_notifications_total", "outcome"), "{{outcome}}")),
        graph("Certificates", "How long each still counts: authority signs the others and is replaced 90 days before "
              "its end, report and metrics are renewed daily (where they are yours: when you do).", SECONDS,
              Query(f"min by (certificate) ({_of('llava_operator_certificate_not_after_timestamp_seconds')} - time())",
                    "{{certificate}}"), logarithmic=True),
    )  # fmt: skip


def _process_row() -> Row:
    limit = _of("kube_pod_container_resource_limits", _CONTAINER, 'resource="memory"')
    working_set = _of("container_memory_working_set_bytes", _CONTAINER)
    return row(
        "Its process",
        graph("Memory", "Resident memory of the process and working set of its container, beside the limit at which "
              "the kernel ends it. It grows with the number of runs: about 10 kB each.", BYTES,
              Query(f"max by (pod) ({_process('process_resident_memory_bytes')})", "{{pod}}"),
              Query(f"max by (pod) ({working_set})", "{{pod}}, container"), Query(f"max({limit})", "limit")),
        graph("Processor", "Cores. One event loop does all the work: near 1 it is the bottleneck.", COUNT,
              Query(f"max by (pod) (rate({_of('process_cpu_seconds_total')}[$__rate_interval]) and on (namespace, pod) "
                    f"{_of('llava_operator_info')})", "{{pod}}")),
        graph("Open files", "Connections, mostly, beside how many it may have.", COUNT,
              Query(f"max by (pod) ({_process('process_open_fds')})", "{{pod}}"),
              Query(f"max({_process('process_max_fds')})", "limit"), logarithmic=True),
    )  # fmt: skip


def _ended() -> Row:
    durations = "sum by (le, stage) (increase(llava_operator_stage_duration_seconds_bucket[$__range]))"
    return row(
        "What has ended in the time shown, deleted runs included",
        bars("Runs", "Runs that this operator has seen end, by phase and reason.", COUNT,
             Query(f"round({_within('llava_operator_runs_ended_total', 'phase', 'reason')})", "{{phase}} {{reason}}")),
        bars("Attempts without success", "By stage and reason (docs/failures.md).", COUNT,
             Query(f"round({_within('llava_operator_attempts_ended_total', 'stage', 'reason')})",
                   "{{stage}} {{reason}}")),
        bars("How long stages took", "Median, by stage, however they ended.", SECONDS,
             # The median of nothing is NaN, which is no more than 0.
             Query(f"histogram_quantile(0.5, {durations}) > 0", "{{stage}}")),
        bars("GPU-hours", "Of attempts that are over: productive, or lost because the work was done again or for "
             "nothing.",
             COUNT, Query(f"{_within('llava_operator_gpu_seconds_total', 'namespace', 'use')} / 3600",
                          "{{namespace}} {{use}}"), width=24),
    )  # fmt: skip


def build_operator() -> models.Dashboard:
    """The dashboard about the operator."""
    return build(
        OPERATOR,
        "The operator itself: whether one leads, keeps up with its runs, reaches the API server and is spoken to well.",
        since="now-6h",
        variables=[choice("namespace", "Operator's namespace", "label_values(llava_operator_info, namespace)")],
        rows=[_health(), _passes(), _api(), _callers(), _process_row(), _ended()],
    )
