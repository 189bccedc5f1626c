"""What a receiver of notifications is told: a CloudEvent 1.0 in structured mode, with data of version 1.

Its JSON schema is docs/run-event.v1.json. Version 1 only grows: a field that goes or changes its meaning is version 2,
and another ``type``.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from llava_api.base import Lenient
from llava_api.constants import NotificationEvent, Phase, StageName
from llava_api.status import MAX_SCORES, GateStatus, Metric, PublishedStatus, Time
from llava_api.status.values import Count, Short, Text

CONTENT_TYPE = "application/cloudevents+json"
VERSION = 1
TYPE_PREFIX = "dev.llava.finetune.run"


def event_type(event: str) -> str:
    """The CloudEvent's type, which names the version of its data."""
    return f"{TYPE_PREFIX}.{event.lower()}.v{VERSION}"


class EventRun(Lenient):
    """The run that an event is about."""

    namespace: Annotated[Short, Field(description="Its namespace.")]
    name: Annotated[Short, Field(description="Its name.")]
    uid: Annotated[Short, Field(description="Its UID: another run of this name has another one.")]


class EventArtifacts(Lenient):
    """Where the run's results are, as far as there are any; paths are those on its volume."""

    volume_claim: Annotated[Short | None, Field(description="PersistentVolumeClaim that holds them.")] = None
    merged: Annotated[Text | None, Field(description="The merged model.")] = None
    adapter: Annotated[Text | None, Field(description="The adapter.")] = None
    weights: Annotated[Text | None, Field(description="The trained weights, with method full.")] = None
    projector: Annotated[Text | None, Field(description="The projector that phase 1 made.")] = None
    report: Annotated[Text | None, Field(description="The evaluation report (HTML).")] = None
    published: Annotated[
        tuple[PublishedStatus, ...], Field(description="What stands where spec.publish names, with its digest.")
    ] = ()
    dataset_report: Annotated[Text | None, Field(description="The dataset report (HTML).")] = None


class EventData(Lenient):
    """What has become of a run. Texts are fit to be shown; what is unknown is left out."""

    event: Annotated[NotificationEvent, Field(description="What has happened.")]
    run: Annotated[EventRun, Field(description="To which run.")]
    phase: Annotated[Phase, Field(description="status.phase of the run when the message was made.")]
    stage: Annotated[StageName | None, Field(description="Stage that it is about.")] = None
    attempt: Annotated[Count | None, Field(description="Attempt of that stage.")] = None
    reason: Annotated[Short, Field(description="Why, in one CamelCase word (docs/failures.md, docs/waiting.md).")] = ""
    message: Annotated[Text, Field(description="The same for a person.")] = ""
    hint: Annotated[Text, Field(description="What can be done about it.")] = ""
    restarts: Annotated[Count, Field(description="How often the run had been restarted by then, over all stages.")] = 0
    start_time: Annotated[Time | None, Field(description="When the run was begun.")] = None
    completion_time: Annotated[Time | None, Field(description="When it ended, well or not.")] = None
    scores: Annotated[tuple[Metric, ...], Field(max_length=MAX_SCORES, description="What evaluation measured.")] = ()
    gate: Annotated[GateStatus | None, Field(description="Whether it gained what was asked for.")] = None
    retention: Annotated[GateStatus | None, Field(description="Whether it forgot as little as was asked for.")] = None
    artifacts: Annotated[EventArtifacts, Field(description="Where the results are.")] = EventArtifacts()


class RunEvent(Lenient):
    """A CloudEvent 1.0 about a LlavaFineTune."""

    model_config = ConfigDict(title="LLaVA FineTune run event, version 1")

    specversion: Annotated[Literal["1.0"], Field(description="Version of CloudEvents.")] = "1.0"
    id: Annotated[
        Short, Field(description="The same over all tries: who has seen it together with source has seen the event.")
    ]
    source: Annotated[
        Short,
        Field(description="The run's namespace: /apis/finetune.llava.dev/v1alpha1/namespaces/NAMESPACE."),
    ]
    type: Annotated[Short, Field(description="dev.llava.finetune.run.EVENT.v1, the event in lower case.")]
    subject: Annotated[Short, Field(description="Name of the run.")]
    time: Annotated[Time, Field(description="When the event was seen.")]
    datacontenttype: Annotated[Literal["application/json"], Field(description="What data is.")] = "application/json"
    data: Annotated[EventData, Field(description="What has become of the run.")]


def build_event_schema() -> str:
    """docs/run-event.v1.json: the JSON schema of the whole body."""
    schema: dict[str, Any] = RunEvent.model_json_schema(mode="serialization")
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2) + "\n"
