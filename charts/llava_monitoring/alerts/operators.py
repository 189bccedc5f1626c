"""Alerts about an installation, for whoever runs it: `namespace` is the operator's.

Replicas stand by, so what is asked for is that one of them leads, and what all of them count together.
"""

from llava_monitoring.alerts.alert import OF_OPERATOR, Alert, Severity
from llava_monitoring.alerts.limits import API_ERRORS, CERTIFICATE, FAILED, FAILED_ALIKE, QUEUE_WAIT, REFUSED_REPORTS
from llava_monitoring.queries import each_run, select


def _rate(metric: str, *matchers: str) -> str:
    return f"rate({select(metric, OF_OPERATOR, *matchers)}[10m])"


def _total(series: str, *labels: str) -> str:
    return f"sum by ({', '.join(('job', *labels))}) ({series})"


_UP = select("up", OF_OPERATOR)
_STARTED = select("process_start_time_seconds", OF_OPERATOR)
_LEADERS = _total(select("llava_operator_leader", OF_OPERATOR))
_REQUESTS = "llava_operator_api_requests_total"
# 403 is also what quotas and policies answer, to writes.
_REFUSED = (
    f"""{_rate(_REQUESTS, 'code=~"0|401|429|5.."')} or {_rate(_REQUESTS, 'code="403"', 'verb=~"get|list|watch"')}"""
)
_RELISTED = _total(_rate("llava_operator_relists_total", 'outcome="ok"'))
_WATCHES = _total(_rate(_REQUESTS, 'verb="watch"'), "resource")
_UNDELIVERED = select("llava_operator_notifications_total", OF_OPERATOR, 'outcome="undelivered"')
_ENDS = select("llava_operator_certificate_not_after_timestamp_seconds", OF_OPERATOR)
_BEGAN = select("llava_operator_certificate_not_before_timestamp_seconds", OF_OPERATOR)
_RUN_ENDED = each_run(select("llava_run_completion_timestamp_seconds", OF_OPERATOR))
_RUN_FAILED = each_run(select("llava_run_failure", OF_OPERATOR), "reason")

OPERATOR_ALERTS = (
    Alert(
        name="LlavaOperatorDown",
        severity=Severity.CRITICAL,
        expression=f"max by (job) ({_UP}) == 0 or absent({_UP})",
        hold="5m",
        summary="The LLaVA operator is down.",
        description="No operator of job {{ $labels.job }} answers Prometheus. Runs that are going on do so without it, "
        "but none is begun, restarted or ended, and no alert about a run can fire.",
        of_runs=False,
    ),
    Alert(
        name="LlavaOperatorNotLeading",
        severity=Severity.CRITICAL,
        expression=f"{_LEADERS} != 1",
        hold="5m",
        summary="Not one LLaVA operator leads.",
        description="{{ $value }} operators of job {{ $labels.job }} say that they lead, instead of one. While none "
        "does, no run is begun, restarted or ended, and no alert about a run can fire.",
        of_runs=False,
    ),
    Alert(
        name="LlavaOperatorRestarting",
        expression=f"sum by (job) (changes({_STARTED}[1h])) >= 3",
        hold="1m",
        summary="The LLaVA operator starts again and again.",
        description="Containers of job {{ $labels.job }} were started {{ $value }} times within an hour.",
        of_runs=False,
    ),
    Alert(
        name="LlavaOperatorPassesFailing",
        expression=f"{_total(_rate('llava_operator_pass_errors_total'), 'error')} > 0",
        hold="15m",
        summary="Passes of the LLaVA operator fail: {{ $labels.error }}.",
        description="For a quarter of an hour passes over runs have ended with {{ $labels.error }}. The runs concerned "
        "do not go on.",
        of_runs=False,
    ),
    Alert(
        name="LlavaOperatorBehind",
        expression=(
            f"histogram_quantile(0.99, {_total(_rate('llava_operator_queue_wait_seconds_bucket'), 'le')}) "
            f"> {QUEUE_WAIT}"
        ),
        hold="15m",
        summary="The LLaVA operator does not keep up.",
        description="One pass in a hundred waits for {{ $value | humanizeDuration }} or longer: runs begin, restart "
        "and end that much later.",
        of_runs=False,
    ),
    Alert(
        name="LlavaOperatorApiServerRefusing",
        expression=f"{_total(_REFUSED)} / {_total(_rate(_REQUESTS))} > {API_ERRORS}",
        hold="10m",
        summary="The API server refuses the LLaVA operator.",
        description="{{ $value | humanizePercentage }} of the operator's requests are refused, fail or are not "
        "answered.",
        of_runs=False,
    ),
    Alert(
        name="LlavaOperatorRelistsFailing",
        expression=f"{_LEADERS} > 0 unless {_RELISTED} > 0",
        hold="10m",
        summary="The LLaVA operator cannot list runs and their children.",
        description="No relist has succeeded for ten minutes or longer: what an event did not tell, the operator "
        "does not see.",
        of_runs=False,
    ),
    Alert(
        name="LlavaOperatorWatchesFailing",
        expression=f"{_total(_rate('llava_operator_watch_failures_total'), 'resource')} / {_WATCHES} > 0.5",
        hold="10m",
        summary="Watches of the LLaVA operator break: {{ $labels.resource }}.",
        description="{{ $value | humanizePercentage }} of the watches of {{ $labels.resource }} end with an error. "
        "The operator sees changes up to a minute late.",
        of_runs=False,
    ),
    Alert(
        name="LlavaOperatorReportsRefused",
        expression=(
            f"{_total(_rate('llava_operator_reports_refused_total'), 'reason')} / on (job) group_left () "
            f"{_total(_rate('llava_operator_reports_total'))} > {REFUSED_REPORTS}"
        ),
        hold="15m",
        summary="Progress reports are refused: {{ $labels.reason }}.",
        description="{{ $value | humanizePercentage }} of the progress reports are refused because of "
        "{{ $labels.reason }}. Runs train on all the same, unseen.",
        of_runs=False,
    ),
    Alert(
        name="LlavaOperatorCertificateExpiring",
        # The fifth is for short lives: one of a week never has three weeks left. Who renews in time does so before: the
        # operator after a seventh of that week, cert-manager after two thirds of whatever life.
        expression=(
            f"min by (job, certificate) ({_ENDS} - time() < {CERTIFICATE} "
            f"and ({_ENDS} - time()) / ({_ENDS} - {_BEGAN}) < 0.2)"
        ),
        hold="15m",
        summary="A certificate of the LLaVA operator is not renewed: {{ $labels.certificate }}.",
        description="The certificate {{ $labels.certificate }} counts for {{ $value | humanizeDuration }} more, and "
        "should have been renewed by now. After that no progress is seen, or no metrics are read.",
        of_runs=False,
    ),
    Alert(
        name="LlavaNotificationsUndelivered",
        expression=f"{_total(f'increase({_UNDELIVERED}[1h])', 'event')} > 0",
        hold="0s",
        summary="Notifications are not delivered: {{ $labels.event }}.",
        description="About {{ $value | humanize }} notifications of {{ $labels.event }} were given up within an hour, "
        "after every try.",
        of_runs=False,
    ),
    Alert(
        name="LlavaRunsFailAlike",
        severity=Severity.CRITICAL,
        expression=(
            f"count by (reason) ({_RUN_FAILED} and on (namespace, name) time() - {_RUN_ENDED} < {FAILED}) "
            f">= {FAILED_ALIKE}"
        ),
        hold="1m",
        summary="{{ $value }} runs have failed alike: {{ $labels.reason }}.",
        description=f"{{{{ $value }}}} runs have failed with {{{{ $labels.reason }}}} within "
        f"{{{{ {FAILED} | humanizeDuration }}}}. What several runs fail by is often none of theirs: an image, a "
        "driver, a node, storage.",
        of_runs=False,
    ),
)
