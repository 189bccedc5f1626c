"""What a receiver of notifications is told: a CloudEvent, or one line for Slack. Pure."""

import json

from llava_api.constants import API_VERSION, NotificationEvent, Phase
from llava_api.run_event import CONTENT_TYPE, EventArtifacts, EventData, EventRun, RunEvent, event_type
from llava_api.status import MAX_TEXT, NotificationStatus
from llava_api.text import cut, show
from llava_operator.run import Run

MAX_SLACK = 1500
"""Characters of a line for Slack, before they are escaped: it shows some thousands, and nobody reads them."""
SLACK_CONTENT_TYPE = "application/json"
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def build_event(run: Run, told: NotificationStatus) -> RunEvent:
    """The CloudEvent. What it tells of is in the status; the rest of the run is as it is now."""
    status = run.status
    artifacts = status.artifacts.model_dump(by_alias=False) if status.artifacts else {}
    known = {name: artifacts[name] for name in EventArtifacts.model_fields if name in artifacts}
    failure = status.failure if status.failure and status.failure.reason == told.reason else None
    data = EventData(
        event=NotificationEvent(told.event),
        run=EventRun(namespace=run.key.namespace, name=run.key.name, uid=run.uid),
        phase=status.phase or Phase.PENDING,
        stage=told.stage,
        attempt=told.attempt or None,
        reason=told.reason,
        # The status has room for its beginning only.
        message=show(failure.message if failure and failure.message else told.message, max_chars=MAX_TEXT),
        hint=show(failure.hint if failure else "", max_chars=MAX_TEXT),
        restarts=told.restarts,
        start_time=status.start_time,
        completion_time=status.completion_time,
        scores=status.evaluation.metrics if status.evaluation else (),
        artifacts=EventArtifacts(**known),
    )
    return RunEvent(
        id=told.id,
        source=f"/apis/{API_VERSION}/namespaces/{run.key.namespace}",
        type=event_type(told.event),
        subject=run.key.name,
        time=told.time,
        data=data,
    )


def build_webhook_body(event: RunEvent) -> tuple[str, str]:
    """Body and content type for a receiver of CloudEvents."""
    return event.model_dump_json(exclude_none=True, by_alias=True), CONTENT_TYPE


def build_slack_body(event: RunEvent) -> tuple[str, str]:
    """Body and content type for Slack: nothing in it is a link, a mention or markup but ours."""
    data = event.data
    where = f" ({data.stage}, attempt {data.attempt})" if data.stage and data.attempt else ""
    reason = f" {data.reason}" if data.reason and data.reason != data.event else ""
    said = " ".join(filter(None, [data.message, data.hint]))
    line = f"{data.run.namespace}/{data.run.name}: {data.event}{reason}{where}" + (f": {said}" if said else "")
    text = cut(line, max_chars=MAX_SLACK).translate(_ENTITIES)
    return json.dumps({"text": text, "mrkdwn": False}), SLACK_CONTENT_TYPE
