"""All runs: what runs, waits and fails, whose it is, what it costs and what comes of it."""

from grafana_foundation_sdk.models import dashboard as models

from llava_api.constants import Phase, StageName
from llava_monitoring.dashboards.board import FLEET, RUN, build
from llava_monitoring.panels import (
    BLUE,
    COUNT,
    GREEN,
    OF_PHASES,
    RATIO,
    RED,
    SECONDS,
    YELLOW,
    Column,
    Panel,
    Query,
    Row,
    bars,
    graph,
    number,
    row,
    rows_of,
)
from llava_monitoring.queries import IN_NAMESPACES, each_run, seen, select, with_team
from llava_monitoring.variables import choices, entry

_TO_RUN = (
    f"/d/{RUN.uid}?${{datasource:queryparam}}&var-namespace=${{__data.fields.Namespace}}"
    "&var-run=${__data.fields.Run}&${__url_time_range}"
)
_HOURS = " / 3600"
_PRICE = " * $price"
_NOT_SUSPENDED = 'reason!="Suspended"'


def _of(metric: str, *matchers: str) -> str:
    return select(metric, IN_NAMESPACES, *matchers)


def _in_phase(*phases: str) -> str:
    either = "|".join(phases)
    return with_team(each_run(_of("llava_run_phase", f'phase=~"{either}"') + " == 1", "phase"))


def _ended(phase: str) -> str:
    """Runs that ended so in the dashboard's time, with their team."""
    ends = each_run(seen("llava_run_completion_timestamp_seconds", IN_NAMESPACES))
    so = each_run(seen("llava_run_phase", IN_NAMESPACES, f'phase="{phase}"'))
    return with_team(f"({ends} >= time() - $__range_s) and on (namespace, name) {so}", seen_once=True)


def _waiting(*labels: str) -> str:
    """Seconds for which runs have been waiting; suspended ones wait for nobody but a person, and are counted apart."""
    return with_team(
        each_run(f"time() - {_of('llava_run_waiting_timestamp_seconds', _NOT_SUSPENDED)}", "reason", *labels)
    )


def _spent(metric: str, *, by_stage: bool = False) -> str:
    """GPU-seconds of every run that was there in the dashboard's time, with its team."""
    whole = seen(metric, IN_NAMESPACES)
    return with_team(f"sum by (namespace, name) ({each_run(whole, *(['stage'] if by_stage else []))})", seen_once=True)


def _score(model: str) -> str:
    return each_run(_of("llava_run_score", 'split="validation"', f'model="{model}"'), "metric")


_HELD = _spent("llava_run_gpu_seconds", by_stage=True)
_KEPT = _spent("llava_run_productive_gpu_seconds")
_LOST = _spent("llava_run_lost_gpu_seconds")
_GPUS = with_team(each_run(_of("llava_run_gpus"), "stage"))
_WANTED = with_team(each_run(_of("llava_run_requested_gpus"), "stage"))
_PUBLISHED = with_team(each_run(seen("llava_run_published_bytes", IN_NAMESPACES), "scheme"), seen_once=True)
_HELD_BACK = with_team(
    each_run(seen("llava_run_stage_state", IN_NAMESPACES, f'stage="{StageName.PUBLISH}"', 'state="Skipped"')),
    seen_once=True,
)
_GAIN = with_team(f"{_score('tuned')} - {_score('base')}")


def _now() -> Row:
    return row(
        "Now",
        number("Running", "Runs whose stages are at work.", COUNT, Query(f"count({_in_phase('Running')})"),
               steps=[(None, GREEN)]),
        number("Waiting", "Runs that something stands in the way of: no GPUs, a queue, a missing Secret, an image that "
               "cannot be pulled. The reasons are in the graph to the right below.", COUNT,
               Query(f"count(count by (namespace, name) ({_waiting()}))"), steps=[(None, BLUE), (1, YELLOW)]),
        number("Suspended", "Runs that somebody has suspended: they hold no GPUs and go on from their newest "
               "checkpoint.",
               COUNT, Query(f"count({_in_phase('Suspended')})")),
        number("Failed", "Runs that failed in the time shown, those included that were tried again since.", COUNT,
               Query(f"count({_ended('Failed')})"), steps=[(None, GREEN), (1, RED)]),
        number("Succeeded", "Runs that ended well in the time shown.", COUNT, Query(f"count({_ended('Succeeded')})"),
               steps=[(None, GREEN)]),
        number("GPUs held", "GPUs that pods of runs hold right now.", COUNT, Query(f"sum({_GPUS})")),
        graph("Runs by phase", "Runs in each phase. Those that ended stay for a day (metrics.finishedRunSeconds of the "
              "chart).", COUNT, Query(f"count by (phase) ({_in_phase(*Phase)})", "{{phase}}"), width=12, stacked=True,
              colors=OF_PHASES),
        graph("What runs wait for", "Waiting runs by the reason that kubectl get lft shows; docs/waiting.md explains "
              "each.", COUNT, Query(f"count by (reason) ({_waiting()})", "{{reason}}"), width=12, stacked=True),
        _runs(),
    )  # fmt: skip


def _runs() -> Panel:
    queries = [
        Query(_in_phase(*Phase)),
        Query(each_run(_of("llava_run_progress_ratio"))),
        Query(each_run(_of("llava_run_eta_seconds"))),
        Query(f"sum by (namespace, name) ({each_run(_of('llava_run_gpus'), 'stage')})"),
        Query(f"sum by (namespace, name) ({each_run(_of('llava_run_restarts'), 'stage')})"),
        Query(f"time() - {each_run(_of('llava_run_created_timestamp_seconds'))}"),
    ]
    columns = [
        Column("Namespace", "namespace"),
        Column("Run", "name"),
        Column("Team", "team"),
        Column("Phase", "phase"),
        Column("Stage done", "Value #B", RATIO),
        Column("Time left in the stage", "Value #C", SECONDS),
        Column("GPUs", "Value #D"),
        Column("Own failures", "Value #E"),
        Column("Age", "Value #F", SECONDS),
    ]
    return rows_of("Runs", "Every run that the operator tells of. A run's name leads to its own dashboard.",
                   queries, columns, link=("Run", "Its dashboard", _TO_RUN))  # fmt: skip


def _whose() -> Row:
    running, failed = _in_phase("Running"), _ended("Failed")
    return row(
        "By namespace and team",
        graph("Running, by namespace", "Runs at work in each namespace.", COUNT,
              Query(f"count by (namespace) ({running})", "{{namespace}}"), stacked=True),
        graph("Running, by team", "Runs at work of each team (the value of the run's label that the chart's value "
              "metrics.teamLabel names).", COUNT, Query(f"count by (team) ({running})", "{{team}}"), stacked=True),
        bars("Failed, by namespace and team", "Runs that failed in the time shown.", COUNT,
             Query(f"count by (namespace, team) ({failed})", "{{namespace}} {{team}}")),
    )  # fmt: skip


def _cost() -> Row:
    # Told apart by a label, or the one would stand for the other where a stage has both.
    wanted = f'label_replace({_WANTED}, "kind", "waited for", "", "")'
    asked = f"sum_over_time(sum({_GPUS} or {wanted})[$__range:1m]) / 60"
    groups = "sum by (namespace, team)"
    return row(
        "GPU-hours and what they cost",
        number("GPU-hours asked for", "GPUs that runs held or waited for, times the hours of the time shown.", COUNT,
               Query(asked), decimals=2),
        number("GPU-hours held", "For how long runs of the time shown have held GPUs, in their whole lives.", COUNT,
               Query(f"sum({_HELD}){_HOURS}"), decimals=2),
        number("Productive", "Those of attempts that are over whose work was kept.", COUNT,
               Query(f"sum({_KEPT}){_HOURS}"), steps=[(None, GREEN)], decimals=2),
        number("Lost", "Those of attempts that are over whose work had to be done again, or was for nothing: failures, "
               "drains and suspensions after the newest checkpoint. More checkpoints lose less.", COUNT,
               Query(f"sum({_LOST}){_HOURS}"), steps=[(None, YELLOW)], decimals=2),
        number("Productive share", "Of the GPU-hours of attempts that are over, how many were not lost.", RATIO,
               Query(f"sum({_KEPT}) / (sum({_KEPT}) + sum({_LOST}))"), absent="-",
               steps=[(None, RED), (0.8, YELLOW), (0.95, GREEN)]),
        number("Cost", "GPU-hours held at the price of one that stands at the top, in your currency.", COUNT,
               Query(f"sum({_HELD}){_HOURS}{_PRICE}"), decimals=2),
        graph("GPUs held and waited for", "GPUs that runs hold, and those that they ask for and do not have.", COUNT,
              Query(f"sum by (namespace) ({_GPUS})", "{{namespace}} holds"),
              Query(f"sum by (namespace) ({_WANTED})", "{{namespace}} waits for"), width=12, stacked=True),
        rows_of("GPU-hours by namespace and team", "Of the runs of the time shown, in their whole lives. The cost is "
                "that of the hours held.",
                [Query(f"{groups} ({_HELD}){_HOURS}"), Query(f"{groups} ({_KEPT}){_HOURS}"),
                 Query(f"{groups} ({_LOST}){_HOURS}"), Query(f"{groups} ({_HELD}){_HOURS}{_PRICE}")],
                [Column("Namespace", "namespace"), Column("Team", "team"), Column("Held", "Value #A"),
                 Column("Productive", "Value #B"), Column("Lost", "Value #C"), Column("Cost", "Value #D")],
                width=12),
    )  # fmt: skip


def _queue() -> Row:
    queued = with_team(each_run(_of("llava_run_queued_seconds")))
    ended = with_team(each_run(_of("llava_run_attempts_ended"), "reason"))
    return row(
        "Queue and restarts",
        graph("Longest wait, by reason", "How long that run has been waiting which waits longest.", SECONDS,
              Query(f"max by (reason) ({_waiting()})", "{{reason}}")),
        graph("Time in queues", "Seconds that runs have waited in Kueue's queues, added up.", SECONDS,
              Query(f"sum by (namespace) ({queued})", "{{namespace}}"), stacked=True),
        graph("Attempts that ended without success", "By reason, of all runs that are shown: docs/failures.md says of "
              "each whether it is tried again. A step up is a restart or a failure.", COUNT,
              Query(f"sum by (reason) ({ended})", "{{reason}}"), stacked=True),
    )  # fmt: skip


def _results() -> Row:
    durations = "llava_operator_stage_duration_seconds_bucket"
    within = f"sum by (le, stage) (increase({_with_state(durations)}[$__range]))"
    return row(
        "What comes of it",
        bars("Score gained", "What the tuned model scores above its base on samples that training has not seen, by "
             "run and metric.", RATIO, Query(_GAIN, "{{namespace}}/{{name}} {{metric}}"), width=12),
        bars("How long stages take", "Median of the stages that ended well in the time shown, all namespaces together.",
             # The median of nothing is NaN, which is no more than 0.
             SECONDS, Query(f"histogram_quantile(0.5, {within}) > 0", "{{stage}}"), width=12),
        bars("Published", "Runs of the time shown whose model or adapter stands at a destination of spec.publish, by "
             "what kind that is.", COUNT, Query(f"count by (scheme) ({_PUBLISHED})", "{{scheme}}"), width=12),
        bars("Held back by a gate", "Runs of the time shown that ended well and were not published, since a gate that "
             "was asked for has not passed.", COUNT, Query(f"count by (namespace, team) ({_HELD_BACK})",
             "{{namespace}} {{team}}"), width=12),
    )  # fmt: skip


def _with_state(metric: str) -> str:
    return select(metric, 'state="Succeeded"')


def build_fleet() -> models.Dashboard:
    """The dashboard about all runs."""
    return build(
        FLEET,
        "All runs: what runs, waits and fails, whose it is, what it costs and what comes of it.",
        since="now-24h",
        variables=[
            choices("namespace", "Namespace", "label_values(llava_run_phase, namespace)"),
            choices("team", "Team", 'label_values(llava_run_info{namespace=~"$namespace"}, team)'),
            entry("price", "Price of a GPU-hour", "2.50"),
        ],
        rows=[_now(), _whose(), _cost(), _queue(), _results()],
    )
