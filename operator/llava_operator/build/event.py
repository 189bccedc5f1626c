"""What a receiver of notifications is told: a CloudEvent, or one line for Slack. Pure."""

import json

from llava_api.constants import API_VERSION, NotificationEvent, Phase
from llava_api.run_event import CONTENT_TYPE, EventArtifacts, EventData, EventRun, RunEvent, event_type
from llava_api.status import MAX_TEXT, NotificationStatus
from llava_api.text import cut, escape, show
from llava_operator.run import Run

MAX_SLACK = 1500
"""Characters of a line for Slack, before they are escaped: it shows some thousands, and nobody reads them."""
SLACK_CONTENT_TYPE = "application/json"
_VERBATIM = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "`": "'", "@": "\N{FULLWIDTH COMMERCIAL AT}"})
"""What ends a code span, or is read within one: Slack's control sequences, for which it has these entities, and names
behind an @, which Rocket.Chat calls from anywhere."""


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
        reason=show(told.reason),
        # The status has room for its beginning only.
        message=show(failure.message if failure and failure.message else told.message, max_chars=MAX_TEXT),
        hint=show(failure.hint if failure else "", max_chars=MAX_TEXT),
        restarts=told.restarts,
        start_time=status.start_time,
        completion_time=status.completion_time,
        scores=status.evaluation.metrics if status.evaluation else (),
        gate=status.evaluation.gate if status.evaluation else None,
        retention=status.evaluation.retention if status.evaluation else None,
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
    """Body and content type for Slack and what understands the same.

    The line is one code span: Slack, Mattermost and Rocket.Chat make no link, picture or markup of what is in one, and
    fetch no preview. Nothing that is in it may end it, or is read in spite of it.
    """
    data = event.data
    where = f" ({data.stage}, attempt {data.attempt})" if data.stage and data.attempt else ""
    reason = f" {data.reason}" if data.reason and data.reason != data.event else ""
    said = " ".join(filter(None, [data.message, data.hint]))
    line = f"{data.run.namespace}/{data.run.name}: {data.event}{reason}{where}" + (f": {said}" if said else "")
    text = cut(escape(line), max_chars=MAX_SLACK).translate(_VERBATIM)
    return json.dumps({"text": f"`{text}`", "mrkdwn": True}), SLACK_CONTENT_TYPE
