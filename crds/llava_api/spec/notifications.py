"""Who is told of what becomes of a run."""

from typing import Annotated

from pydantic import ConfigDict, Field

from llava_api.base import Strict
from llava_api.constants import MAX_NOTIFICATION_NAME, NOTIFICATION_KEYS, NotificationEvent
from llava_api.rules import rule, rules
from llava_api.spec.values import SecretRef

MAX_NOTIFICATIONS = 8

WebhookAddress = Annotated[
    str,
    Field(
        min_length=8,
        max_length=1024,
        json_schema_extra=rules(
            rule(
                # Without the fragment: nobody sends one.
                "self.matches('^https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[!-\"$-~]*)?$')",
                "url must be https://HOST/PATH, without user name, password and #: what nobody may read belongs in a "
                "Secret (secretRef)",
            )
        ),
    ),
]


class Webhook(Strict):
    """A receiver of CloudEvents."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "has(self.url) || has(self.secretRef)",
                "webhook needs url, or secretRef with a Secret whose key url holds the address",
            )
        )
    )

    url: Annotated[
        WebhookAddress | None,
        Field(
            description="Address, like https://hooks.example/llava. Who may read the run reads it, too: one that is a "
            "secret itself belongs in secretRef, key url. By https, unless the installation allows more "
            "(policy.insecureNotifications)."
        ),
    ] = None
    secret_ref: Annotated[
        SecretRef | None,
        Field(
            description="Credentials, mounted as files in the sending pod only. Keys: "
            f"{NOTIFICATION_KEYS['signing']} (has to be there: every request is signed with it), "
            f"{NOTIFICATION_KEYS['bearer']} (sent as Authorization: Bearer), {NOTIFICATION_KEYS['url']} (where url is "
            "left out). Left out: requests are not signed."
        ),
    ] = None


class SlackWebhook(Strict):
    """An incoming webhook of Slack, or of what understands the same (Mattermost, Rocket.Chat)."""

    secret_ref: Annotated[
        SecretRef,
        Field(
            description="Secret whose key url holds the address: whoever has it may write into the channel. Mounted in "
            "the sending pod only."
        ),
    ]


class Notification(Strict):
    """One receiver, and what it is told."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "has(self.webhook) != has(self.slack)",
                "set either webhook (CloudEvents) or slack: two receivers are two notifications",
            )
        )
    )

    name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=MAX_NOTIFICATION_NAME,
            pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$",
            description="What it is called in status.notifications.",
        ),
    ]
    # Not "on": that is a word for true in YAML, and kubectl would send a field of that name.
    events: Annotated[
        tuple[NotificationEvent, ...],
        Field(
            min_length=1,
            max_length=len(NotificationEvent),
            json_schema_extra={"x-kubernetes-list-type": "set"},
            description="What it is told: that the run has succeeded or failed, has waited for longer than "
            "waitingSeconds, goes on after an attempt that was broken off (Restarted), or is suspended; these three "
            "come once an hour at most, each. That evaluation.gate or retention has failed, or could not be decided "
            "(GateFailed, GateUndecided). That what was made stands where spec.publish names (Published), or has not "
            "gone there because of a gate (NotPublished).",
        ),
    ] = (NotificationEvent.SUCCEEDED, NotificationEvent.FAILED)
    waiting_seconds: Annotated[
        int,
        Field(
            ge=60,
            le=604_800,
            description="Seconds for which a stage waits before WaitingTooLong is sent: for GPUs, quota, a queue, a "
            "volume, an image, or the rest of its pods.",
        ),
    ] = 1800
    webhook: Annotated[Webhook | None, Field(description="A receiver of CloudEvents 1.0 (docs/notifications.md).")] = (
        None
    )
    slack: Annotated[
        SlackWebhook | None, Field(description="An incoming webhook of Slack or Mattermost: one line of text.")
    ] = None

    @property
    def secret(self) -> str | None:
        """Name of its Secret."""
        part = self.webhook or self.slack
        return part.secret_ref.name if part is not None and part.secret_ref is not None else None

    @property
    def url(self) -> str | None:
        """Its address, where that is no secret."""
        return self.webhook.url if self.webhook is not None else None
