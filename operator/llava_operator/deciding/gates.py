"""What evaluation's gates say of a run, in words. Pure."""

from llava_api.constants import GateOutcome
from llava_api.judging import LEAST_GATE_GROUPS
from llava_api.status import EvaluationStatus, GateStatus


def combine_gates(evaluation: EvaluationStatus) -> GateOutcome | None:
    """What all gates that were asked for say together: the worst of them; None where none was."""
    outcomes = {gate.outcome for gate in evaluation.gates.values()}
    for outcome in (GateOutcome.FAILED, GateOutcome.UNDECIDED, GateOutcome.PASSED):
        if outcome in outcomes:
            return outcome
    return None


def describe_gates(evaluation: EvaluationStatus) -> str:
    """Every gate that was asked for, with its numbers, for a person."""
    gates = evaluation.gates.items()
    return "; ".join(f"{name} {gate.outcome}: {describe_gate(gate)}" for name, gate in gates)


def describe_gate(gate: GateStatus) -> str:
    """The numbers that a gate goes by."""
    told = (
        f"{gate.metric} gained {gate.gain:+.3f} ({gate.low:+.3f} to {gate.high:+.3f}) and has to be above "
        f"{gate.limit:+.3f}, by {gate.samples} questions of {gate.groups} groups"
    )
    if gate.outcome is not GateOutcome.UNDECIDED:
        return told
    if gate.smallest_difference is None:
        return f"{told}, which takes {LEAST_GATE_GROUPS} groups at least"
    return f"{told}, which show no difference below {gate.smallest_difference:.3f}"
