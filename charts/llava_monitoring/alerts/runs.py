"""Alerts about single runs, for the team whose they are: `namespace` and `name` say which.

Series of runs come from the pod that leads, so another pod's take over when it changes: nothing here compares what one
pod has told with what it told before, but what is known of the run. What is no longer told (a run that was deleted, an
operator that is down) alerts nobody: LlavaOperatorDown does.
"""

from llava_api.constants import TRAINING_STAGES, GateOutcome, StageName
from llava_api.reasons import Reason
from llava_monitoring.alerts.alert import OF_OPERATOR, Alert
from llava_monitoring.alerts.limits import (
    BLOCKED,
    CHECKPOINT,
    FAILED,
    NO_PROGRESS,
    RESTARTS,
    RESTARTS_WITHIN,
    VALIDATION_LOSS,
    VOLUME_USED,
    WAITING,
)
from llava_monitoring.queries import each_run, select

_SAME_RUN = "on (namespace, name)"
_RUN = "{{ $labels.namespace }}/{{ $labels.name }}"

FOR_ROOM = (Reason.UNSCHEDULABLE, Reason.GANG_NOT_SCHEDULED, Reason.QUEUED)
"""What a run waits for that others give back some day."""
FOR_SOMEBODY = (
    Reason.MISSING_OBJECT, Reason.IMAGE_CANNOT_BE_PULLED, Reason.QUOTA_EXCEEDED, Reason.VOLUME_NOT_MOUNTED,
    Reason.VOLUME_OF_EARLIER_RUN, Reason.REFUSED, Reason.CONTAINER_NOT_STARTED, Reason.API_ERROR, Reason.NOT_ALLOWED,
    Reason.PLAN_DOES_NOT_FIT,
)  # fmt: skip
"""What a run waits for that does not pass unless somebody does something."""


def _series(metric: str, *matchers: str) -> str:
    return select(metric, OF_OPERATOR, *matchers)


def _one_of(label: str, *values: str) -> str:
    return f'{label}=~"{"|".join(values)}"'


def _running(*matchers: str, labels: tuple[str, ...] = ()) -> str:
    series = _series("llava_run_stage_state", 'state="Running"', *matchers)
    return each_run(f"{series} == 1", *labels)


def _has_waited(within: object) -> str:
    """Whether a run has waited for anything within so many seconds: pods, a queue, its next attempt, a person."""
    return each_run(f"max_over_time({_series('llava_run_waiting_timestamp_seconds')}[{within}s])")


def _latest(*series: str) -> str:
    return each_run(" or ".join(series))


_WORD = _latest(_series("llava_run_progress_timestamp_seconds"), _series("llava_run_attempt_start_timestamp_seconds"))
_DONE = each_run(_series("llava_run_progress_ratio"), "stage")
_DONE_BEFORE = each_run(f"{_series('llava_run_progress_ratio')} offset {NO_PROGRESS}s", "stage")
_TRAINS = _one_of("stage", *sorted(TRAINING_STAGES))
_SAVED = _latest(
    _series("llava_run_checkpoint_timestamp_seconds"), _series("llava_run_attempt_start_timestamp_seconds", _TRAINS)
)
_ATTEMPT = each_run(_series("llava_run_attempt"), "stage")

_SKIPPED = _series("llava_run_stage_state", _one_of("stage", StageName.PUBLISH), 'state="Skipped"')

RUN_ALERTS = (
    Alert(
        name="LlavaRunNoProgress",
        # Neither silence nor reports of the same. Of a stage that is whole and is being saved, only silence counts.
        expression=(
            f"{_running(labels=('stage',))} and {_SAME_RUN} "
            f"(time() - {_WORD} > {NO_PROGRESS} or ({_DONE} < 1) == {_DONE_BEFORE}) "
            f"unless {_SAME_RUN} {_has_waited(NO_PROGRESS)}"
        ),
        hold="5m",
        summary=f"Run {_RUN} does not go on.",
        description=f"Stage {{{{ $labels.stage }}}} of run {_RUN} has its pods and has done nothing more for "
        f"{{{{ {NO_PROGRESS} | humanizeDuration }}}}, or has reported nothing. The GPUs that it holds may stand still.",
    ),
    Alert(
        name="LlavaRunCheckpointTooOld",
        expression=(
            f"time() - {_SAVED} > {CHECKPOINT} and {_SAME_RUN} {_running(_TRAINS)} "
            f"unless {_SAME_RUN} {_has_waited(CHECKPOINT)}"
        ),
        hold="5m",
        summary=f"Run {_RUN} has saved no checkpoint for long.",
        description=f"Run {_RUN} trains, and its newest checkpoint (or the attempt's start, without one) is "
        "{{ $value | humanizeDuration }} old: that much is lost when a pod or its node is.",
    ),
    Alert(
        name="LlavaRunHeldOutLossRising",
        # Both are of the same report. A restart does steps again, and with them what was seen after them.
        expression=(
            f"{each_run(_series('llava_run_validation_loss'))} / {_SAME_RUN} "
            f"{each_run(_series('llava_run_lowest_validation_loss'))} > {VALIDATION_LOSS} "
            f"and {_SAME_RUN} {_running(_one_of('stage', StageName.TRAIN))}"
        ),
        hold="5m",
        summary=f"Run {_RUN} gets worse on held-out samples.",
        description=f"Held-out loss of run {_RUN} is {{{{ $value | humanize }}}} times its lowest: it learns its "
        "training samples by heart. GPUs are spent on what makes the model worse.",
    ),
    Alert(
        name="LlavaRunRestartStorm",
        expression=(
            f"sum by (namespace, name) (changes({_ATTEMPT}[{RESTARTS_WITHIN}s:30s])) >= {RESTARTS} "
            f"and {_SAME_RUN} {_running()}"
        ),
        hold="1m",
        summary=f"Run {_RUN} starts again and again.",
        description=f"{{{{ $value }}}} attempts of run {_RUN} were begun anew within "
        f"{{{{ {RESTARTS_WITHIN} | humanizeDuration }}}}.",
    ),
    Alert(
        name="LlavaRunWaitingTooLong",
        # Where pods of a gang find no room, the reason goes to and fro: from five minutes ago is as good as now.
        expression=each_run(
            f"last_over_time({_series('llava_run_waiting_timestamp_seconds', _one_of('reason', *FOR_ROOM))}[5m])"
        ),
        hold=f"{WAITING}s",
        summary=f"Run {_RUN} finds no room.",
        description=f"Run {_RUN} has waited for {{{{ {WAITING} | humanizeDuration }}}} or longer for GPUs, or for "
        "whatever else its pods ask for.",
    ),
    Alert(
        name="LlavaRunBlocked",
        expression="time() - "
        + each_run(_series("llava_run_waiting_timestamp_seconds", _one_of("reason", *FOR_SOMEBODY)), "stage", "reason")
        + f" > {BLOCKED}",
        hold="1m",
        summary=f"Run {_RUN} waits for somebody: {{{{ $labels.reason }}}}.",
        description=f"Stage {{{{ $labels.stage }}}} of run {_RUN} has waited for "
        "{{ $value | humanizeDuration }} with reason {{ $labels.reason }}, and will until somebody does something.",
    ),
    Alert(
        name="LlavaRunVolumeAlmostFull",
        expression=(
            each_run(f"1 - {_series('llava_run_volume_free_bytes')} / {_series('llava_run_volume_size_bytes')}")
            + f" > {VOLUME_USED} and {_SAME_RUN} {_running()}"
        ),
        hold="1m",
        summary=f"The volume of run {_RUN} is almost full.",
        description=f"{{{{ $value | humanizePercentage }}}} of the volume of run {_RUN} are used. Full, it ends the "
        "run as StorageFull.",
    ),
    Alert(
        name="LlavaRunGateFailed",
        # The outcome stands in the status before the run has ended.
        expression=(
            f"{each_run(_series('llava_run_gate_outcome', _one_of('outcome', GateOutcome.FAILED)), 'gate')} "
            f"and {_SAME_RUN} "
            f"time() - {each_run(_series('llava_run_completion_timestamp_seconds'))} < {FAILED}"
        ),
        hold="0s",
        summary=f"The tuned model of run {_RUN} is not good enough: {{{{ $labels.gate }}}}.",
        description=f"Run {_RUN} has succeeded, and its evaluation says of {{{{ $labels.gate }}}} that the tuned model "
        "is not as good as was asked for.",
    ),
    Alert(
        name="LlavaRunNotPublished",
        # A gate that has failed has an alert of its own, and so has publishing that has.
        expression=(
            f"{each_run(_SKIPPED)} "
            f"and {_SAME_RUN} "
            f"time() - {each_run(_series('llava_run_completion_timestamp_seconds'))} < {FAILED} "
            f"unless {_SAME_RUN} "
            f"{each_run(_series('llava_run_gate_outcome', _one_of('outcome', GateOutcome.FAILED)))}"
        ),
        hold="0s",
        summary=f"The model of run {_RUN} is not published.",
        description=f"Run {_RUN} has succeeded, and what it has made was not published: evaluation cannot say whether "
        "it is as good as was asked for.",
    ),
    Alert(
        name="LlavaRunFailed",
        expression=(
            f"{each_run(_series('llava_run_failure'), 'stage', 'reason')} and {_SAME_RUN} "
            f"time() - {each_run(_series('llava_run_completion_timestamp_seconds'))} < {FAILED}"
        ),
        hold="0s",
        summary=f"Run {_RUN} has failed: {{{{ $labels.reason }}}}.",
        description=f"Run {_RUN} has failed in stage {{{{ $labels.stage }}}} with reason {{{{ $labels.reason }}}}, and "
        "is not tried again by itself.",
    ),
)
