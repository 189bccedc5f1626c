"""Every metric that the operator serves: what dashboards, alerts and people's own rules are made of.

The list only grows. A family that is here keeps its name, type, unit and labels; docs/metrics.md is made from it, and a
test holds the names that were ever promised. What fills it in is told nothing here.
"""

from dataclasses import dataclass
from enum import StrEnum

PREFIX_RUN, PREFIX_OPERATOR = "llava_run_", "llava_operator_"
RUN_LABELS = ("namespace", "name")
"""Labels of every family about a run, before its own."""


class Kind(StrEnum):
    """Type of a family, as Prometheus calls it."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"
    INFO = "info"


@dataclass(frozen=True, kw_only=True)
class Family:
    """One metric family."""

    name: str
    """As it is queried: a counter's ends in _total, an info's in _info; a histogram's goes before _bucket."""
    kind: Kind = Kind.GAUGE
    unit: str = ""
    """seconds, bytes, ratio, timestamp_seconds, ...; empty for counts and for series that are 1."""
    labels: tuple[str, ...] = ()
    """All of them, in the order of their values."""
    help: str
    example: str
    """A query that somebody would ask."""
    buckets: tuple[float, ...] = ()
    """Of a histogram: upper bounds."""


def _run(name: str, text: str, example: str, *labels: str, unit: str = "", kind: Kind = Kind.GAUGE) -> Family:
    return Family(
        name=PREFIX_RUN + name, kind=kind, unit=unit, labels=(*RUN_LABELS, *labels), help=text, example=example
    )


_S, _BYTES, _RATIO, _INSTANT = "seconds", "bytes", "ratio", "timestamp_seconds"

RUN_FAMILIES = (
    # --- what it is and how far it is
    _run("info", "1 for every run: its method and its team (the value of the run's label that the chart names).",
         "count by (team, method) (llava_run_info)", "team", "method", kind=Kind.INFO),
    _run("phase", "1 for the phase that a run is in.",
         'count by (namespace) (llava_run_phase{phase="Running"} == 1)', "phase"),
    _run("created_timestamp_seconds", "When the run was created, in seconds since 1970.",
         "time() - llava_run_created_timestamp_seconds", unit=_INSTANT),
    _run("completion_timestamp_seconds", "When the run ended, well or not, in seconds since 1970.",
         "llava_run_completion_timestamp_seconds - llava_run_created_timestamp_seconds", unit=_INSTANT),
    _run("stage_state", "1 for the state that a stage is in.",
         'llava_run_stage_state{stage="train",state="Running"} == 1', "stage", "state"),
    _run("stage_duration_seconds", "Seconds from a stage's beginning to its end, or to now.",
         'sum by (stage) (llava_run_stage_duration_seconds{namespace="team",name="invoices"})', "stage", unit=_S),
    _run("failure", "1 for the reason that a run has failed for.",
         "count by (reason) (llava_run_failure)", "stage", "reason"),
    _run("waiting_timestamp_seconds", "Since when a stage waits for the reason that the label names, in seconds since "
         "1970; there is no series while nothing stands in the way.",
         'time() - llava_run_waiting_timestamp_seconds{reason="Unschedulable"} > 1800',
         "stage", "reason", unit=_INSTANT),
    # --- attempts
    _run("attempt", "Number of a stage's newest attempt.", "changes(llava_run_attempt[1h]) > 0", "stage"),
    _run("attempt_start_timestamp_seconds", "When a stage's newest attempt was begun, in seconds since 1970.",
         "time() - llava_run_attempt_start_timestamp_seconds", "stage", unit=_INSTANT),
    _run("attempts_ended", "Attempts of all stages that have ended without success.",
         "sum by (reason) (llava_run_attempts_ended)", "reason"),
    _run("restarts", "Attempts of a stage that ended by a failure of the run's own, since the run was last retried.",
         "sum by (namespace, name) (llava_run_restarts) > 0", "stage"),
    # --- progress
    _run("step", "Steps that the reporting stage has done.", "llava_run_step / llava_run_planned_steps", "stage"),
    _run("planned_steps", "Steps that the reporting stage has in all; no series while unknown.",
         "llava_run_planned_steps - llava_run_step", "stage"),
    _run("progress_ratio", "How much of the reporting stage is done, from 0 to 1; while it fetches, of the bytes.",
         "llava_run_progress_ratio > 0.9", "stage", unit=_RATIO),
    _run("epoch", "Passes through the dataset so far.", "llava_run_epoch"),
    _run("eta_seconds", "Estimated seconds to the reporting stage's end, while it runs.",
         "llava_run_eta_seconds < 600", "stage", unit=_S),
    _run("progress_timestamp_seconds", "When the last report came, in seconds since 1970.",
         "time() - llava_run_progress_timestamp_seconds > 900", unit=_INSTANT),
    _run("loss", "Training loss of the last reported step, per supervised token.",
         "avg_over_time(llava_run_loss[10m])"),
    _run("validation_loss", "Loss of held-out samples per supervised token, when they were looked at last.",
         "llava_run_validation_loss - llava_run_loss"),
    _run("lowest_validation_loss", "Lowest of these losses in the run so far.",
         "llava_run_validation_loss / llava_run_lowest_validation_loss > 1.1"),
    _run("validation_exact_ratio", "Share of held-out answers that greedy decoding would have given exactly then.",
         "max_over_time(llava_run_validation_exact_ratio[1d])", unit=_RATIO),
    _run("validation_step", "Step after which held-out samples were looked at last.",
         "llava_run_step - llava_run_validation_step"),
    _run("best_step", "Best step so far by validation; no series where validation selects nothing.",
         "llava_run_validation_step - llava_run_best_step"),
    _run("learning_rate", "Learning rate of the last reported step.", "llava_run_learning_rate"),
    _run("gradient_norm", "Norm of the last reported step's gradient, before it is clipped.",
         "max_over_time(llava_run_gradient_norm[10m])"),
    _run("tokens_per_second", "Real (not padding) tokens per second over all training processes, while they run.",
         "sum by (namespace) (llava_run_tokens_per_second)"),
    _run("samples_per_second", "Samples per second over all processes of the reporting stage, while it runs.",
         "llava_run_samples_per_second"),
    _run("data_wait_ratio", "Share of the last steps' time in which training waited for data, while it runs.",
         "llava_run_data_wait_ratio > 0.2", unit=_RATIO),
    _run("mfu_ratio", "Model FLOPs utilisation (MFU) of the last steps, while it runs; no series without GPUs whose "
         "peak is known.", "avg by (namespace) (llava_run_mfu_ratio) < 0.3", unit=_RATIO),
    _run("checkpoint_step", "Step of the newest complete checkpoint.", "llava_run_step - llava_run_checkpoint_step"),
    _run("checkpoint_timestamp_seconds", "When that checkpoint was first reported, in seconds since 1970.",
         "time() - llava_run_checkpoint_timestamp_seconds > 3600", unit=_INSTANT),
    # --- what it takes
    _run("gpus", "GPUs that the newest attempt's pods hold.", "sum by (namespace) (llava_run_gpus)", "stage"),
    _run("requested_gpus", "GPUs that the newest attempt asks for and does not hold: it waits for them.",
         "sum(llava_run_requested_gpus)", "stage"),
    _run("gpu_seconds", "GPUs times seconds that the attempts of a stage have held them, until now.",
         "sum by (namespace) (llava_run_gpu_seconds) / 3600", "stage", unit=_S),
    _run("productive_gpu_seconds", "Those of attempts that are over whose work was kept.",
         "sum(llava_run_productive_gpu_seconds) / sum(llava_run_gpu_seconds)", unit=_S),
    _run("lost_gpu_seconds", "Those of attempts that are over whose work was done again, or for nothing.",
         "sum by (namespace) (llava_run_lost_gpu_seconds) / 3600", unit=_S),
    _run("productive_seconds", "Seconds of attempts that are over whose work was kept.",
         "llava_run_productive_seconds", unit=_S),
    _run("lost_seconds", "Seconds of attempts that are over whose work was done again, or for nothing.",
         "llava_run_lost_seconds > 600", unit=_S),
    _run("queued_seconds", "Seconds that the run has waited in a queue, until now.", "llava_run_queued_seconds",
         unit=_S),
    _run("suspended_seconds", "Seconds that the run has been suspended, until now.", "llava_run_suspended_seconds",
         unit=_S),
    _run("planned_gpu_memory_bytes", "Peak memory of one GPU in training, as it was planned.",
         "llava_run_peak_gpu_memory_bytes / llava_run_planned_gpu_memory_bytes", unit=_BYTES),
    _run("peak_gpu_memory_bytes", "Most memory that torch has reserved on one GPU so far, of all ranks.",
         "llava_run_peak_gpu_memory_bytes / llava_run_available_gpu_memory_bytes > 0.95", unit=_BYTES),
    _run("available_gpu_memory_bytes", "Memory that one GPU has, where the nodes say so.",
         "llava_run_available_gpu_memory_bytes - llava_run_planned_gpu_memory_bytes", unit=_BYTES),
    _run("planned_pod_memory_bytes", "Peak memory of one training pod, without /dev/shm and caches, as planned.",
         "llava_run_planned_pod_memory_bytes", unit=_BYTES),
    _run("volume_free_bytes", "Free on the run's volume, as the reporting stage last saw it.",
         "llava_run_volume_free_bytes / llava_run_volume_size_bytes < 0.1", unit=_BYTES),
    _run("volume_size_bytes", "Size of the run's volume, as the reporting stage last saw it.",
         "llava_run_volume_size_bytes", unit=_BYTES),
    # --- results
    _run("score", "Score of a model in evaluation.",
         'llava_run_score{split="validation",model="tuned"} - ignoring (model) '
         'llava_run_score{split="validation",model="base"}', "metric", "split", "model"),
    _run("gate_outcome", "1 for what a gate of evaluation says: gate (what was gained) or retention (what was "
         "forgotten) is Passed, Failed or Undecided; no series where none was asked for.",
         'llava_run_gate_outcome{outcome!="Passed"} == 1', "gate", "outcome"),
    _run("gate_gain", "Gain that a gate goes by, tuned less base: its value, and the low and high end of its 95 % "
         "interval.", 'llava_run_gate_gain{bound="low"} - ignoring (bound) llava_run_gate_limit', "gate", "bound"),
    _run("gate_limit", "What that gain has to be above.",
         'llava_run_gate_gain{bound="value"} - ignoring (bound) llava_run_gate_limit', "gate"),
    _run("published_bytes", "Size of what stands at the run's destinations of a kind (s3, hf, oci or pvc), the merged "
         "model or the adapter; no series before it stands there.", "sum by (scheme) (llava_run_published_bytes)",
         "scheme", "what", unit=_BYTES),
)  # fmt: skip


def _operator(
    name: str, text: str, example: str, *labels: str,
    kind: Kind = Kind.COUNTER, unit: str = "", buckets: tuple[float, ...] = (),
) -> Family:  # fmt: skip
    return Family(
        name=PREFIX_OPERATOR + name, kind=kind, unit=unit, labels=labels, help=text, example=example, buckets=buckets
    )


_FAST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_STAGE = (10.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 14400.0, 28800.0, 86400.0, 259200.0, 604800.0)

OPERATOR_FAMILIES = (
    _operator("info", "1, with the operator's version.", "llava_operator_info", "version", kind=Kind.INFO),
    _operator("leader", "1 where this process leads.", "sum(llava_operator_leader) != 1", kind=Kind.GAUGE),
    # --- its work
    _operator("queue_depth", "Runs that wait for a pass.", "llava_operator_queue_depth > 100", kind=Kind.GAUGE),
    _operator("queue_wait_seconds", "Seconds from when a run was due for a pass to the pass.",
              "histogram_quantile(0.99, rate(llava_operator_queue_wait_seconds_bucket[5m]))",
              kind=Kind.HISTOGRAM, unit=_S, buckets=_FAST),
    _operator("queue_retries_total", "Passes that were put off because the one before ended with an error.",
              "rate(llava_operator_queue_retries_total[5m])"),
    _operator("pass_duration_seconds", "Seconds that a pass over a run took.",
              "histogram_quantile(0.99, rate(llava_operator_pass_duration_seconds_bucket[5m]))",
              kind=Kind.HISTOGRAM, unit=_S, buckets=_FAST),
    _operator("pass_errors_total", "Passes that ended with an error and are repeated.",
              "sum by (error) (rate(llava_operator_pass_errors_total[5m]))", "error"),
    _operator("relists_total", "Relists of runs and their children, by outcome: ok or failed.",
              'rate(llava_operator_relists_total{outcome="failed"}[15m]) > 0', "outcome"),
    _operator("watch_failures_total", "Watches that ended with an error and were begun anew.",
              "rate(llava_operator_watch_failures_total[5m])", "resource"),
    _operator("cached_objects", "Objects that the operator holds in memory.", "llava_operator_cached_objects",
              "resource", kind=Kind.GAUGE),
    _operator("objects_skipped_total", "Times that a Job or pod was passed over that carries the label of runs' "
              "children and is none: unreadable, unlabelled (names no run), unowned (no run of its namespace, or no "
              "Job of one, controls it). The log names the first of a kind in each namespace.",
              "rate(llava_operator_objects_skipped_total[5m])", "kind", "reason"),
    # --- the API server
    _operator("api_requests_total", "Requests to the API server by its answer; code is 0 where none came.",
              'sum by (verb, resource) (rate(llava_operator_api_requests_total{code=~"[45].*|0"}[5m]))',
              "verb", "resource", "code"),
    _operator("api_request_duration_seconds", "Seconds until the API server answered, watches left out.",
              "histogram_quantile(0.99, sum by (le, verb) "
              "(rate(llava_operator_api_request_duration_seconds_bucket[5m])))",
              "verb", "resource", kind=Kind.HISTOGRAM, unit=_S, buckets=_FAST),
    # --- what remains of runs that were deleted
    _operator("runs_ended_total", "Runs that this process has seen end; reason is empty for those that succeeded.",
              "sum by (phase, reason) (increase(llava_operator_runs_ended_total[1d]))",
              "namespace", "phase", "reason"),
    _operator("stage_duration_seconds", "Seconds from a stage's beginning to its end, of stages that have ended.",
              "histogram_quantile(0.5, sum by (le, stage) (rate(llava_operator_stage_duration_seconds_bucket[7d])))",
              "stage", "state", kind=Kind.HISTOGRAM, unit=_S, buckets=_STAGE),
    _operator("attempts_ended_total", "Attempts that this process has seen end, those that succeeded left out.",
              "sum by (reason) (increase(llava_operator_attempts_ended_total[1d]))", "namespace", "stage", "reason"),
    _operator("gpu_seconds_total", "GPUs times seconds that attempts have held them which are over: productive "
              "(their work was kept) or lost (it was done again, or for nothing).",
              'sum by (namespace) (increase(llava_operator_gpu_seconds_total{use="lost"}[30d])) / 3600',
              "namespace", "use", unit=_S),
    # --- who speaks to it
    _operator("reports_total", "Progress reports by the status code of the answer, whether their token was reviewed "
              "or not.", 'sum(rate(llava_operator_reports_total{code!="200"}[5m]))', "code"),
    _operator("reports_refused_total", "Progress reports that were refused, by why: token, not_a_pod_of_a_run, "
              "not_first_pod, not_current, too_often, unreadable, busy.",
              "sum by (reason) (rate(llava_operator_reports_refused_total[5m]))", "reason"),
    _operator("connections_closed_total", "Connections to report, http or metrics that the operator has ended: "
              "rate (turned away: too many new ones or requests a second), crowded (the oldest made room), "
              "handshake (no TLS in time), slow (no whole request in time, or its answer not read).",
              "rate(llava_operator_connections_closed_total[5m])", "endpoint", "reason"),
    _operator("certificate_not_after_timestamp_seconds", "Until when a certificate counts (its notAfter), in seconds "
              "since 1970: authority (in the Secret, which signs the others; of it and its root, the one that ends "
              "first), report and metrics (what these endpoints present; metrics over TLS alone).",
              "min by (certificate) (llava_operator_certificate_not_after_timestamp_seconds - time()) / 86400",
              "certificate", kind=Kind.GAUGE, unit=_INSTANT),
    _operator("certificate_not_before_timestamp_seconds", "From when that certificate counts (its notBefore), in "
              "seconds since 1970.",
              "llava_operator_certificate_not_after_timestamp_seconds - "
              "llava_operator_certificate_not_before_timestamp_seconds",
              "certificate", kind=Kind.GAUGE, unit=_INSTANT),
    _operator("notifications_total", "Notifications by outcome: delivered, or undelivered (given up).",
              'increase(llava_operator_notifications_total{outcome="undelivered"}[1h]) > 0', "event", "outcome"),
)  # fmt: skip
FAMILIES = (*RUN_FAMILIES, *OPERATOR_FAMILIES)
