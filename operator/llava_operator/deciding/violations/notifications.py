"""Whom notifications may be sent to, and what the pods that send them may be given. Pure."""

import re
from collections.abc import Iterator, Sequence

from llava_api.addresses import ANY_HOST, is_allowed_address
from llava_api.spec import Notification
from llava_operator.deciding.policy import Policy
from llava_operator.deciding.violations.violation import HIDDEN, Violation, judge_secret


def judge_notifications(notifications: Sequence[Notification], policy: Policy) -> Iterator[Violation]:
    """What of notifications goes beyond what is allowed, rule by rule.

    An address in a Secret is the sending pod's to judge, by the same rules (``Delivery``); and so is the proxy that an
    address is reached by, which may be in a Secret, too.
    """
    for kind in ("webhook", "slack"):
        for one in notifications:
            if one.secret is not None and getattr(one, kind) is not None:
                yield from judge_secret(f"spec.notifications.{kind}.secretRef.name", one.secret, policy)
    urls = [one.url for one in notifications if one.url is not None]
    in_clear = [url for url in urls if url.startswith("http://") and not policy.insecure_notifications]
    for url in in_clear:
        yield _about_address(url, "sends notifications by https only (policy.insecureNotifications)")
    hosts = ", ".join(policy.notification_hosts)
    allowed = f"only to {hosts}" if hosts else "to no host"
    for url in urls:
        if url not in in_clear and not is_allowed_address(url, policy.notification_hosts, insecure=True):
            yield _about_address(url, f"sends notifications {allowed} (policy.notificationHosts)")


def _about_address(url: str, rule: str) -> Violation:
    # Only the host: a path may be a secret itself.
    host = re.match(ANY_HOST, url)
    return Violation(
        field="spec.notifications.webhook.url", value=f"at {host[0]}" if host else HIDDEN, rule=rule,
        fix="use an allowed address, or leave the notification out",
    )  # fmt: skip
