"""The status as a whole."""

from typing import Annotated, Literal

from pydantic import Field

from llava_api.base import Lenient
from llava_api.constants import Condition, Phase
from llava_api.model_facts import ModelFacts
from llava_api.status.accounting import Accounting
from llava_api.status.notifications import NOTIFICATIONS_KEPT, NotificationStatus
from llava_api.status.outcome import Artifacts, EvaluationStatus, FailureStatus
from llava_api.status.plan import Data, Plan
from llava_api.status.progress import Progress
from llava_api.status.stages import StageStatus
from llava_api.status.values import Count, Short, Text, Time


class ConditionStatus(Lenient):
    """One condition, in Kubernetes' form."""

    type: Annotated[Condition, Field(description="What the condition is about.")]
    status: Annotated[Literal["True", "False", "Unknown"], Field(description="Whether it holds.")]
    reason: Annotated[Short, Field(description="Why, in one CamelCase word.")]
    message: Annotated[Text, Field(description="Why, for a person.")] = ""
    last_transition_time: Annotated[Time, Field(description="When status last changed.")]
    observed_generation: Annotated[Count | None, Field(description="Generation of the spec it was made from.")] = None


class Summary(Lenient):
    """What ``kubectl get lft`` shows, as strings."""

    stage: Annotated[Short, Field(description="The stage that runs, or ran last.")] = ""
    step: Annotated[Short, Field(description="Step and total of that stage, like 120/734.")] = ""
    percent: Annotated[Short, Field(description="How much of that stage is done, in percent.")] = ""
    eta: Annotated[Short, Field(description="Time to that stage's end, like 12m.")] = ""
    attempt: Annotated[Short, Field(description="Number of that stage's newest attempt.")] = ""
    restarts: Annotated[Short, Field(description="Restarts of the run that count, over all stages.")] = ""
    score: Annotated[Short, Field(description="Held-out score of base and tuned model, like 0.02→0.97.")] = ""


class Trainer(Lenient):
    """What every stage and attempt of a run runs: what it began with."""

    image: Annotated[Text | None, Field(description="Trainer image, by digest where its repository is known.")] = None
    config_version: Annotated[Count, Field(description="Newest version of the run configuration that it reads.")] = 1


class ApiTrouble(Lenient):
    """What keeps the operator from doing anything about a run."""

    message: Annotated[Text, Field(description="What the API server answers, again and again.")]
    time: Annotated[Time, Field(description="When that was first told.")]


UNOBSERVED = -1
"""``observedGeneration`` of a run that no operator has seen: without one, kstatus takes it for finished."""


class Status(Lenient):
    """What the operator has seen and done."""

    observed_generation: Annotated[
        int | None,
        Field(
            ge=UNOBSERVED,
            le=2**53,
            description="Generation of the spec that this is about; -1 before anything was done about it.",
            json_schema_extra={"format": "int64"},
        ),
    ] = None
    phase: Annotated[Phase | None, Field(description="The run at a glance.")] = None
    start_time: Annotated[Time | None, Field(description="When the run was begun.")] = None
    completion_time: Annotated[Time | None, Field(description="When it ended, well or not.")] = None
    conditions: Annotated[
        tuple[ConditionStatus, ...],
        Field(
            max_length=16,
            description="Ready, Prepared, Aligned, Trained, Merged, Evaluated, Published, Complete, Failed, Suspended, "
            "Reporting, Disturbed, Reconciling, Stalled, GatePassed.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = ()
    summary: Annotated[Summary | None, Field(description="What kubectl get shows.")] = None
    stages: Annotated[
        tuple[StageStatus, ...],
        Field(
            max_length=8,
            description="Every stage, in order.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = ()
    suspended_time: Annotated[Time | None, Field(description="Since when it is suspended.")] = None
    silent_since: Annotated[
        Time | None, Field(description="Since when training has reported nothing, where that is long.")
    ] = None
    retry: Annotated[Count, Field(description="The spec.retry that was last taken up.")] = 0
    trainer: Annotated[Trainer | None, Field(description="What every stage runs.")] = None
    accounting: Annotated[Accounting | None, Field(description="What the run has taken so far.")] = None
    data: Annotated[Data | None, Field(description="What prepare found.")] = None
    model: Annotated[ModelFacts | None, Field(description="The model that the run starts from.")] = None
    plan: Annotated[Plan | None, Field(description="What training will take.")] = None
    progress: Annotated[Progress | None, Field(description="The last progress report.")] = None
    evaluation: Annotated[EvaluationStatus | None, Field(description="What evaluation measured.")] = None
    artifacts: Annotated[Artifacts | None, Field(description="Where the results are.")] = None
    failure: Annotated[FailureStatus | None, Field(description="Why the run failed.")] = None
    api_trouble: Annotated[ApiTrouble | None, Field(description="Errors that the API server keeps answering.")] = None
    notifications: Annotated[
        tuple[NotificationStatus, ...],
        Field(
            max_length=NOTIFICATIONS_KEPT,
            description="Whom of spec.notifications the newest events were told, oldest first.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name", "id"]},
        ),
    ] = ()

    @property
    def open_notifications(self) -> tuple[NotificationStatus, ...]:
        """Those that are still to be delivered."""
        return tuple(notification for notification in self.notifications if notification.is_open)
