"""The shapes that queries have in common.

Every series about a run is aggregated by what names the run before it is joined with another: what a ServiceMonitor
attaches (the operator's pod, above all) changes when another pod leads, and would leave each run twice for a moment.
"""

from llava_api.constants import STAGES

IN_NAMESPACES = 'namespace=~"$namespace"'
"""Of a dashboard about many runs."""
OF_RUN = 'namespace="$namespace",name="$run"'
"""Of a dashboard about one run."""
PODS_OF_RUN = f'namespace="$namespace",pod=~"$run-({"|".join(STAGES)})-[0-9]+-.+"'
"""Pods are known to others by name alone, which is made of run, stage, attempt and index (llava_api.names)."""
_RUN = "namespace, name"


def select(metric: str, *matchers: str) -> str:
    """A metric's series that the matchers name."""
    return f"{metric}{{{','.join(matchers)}}}"


def each_run(expression: str, *labels: str) -> str:
    """One series for each run and further labels."""
    return f"max by ({', '.join((_RUN, *labels))}) ({expression})"


def seen(metric: str, *matchers: str) -> str:
    """The last value in the dashboard's time of every series, of runs that were deleted since then too."""
    return f"last_over_time({select(metric, *matchers)}[$__range])"


def with_team(expression: str, *, seen_once: bool = False) -> str:
    """The same with the run's team as a label, for the teams that were chosen.

    Args:
        expression: with one series for each run and further labels.
        seen_once: of runs that were deleted in the dashboard's time, too.
    """
    matchers = (IN_NAMESPACES, 'team=~"$team"')
    info = seen("llava_run_info", *matchers) if seen_once else select("llava_run_info", *matchers)
    # One of them, where a run's label was changed or two pods tell of it.
    return f"({expression}) * on ({_RUN}) group_left (team) topk by ({_RUN}) (1, {info})"
