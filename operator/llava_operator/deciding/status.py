"""How a status is written: conditions and summary follow from stages, progress and failure.

Pure: from values to values. Nothing here decides what happens next.
"""

from collections.abc import Sequence
from datetime import datetime

from llava_api.constants import StageName
from llava_api.status import Metric, NotificationState, Progress, StageState, StageStatus, Status, Summary, Time
from llava_operator.clock import to_time
from llava_operator.deciding.conditions import build_conditions
from llava_operator.kube.objects import Object

_GIGABYTE = 10**9


def replace_stage(status: Status, stage: StageStatus) -> Status:
    """The status with ``stage`` in its place."""
    stages = tuple(stage if old.name is stage.name else old for old in status.stages)
    return status.model_copy(update={"stages": stages})


def complete_status(status: Status, *, before: Status, generation: int, shown_metric: str, now: datetime) -> Status:
    """Everything that follows from the rest: summary, conditions, the generation, since when a reason holds.

    Args:
        status: as it is to be.
        before: as it was written last.
        generation: of the spec.
        shown_metric: whose score the summary has.
        now: the present instant.
    """
    stages = tuple(_date_reason(stage, before, to_time(now)) for stage in status.stages)
    status = status.model_copy(update={"stages": stages, "observed_generation": generation})
    status = status.model_copy(update={"summary": _summary(status, shown_metric)})
    conditions = build_conditions(status, to_time(now))
    return status.model_copy(update={"conditions": conditions})


def _date_reason(stage: StageStatus, before: Status, now: Time) -> StageStatus:
    old = next((one for one in before.stages if one.name is stage.name), None)
    is_same = old is not None and old.reason_time is not None
    if old is not None and is_same and (old.reason, old.attempt) == (stage.reason, stage.attempt):
        return stage.model_copy(update={"reason_time": old.reason_time})
    return stage.model_copy(update={"reason_time": now if stage.reason else None})


def _summary(status: Status, shown_metric: str) -> Summary:
    begun = [stage for stage in status.stages if stage.state not in (StageState.PENDING, StageState.SKIPPED)]
    if not begun:
        return Summary()
    stage = begun[-1]
    progress = status.progress if _is_about(status.progress, stage) else None
    running = stage.state is StageState.RUNNING
    return Summary(
        stage=str(stage.name),
        step=_steps(progress) if progress else "",
        percent=_percent(progress, stage),
        eta=format_duration(progress.eta_seconds) if running and progress and progress.eta_seconds is not None else "",
        attempt=str(stage.attempt or ""),
        restarts=str(sum(one.restarts for one in status.stages)),
        score=_score(status.evaluation.metrics if status.evaluation else (), shown_metric),
    )


def _is_about(progress: Progress | None, stage: StageStatus) -> bool:
    return progress is not None and (progress.stage, progress.attempt) == (stage.name, stage.attempt)


def _steps(progress: Progress) -> str:
    if progress.unit == "steps":
        return f"{progress.step}/{progress.total_steps or '?'}"
    total = f"{progress.total_steps / _GIGABYTE:.2f}" if progress.total_steps else "?"
    return f"{progress.step / _GIGABYTE:.2f}/{total} GB"


def _percent(progress: Progress | None, stage: StageStatus) -> str:
    if stage.state is StageState.SUCCEEDED:
        return "100"
    if progress is None or not progress.total_steps:
        return ""
    return str(min(100, 100 * progress.step // progress.total_steps))


def _score(metrics: tuple[Metric, ...], shown: str) -> str:
    """That of held-out questions; empty where this metric has judged none of them, whatever others say."""
    held_out = next((metric for metric in metrics if (metric.split, metric.name) == ("validation", shown)), None)
    return f"{held_out.base:.2f}→{held_out.tuned:.2f}" if held_out else ""


def format_duration(seconds: int) -> str:
    """A duration as kubectl writes ages: the one or two largest units, like 45s, 12m, 3h5m, 2d4h."""
    if seconds < 120:
        return f"{seconds}s"
    minutes = seconds // 60
    if minutes < 120:
        return f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}h{minutes}m" if minutes else f"{hours}h"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours}h" if hours else f"{days}d"


def first_stages(stages: Sequence[StageName]) -> tuple[StageStatus, ...]:
    """Every stage, none begun."""
    return tuple(StageStatus(name=name) for name in stages)


def next_stage(status: Status, name: StageName) -> StageName | None:
    """The stage after ``name``; None after the last."""
    names = [stage.name for stage in status.stages]
    return next(iter(names[names.index(name) + 1 :]), None)


def without_texts(status: Status) -> Status:
    """The status without what is only for a person to read: alone it is no reason for a write."""
    stages = tuple(stage.model_copy(update={"message": ""}) for stage in status.stages)
    conditions = tuple(held.model_copy(update={"message": ""}) for held in status.conditions)
    trouble = status.api_trouble and status.api_trouble.model_copy(update={"message": ""})
    # That one is owed is no text; that it was delivered can wait.
    settled = {"state": NotificationState.PENDING, "outcome": "", "first_try_time": None, "completion_time": None}
    notifications = tuple(one.model_copy(update=settled) for one in status.notifications)
    update = {"stages": stages, "conditions": conditions, "api_trouble": trouble, "notifications": notifications}
    return status.model_copy(update=update)


def dump_status(status: Status) -> Object:
    """The status as the API has it, without what is null."""
    dumped: Object = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    return dumped


def merge_patch(before: Object, after: Object) -> Object:
    """JSON merge patch (RFC 7396) that turns ``before`` into ``after``; empty if they are equal.

    Fields in neither, such as another version's, stay as they are.
    """
    patch: Object = dict.fromkeys(before.keys() - after.keys())
    for key, value in after.items():
        old = before.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            if nested := merge_patch(old, value):
                patch[key] = nested
        elif old != value or key not in before:
            patch[key] = value
    return patch
