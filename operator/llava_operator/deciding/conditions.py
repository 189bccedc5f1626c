"""Conditions follow from the rest of a status. Pure."""

from dataclasses import dataclass

from llava_api.constants import STAGE_CONDITION, Condition, Phase
from llava_api.status import MAX_TEXT, ConditionStatus, StageState, StageStatus, Status, Time


@dataclass(frozen=True, kw_only=True)
class _Finding:
    holds: bool
    reason: str
    message: str = ""


def build_conditions(status: Status, now: Time) -> tuple[ConditionStatus, ...]:
    """Every condition of a status; ``lastTransitionTime`` changes only with ``status``."""
    before = {condition.type: condition for condition in status.conditions}
    return tuple(
        _condition(kind, finding, before.get(kind), status.observed_generation, now)
        for kind, finding in _findings(status).items()
    )


def _condition(
    kind: Condition, finding: _Finding, before: ConditionStatus | None, generation: int | None, now: Time
) -> ConditionStatus:
    holds = before is not None and before.status == "True"
    is_unchanged = before is not None and before.status != "Unknown" and holds == finding.holds
    return ConditionStatus(
        type=kind,
        status="True" if finding.holds else "False",
        reason=finding.reason,
        message=finding.message[:MAX_TEXT],
        last_transition_time=before.last_transition_time if before and is_unchanged else now,
        observed_generation=generation,
    )


def _findings(status: Status) -> dict[Condition, _Finding]:
    succeeded, failed = status.phase is Phase.SUCCEEDED, status.phase is Phase.FAILED
    suspended = status.phase is Phase.SUSPENDED
    reason = status.failure.reason if failed and status.failure else str(status.phase or Phase.PENDING)
    message = _overall_message(status)
    return {
        Condition.READY: _Finding(holds=succeeded, reason=reason, message=message),
        **{STAGE_CONDITION[stage.name]: _stage_finding(stage, status) for stage in status.stages},
        Condition.COMPLETE: _Finding(holds=succeeded, reason=reason, message=message if succeeded else ""),
        Condition.FAILED: _Finding(holds=failed, reason=reason, message=message if failed else ""),
        Condition.REPORTING: _reporting(status),
        Condition.SUSPENDED: _Finding(holds=suspended, reason=reason, message=message if suspended else ""),
    }


def _reporting(status: Status) -> _Finding:
    """False where training says nothing. It goes on all the same: its network may be what is down."""
    if status.silent_since is None:
        return _Finding(holds=True, reason="AsExpected")
    return _Finding(holds=False, reason="Silent", message=f"training has reported nothing since {status.silent_since}")


def _stage_finding(stage: StageStatus, status: Status) -> _Finding:
    has_failed = stage.state is StageState.FAILED and status.failure is not None
    reason = status.failure.reason if has_failed and status.failure else str(stage.state)
    return _Finding(holds=stage.state is StageState.SUCCEEDED, reason=reason, message=stage.message)


def _overall_message(status: Status) -> str:
    """What there is to say about the run as a whole."""
    if status.phase is Phase.FAILED and status.failure:
        parts = [str(status.failure.stage or ""), status.failure.message]
    elif status.phase is Phase.SUCCEEDED:
        parts = ["every stage has succeeded"]
    else:
        running = next((stage for stage in status.stages if stage.state is StageState.RUNNING), None)
        parts = [str(running.name), running.message] if running else []
    return ": ".join(filter(None, parts))
