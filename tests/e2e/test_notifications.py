"""A real pod tells a real receiver on this machine, by TLS with the run's own authority, signed by a Secret.

A run that is suspended from its beginning costs nothing, and has something to tell at once.
"""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_structured_event
from standardwebhooks import Webhook

from llava_api.status import NotificationState, NotificationStatus
from tests.e2e.runs import Runs
from tests.kubectl import wait_for
from tests.notifier.receivers import Receiver, receiving
from tests.trainer.servers.authority import Authority

pytestmark = pytest.mark.e2e

NAME = "told"
KEY = "whsec_c2lnbmVkLWJ5LXRoZS10ZXN0LW9mLXBvZHM="
PATH_TOKEN = "path-of-the-test"


@pytest.fixture(scope="module")
def receiver(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    """At the address at which pods reach the API server; it wants to be asked twice."""
    server = runs.kubectl.run("config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}")
    host = urlsplit(server).hostname
    assert host is not None
    authority = Authority(tmp_path_factory.mktemp("authority"), host)
    config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "hooks-ca"},
                  "data": {"ca.crt": authority.pem}}  # fmt: skip
    with receiving(503, 202, context=authority.server_context, host=host) as made:
        keys = {"signingKey": KEY, "url": made.url(f"/{PATH_TOKEN}", host)}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hooks"}, "stringData": keys}
        runs.kubectl.apply(config_map, secret)
        yield made


def test_a_pod_tells_a_receiver(runs: Runs, receiver: Receiver, tmp_path: Path) -> None:
    hook = {"name": "hook", "events": ["Suspended"], "webhook": {"secretRef": {"name": "hooks"}}}
    runs.start(NAME, top={"suspend": True, "notifications": [hook]}, download={"caConfigMap": "hooks-ca"})

    def settled() -> NotificationStatus | None:
        told = runs.status(NAME).notifications
        return told[0] if told and not told[0].is_open else None

    told = wait_for("the receiver to be told", settled, timeout_s=120)
    assert (told.event, told.state, told.outcome) == ("Suspended", NotificationState.DELIVERED, "")
    first, second = receiver.received
    assert first.body == second.body
    assert second.path == f"/{PATH_TOKEN}"
    Webhook(KEY).verify(second.body, second.headers)
    event = from_structured_event(HTTPMessage(headers=second.headers, body=second.body))
    assert (event.get_id(), event.get_subject()) == (told.id, NAME)
    assert event.get_type() == "dev.llava.finetune.run.suspended.v1"
    log = runs.kubectl.run("logs", "-l", "finetune.llava.dev/notification=hook", "--all-containers")
    assert "answers 503" in log
    assert PATH_TOKEN not in log + str(runs.kubectl.get("lft", NAME))
    runs.delete(NAME)
    runs.wait_until_gone(NAME, timeout_s=60)
