"""Says of a run that it is none that this version of the operator understands."""

from datetime import datetime

from llava_api.constants import Condition
from llava_api.status import ConditionStatus, Status
from llava_operator.clock import to_time
from llava_operator.deciding.status import dump_status, merge_patch
from llava_operator.kube.objects import Object
from llava_operator.run import UnreadableError, parse_status

UNREADABLE = "Unreadable"
"""Reason of Event and condition when a run was written for another version."""


def build_unreadable_patch(raw: Object, message: str, now: datetime) -> Object:
    """The patch that says so in the run's status; empty where it says so already, or can be said by the Event alone."""
    try:
        status = parse_status(raw)
    except UnreadableError:
        return {}
    patch = merge_patch(dump_status(status), dump_status(_mark(status, message, now)))
    return {"metadata": {"resourceVersion": raw["metadata"]["resourceVersion"]}, "status": patch} if patch else {}


def _mark(status: Status, message: str, now: datetime) -> Status:
    before = next((held for held in status.conditions if held.type is Condition.READY), None)
    since = before.last_transition_time if before and before.status == "False" else to_time(now)
    ready = ConditionStatus(
        type=Condition.READY, status="False", reason=UNREADABLE, message=message, last_transition_time=since
    )
    others = tuple(held for held in status.conditions if held.type is not Condition.READY)
    return status.model_copy(update={"conditions": (ready, *others)})
