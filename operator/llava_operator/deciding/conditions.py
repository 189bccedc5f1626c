"""Conditions follow from the rest of a status. Pure."""

from dataclasses import dataclass
from typing import Literal

from llava_api.constants import STAGE_CONDITION, Condition, GateOutcome, Phase
from llava_api.failures import Reason
from llava_api.status import MAX_TEXT, ConditionStatus, StageState, StageStatus, Status, Time
from llava_operator.deciding.gates import combine_gates, describe_gates
from llava_operator.deciding.publication import describe_success
from llava_operator.deciding.restarts import MAX_DISTURBED, is_disturbed


@dataclass(frozen=True, kw_only=True)
class _Finding:
    holds: bool | None
    """None: nobody knows."""
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
    status: Literal["True", "False", "Unknown"] = "Unknown"
    if finding.holds is not None:
        status = "True" if finding.holds else "False"
    is_unchanged = before is not None and before.status == status
    return ConditionStatus(
        type=kind,
        status=status,
        reason=finding.reason,
        message=finding.message[:MAX_TEXT],
        last_transition_time=before.last_transition_time if before and is_unchanged else now,
        observed_generation=generation,
    )


def _findings(status: Status) -> dict[Condition, _Finding]:
    succeeded, failed = status.phase is Phase.SUCCEEDED, status.phase is Phase.FAILED
    suspended = status.phase is Phase.SUSPENDED
    under_way = not (succeeded or failed or suspended)
    has_cause = (failed or suspended) and status.failure is not None
    reason = status.failure.reason if has_cause and status.failure else str(status.phase or Phase.PENDING)
    waits = _waiting_reason(status) or reason
    message = _overall_message(status)
    return {
        Condition.READY: _Finding(holds=succeeded, reason=waits, message=message),
        # As kstatus has it: one of the two holds, or neither of a run that has succeeded or rests.
        Condition.RECONCILING: _Finding(holds=under_way, reason=waits),
        Condition.STALLED: _Finding(holds=failed, reason=reason, message=message if failed else ""),
        **{STAGE_CONDITION[stage.name]: _stage_finding(stage, status) for stage in status.stages},
        Condition.COMPLETE: _Finding(holds=succeeded, reason=reason, message=message if succeeded else ""),
        Condition.FAILED: _Finding(holds=failed, reason=reason, message=message if failed else ""),
        Condition.REPORTING: _reporting(status),
        Condition.DISTURBED: _disturbed(status),
        Condition.SUSPENDED: _Finding(holds=suspended, reason=reason, message=message if suspended else ""),
        **_gate(status),
    }


def _gate(status: Status) -> dict[Condition, _Finding]:
    """Whether the tuned model is as good as was asked for, once evaluation has judged it; nothing where it did not."""
    outcome = combine_gates(status.evaluation) if status.evaluation else None
    if status.evaluation is None or outcome is None:
        return {}
    holds = {GateOutcome.PASSED: True, GateOutcome.FAILED: False}.get(outcome)
    return {
        Condition.GATE_PASSED: _Finding(holds=holds, reason=outcome, message=describe_gates(status.evaluation)),
    }


def _disturbed(status: Status) -> _Finding:
    """True where a person should look at the cluster: the run waits longer and longer, and will not fail."""
    stage = next((stage for stage in status.stages if stage.state is StageState.RUNNING), None)
    if stage is None or not is_disturbed(stage):
        return _Finding(holds=False, reason="AsExpected")
    newest = stage.attempts[-1]
    message = f"{MAX_DISTURBED} attempts of {stage.name} in a row ended by no fault of the run, before a step was done"
    return _Finding(holds=True, reason=newest.because or stage.attempts[-2].because, message=message)


def _reporting(status: Status) -> _Finding:
    """False where training says nothing. It goes on all the same: its network may be what is down."""
    if status.silent_since is None:
        return _Finding(holds=True, reason="AsExpected")
    return _Finding(holds=False, reason="Silent", message=f"training has reported nothing since {status.silent_since}")


def _stage_finding(stage: StageStatus, status: Status) -> _Finding:
    has_failed = stage.state is StageState.FAILED and status.failure is not None
    reason = status.failure.reason if has_failed and status.failure else stage.reason or str(stage.state)
    return _Finding(holds=stage.state is StageState.SUCCEEDED, reason=reason, message=stage.message)


def _running_stage(status: Status) -> StageStatus | None:
    return next((stage for stage in status.stages if stage.state is StageState.RUNNING), None)


def _waiting_reason(status: Status) -> str:
    """Why the run waits now; empty where it does not."""
    running = _running_stage(status)
    if running is None:
        return ""
    return str(Reason.API_ERROR) if status.api_trouble else running.reason


def _overall_message(status: Status) -> str:
    """What there is to say about the run as a whole."""
    if status.phase is Phase.FAILED and status.failure:
        parts = [str(status.failure.stage or ""), status.failure.message]
    elif status.phase is Phase.SUCCEEDED:
        parts = [describe_success(status)]
    else:
        running = _running_stage(status)
        parts = [str(running.name), running.message] if running else []
        if running and status.api_trouble:
            parts = [str(running.name), status.api_trouble.message]
    return ": ".join(filter(None, parts))
