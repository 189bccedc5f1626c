"""Whether what a run has made is published, and what became of it. Pure."""

from collections import Counter
from dataclasses import dataclass

from llava_api.constants import GateOutcome
from llava_api.quantities import format_gib
from llava_api.report import Published, PublishNumbers
from llava_api.spec import Publish, Spec
from llava_api.status import MAX_TEXT, Data, EvaluationStatus, StageState, Status
from llava_api.text import show
from llava_operator.deciding.gates import describe_gate

_CONTENTS = {"merged": ("merged",), "adapter": ("adapter",), "both": ("merged", "adapter")}
"""What stands at each destination, by ``publish.what``."""
_REMEDIES = {
    ("gate", GateOutcome.FAILED): "one that trains longer or on more data, or has a lower spec.evaluation.gate."
    "minimumGain",
    ("gate", GateOutcome.UNDECIDED): "one that holds out more groups (spec.dataset.validation), or has "
    "spec.evaluation.gate.use pointValue",
    ("retention", GateOutcome.FAILED): "one that mixes in what was forgotten (spec.mixture), or has a higher "
    "spec.evaluation.retention.maximumLoss",
    ("retention", GateOutcome.UNDECIDED): "one whose spec.evaluation.retention.dataset has more groups, or with a "
    "higher spec.evaluation.retention.maximumLoss",
}
"""Which other run would do, by gate and outcome."""


class UnusableResultError(ValueError):
    """A stage has handed back what cannot be; the message says what."""


@dataclass(frozen=True, kw_only=True)
class Hindrance:
    """Why a run that has succeeded is not published."""

    reason: str
    message: str


def refuse_publishing(spec: Spec, data: Data | None) -> str | None:
    """Why a run that is to be published must not go beyond prepare; None if nothing speaks against it."""
    if spec.publish is None or (data is not None and data.publishes):
        return None
    return (
        "spec.publish is set, but the trainer image has no stage that publishes: leave spec.image.reference out or set "
        "it to an image of the operator's version, or leave spec.publish out"
    )


def find_hindrance(spec: Spec, evaluation: EvaluationStatus | None) -> Hindrance | None:
    """What of the gates that the spec asks for has not passed; None if all have, or none is asked for."""
    asked = {"gate": spec.evaluation.gate, "retention": spec.evaluation.retention}
    judged = evaluation.gates if evaluation else {}
    missed: dict[str, GateOutcome] = {}
    told = []
    for name in (name for name, wanted in asked.items() if wanted is not None):
        found = judged.get(name)
        outcome = found.outcome if found else GateOutcome.UNDECIDED
        if outcome is not GateOutcome.PASSED:
            missed[name] = outcome
            told.append(f"{name} {outcome}: {describe_gate(found) if found else 'evaluation has not judged it'}")
    if not missed:
        return None
    remedies = "; ".join(_REMEDIES[name, outcome] for name, outcome in missed.items())
    message = (
        f"not published, since a gate has not passed ({'; '.join(told)}): the model stays on the run's volume. It "
        f"takes another run: {remedies}"
    )
    worst = GateOutcome.FAILED if GateOutcome.FAILED in missed.values() else GateOutcome.UNDECIDED
    return Hindrance(reason=f"Gate{worst}", message=show(message, max_chars=MAX_TEXT))


def describe_success(status: Status) -> str:
    """That a run has succeeded, and without which of its stages."""
    skipped = next((stage for stage in status.stages if stage.state is StageState.SKIPPED), None)
    return "every stage has succeeded" if skipped is None else f"every stage but {skipped.name} has succeeded"


def check_published(numbers: PublishNumbers | None, publish: Publish | None) -> tuple[PublishNumbers, Publish]:
    """What was published, and what was to be, which is the same.

    Raises:
        UnusableResultError: a destination lacks what belongs there, or has it twice; or there is no such destination.
    """
    if publish is None:
        raise UnusableResultError("nothing was to be published")
    if numbers is None:
        raise UnusableResultError("it does not say what was published")
    reported = Counter((one.destination, one.what) for one in numbers.published)
    wanted = {(index, what) for index in range(len(publish.destinations)) for what in _CONTENTS[publish.what]}
    if reported != Counter(wanted):
        raise UnusableResultError(
            f"{len(wanted)} contents were to be published to {len(publish.destinations)} destinations, but "
            f"{len(numbers.published)} others are reported"
        )
    return numbers, publish


def describe_published(numbers: PublishNumbers, publish: Publish) -> str:
    """What stands where, in one line for a person."""
    return "published to " + ", ".join(_describe(one, publish) for one in numbers.published)


def _describe(one: Published, publish: Publish) -> str:
    sent = f"{format_gib(one.sent_bytes)} sent" if one.sent_bytes else "nothing had to be sent"
    return f"{publish.destinations[one.destination].address} ({one.what}, {sent})"
