"""The real sender against real servers: delivered as documented, or given up for a reason that can be shown.

It is a process of its own where that makes a difference, and runs in this one otherwise.
"""

import base64
import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_structured_event
from standardwebhooks import Webhook

from llava_api.constants import ENV_DELIVERY, NotificationEvent, StageName
from llava_api.delivery import EXIT_REFUSED, EXIT_UNREACHED, Delivery, Patience
from llava_api.status import NotificationStatus
from llava_notifier.main import main
from llava_notifier.request import Files, build_request
from llava_operator.build.event import build_event, build_slack_body, build_webhook_body
from tests.controller.makers import NOW_TEXT, begun, make_run
from tests.notifier.receivers import ENDLESS_HEAD, Receiver, receiving, saying
from tests.ports import free_port
from tests.trainer.servers.authority import Authority
from tests.trainer.servers.proxy import Proxy

ROOT = Path(__file__).parents[2]
KEY = b"a signing key of a person's own"
TOKEN = "bearer-of-the-test"
PATH_TOKEN = "T000-path-of-the-test"
SECRETS = (KEY.decode(), TOKEN, PATH_TOKEN, "hunter2", base64.b64encode(KEY).decode())
QUICK = Patience(
    try_for_seconds=3, first_delay_seconds=0.05, last_delay_seconds=0.2, answer_seconds=0.5, connect_seconds=0.5
)
TOLD = NotificationStatus(
    name="team", id="e" * 32, event=NotificationEvent.FAILED, time=NOW_TEXT, stage=StageName.TRAIN, attempt=2,
    reason="OutOfMemory", message="a <b> & $(PATH) ü", restarts=1,
)  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How the process ended."""

    code: int
    said: str
    log: str


class Sender:
    """Starts the process as the pod would, with its files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("secret", "proxies"):
            (folder / name).mkdir()
        body, content_type = build_webhook_body(build_event(make_run(begun()), TOLD))
        self.delivery = Delivery(
            kind="webhook", id=TOLD.id, body=body, content_type=content_type, allowed_hosts=("*",), insecure=True,
            patience=QUICK,
        )  # fmt: skip

    def put(self, **keys: str | bytes) -> None:
        for key, value in keys.items():
            (self.folder / "secret" / key).write_bytes(value.encode() if isinstance(value, str) else value)

    def start(self, url: str | None, **changes: Any) -> "subprocess.Popen[str]":
        """The process itself."""
        command = [sys.executable, "-W", "error", "-m", "llava_notifier.main", *self.options]
        environ = {**os.environ, ENV_DELIVERY: self.describe(url, changes)}
        return subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True)

    def send(self, url: str | None, **changes: Any) -> Ended:
        """The same in this process."""
        log = io.StringIO()
        handler = logging.StreamHandler(log)
        logging.getLogger().addHandler(handler)
        logging.getLogger().setLevel(logging.INFO)
        try:
            described = {ENV_DELIVERY: self.describe(url, changes)}
            with mock.patch.dict(os.environ, described), pytest.raises(SystemExit) as end:
                main(self.options)
        finally:
            logging.getLogger().removeHandler(handler)
        assert isinstance(end.value.code, int)
        return self.ended(end.value.code, log.getvalue())

    def describe(self, url: str | None, changes: dict[str, Any]) -> str:
        return self.delivery.model_copy(update={"url": url, **changes}).model_dump_json(exclude_none=True)

    @property
    def options(self) -> list[str]:
        names = ("secret", "proxies", "authorities", "termination-log")
        return [word for name in names for word in (f"--{name}", str(self.folder / name))]

    def ended(self, code: int, log: str) -> Ended:
        assert "Traceback" not in log, log
        said = (self.folder / "termination-log").read_text()
        for secret in SECRETS:
            assert secret not in log + said
        return Ended(code, said, log)


@pytest.fixture
def sender(tmp_path: Path) -> Sender:
    return Sender(tmp_path)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def read_snippet() -> Any:
    """The function that docs/notifications.md gives to receivers."""
    [snippet] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "notifications.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(snippet, names)
    return names["verify"]


def assert_delivered(receiver: Receiver, tries: int = 1) -> None:
    """Every try was the same event, whole, signed, and what the documentation says."""
    verify = read_snippet()
    assert len(receiver.received) == tries
    assert len({one.body for one in receiver.received}) == 1
    for one in receiver.received:
        Webhook(KEY).verify(one.body, one.headers)
        message = HTTPMessage(headers=one.headers, body=one.body)
        event = from_structured_event(message)
        assert event.get_id() == TOLD.id
        assert event.get_type() == "dev.llava.finetune.run.failed.v1"
        assert event.get_source() == "/apis/finetune.llava.dev/v1alpha1/namespaces/team"
        assert event.get_subject() == "invoices"
        assert one.headers["content-type"] == "application/cloudevents+json"
        assert one.headers["authorization"] == f"Bearer {TOKEN}"
        data = event.get_data()
        assert isinstance(data, dict)
        assert (data["event"], data["reason"], data["message"]) == ("Failed", "OutOfMemory", "a <b> & $(PATH) ü")
        assert verify(KEY, one.headers, one.body) == event.get_id()


def test_delivered_as_documented_by_tls(sender: Sender, authority: Authority) -> None:
    sender.put(signingKey=KEY + b"\n", bearer=TOKEN, url="")
    (sender.folder / "authorities").write_text(authority.pem)
    with receiving(202, context=authority.server_context) as receiver:
        process = sender.start(receiver.url(f"/{PATH_TOKEN}?x=y"), is_signed=True, insecure=False)
        _, log = process.communicate(timeout=60)
    ended = sender.ended(process.returncode, log)
    assert (ended.code, ended.said) == (0, f"https://127.0.0.1:{receiver.port} answers 202")
    assert receiver.received[0].path == f"/{PATH_TOKEN}?x=y"
    assert_delivered(receiver)


@pytest.mark.parametrize("trouble", [500, 503, 429, 408])
def test_what_may_pass_is_tried_again_with_the_same_id(sender: Sender, trouble: int) -> None:
    sender.put(signingKey=KEY, bearer=TOKEN)
    with receiving(trouble, trouble, 200) as receiver:
        ended = sender.send(receiver.url(), is_signed=True)
    assert ended.code == 0, ended.log
    assert_delivered(receiver, tries=3)


def test_a_receiver_is_left_alone_for_as_long_as_it_asks(sender: Sender) -> None:
    patient = replace_patience(try_for_seconds=4.5)
    with receiving((429, {"Retry-After": "1"}), (503, {"Retry-After": "soon"}), 200) as receiver:
        ended = sender.send(receiver.url(), patience=patient)
        assert ended.code == 0, ended.log
        assert len(receiver.received) == 3
    with receiving((503, {"Retry-After": "100000"})) as receiver:
        ended = sender.send(receiver.url(), patience=patient)
        # It asks for longer than this pod tries: the next one may come when it likes to.
        assert (ended.code, len(receiver.received)) == (EXIT_UNREACHED, 1)


def replace_patience(**changes: float) -> Patience:
    return QUICK.model_copy(update=changes)


def test_one_that_stays_in_trouble_is_given_up_in_time_for_another_pod(sender: Sender) -> None:
    with receiving(500) as receiver:
        ended = sender.send(receiver.url(f"/{PATH_TOKEN}"), patience=replace_patience(try_for_seconds=1))
    assert ended.code == EXIT_UNREACHED
    assert re.fullmatch(rf"http://127.0.0.1:{receiver.port} answers 500 \(the last of \d+ tries\)", ended.said)
    assert len(receiver.received) >= 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_refusal_is_final(sender: Sender, status: int) -> None:
    with receiving(status) as receiver:
        ended = sender.send(receiver.url())
    assert (ended.code, len(receiver.received)) == (EXIT_REFUSED, 1)
    assert ended.said == f"http://127.0.0.1:{receiver.port} answers {status}"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(sender: Sender, status: int) -> None:
    sender.put(signingKey=KEY, bearer=TOKEN)
    with receiving(200) as other, receiving((status, {"Location": other.url()})) as receiver:
        ended = sender.send(receiver.url(), is_signed=True)
    assert ended.code == EXIT_REFUSED
    assert "redirects are not followed" in ended.said
    assert other.received == []


def test_one_that_comes_back_is_told(sender: Sender) -> None:
    port = free_port()
    process = sender.start(f"http://127.0.0.1:{port}/", patience=replace_patience(try_for_seconds=20))
    assert process.stderr is not None
    # It has met nobody there.
    log = process.stderr.readline()
    assert "cannot be reached: " in log
    with receiving(200, port=port) as receiver:
        _, rest = process.communicate(timeout=30)
    assert sender.ended(process.returncode, log + rest).code == 0
    assert len(receiver.received) == 1


def silent(connection: socket.socket) -> None:
    time.sleep(0.05)


def drip(connection: socket.socket) -> None:
    """A header that never ends, a byte now and then."""
    connection.sendall(b"H")
    time.sleep(0.05)


def garbage(connection: socket.socket) -> None:
    connection.sendall(b"\x00\xff garbage \r\n\r\n")
    connection.shutdown(socket.SHUT_RDWR)
    raise OSError


def endless_header(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 65536)


@pytest.mark.parametrize(
    ("talk", "said"),
    [
        (silent, "no answer within 0.5 s"),
        (drip, "(no answer within 0.5 s|answers with what is no HTTP)"),
        (garbage, "answers with what is no HTTP"),
        (endless_header, "(answers with what is no HTTP|the connection failed .*)"),
    ],
)
def test_a_server_that_makes_no_sense_is_bounded(sender: Sender, talk: Any, said: str) -> None:
    with saying(talk) as port:
        ended = sender.send(f"http://127.0.0.1:{port}/{PATH_TOKEN}", patience=replace_patience(try_for_seconds=1))
    assert ended.code == EXIT_UNREACHED, ended
    assert re.fullmatch(rf"http://127.0.0.1:{port}: {said} \(the last of \d+ tries\)", ended.said), ended.said


def test_a_body_without_end_is_not_read(sender: Sender) -> None:
    begun: list[socket.socket] = []

    def endless(connection: socket.socket) -> None:
        if connection not in begun:
            begun.append(connection)
            connection.sendall(ENDLESS_HEAD)
        connection.sendall(b"x" * 65536)

    with saying(endless) as port:
        ended = sender.send(f"http://127.0.0.1:{port}/")
    assert (ended.code, len(begun)) == (0, 1)


def test_a_certificate_that_nobody_vouches_for_gets_nothing(sender: Sender, authority: Authority) -> None:
    with receiving(200, context=authority.server_context) as receiver:
        ended = sender.send(receiver.url(), patience=replace_patience(try_for_seconds=0.5))
    assert ended.code == EXIT_UNREACHED
    assert "its certificate is not trusted: " in ended.said
    assert receiver.received == []


def test_a_certificate_of_another_host_gets_nothing(sender: Sender, authority: Authority) -> None:
    (sender.folder / "authorities").write_text(authority.pem)
    with receiving(200, context=authority.server_context, host="127.0.0.2") as receiver:
        ended = sender.send(receiver.url(host="127.0.0.2"), patience=replace_patience(try_for_seconds=0.5))
    assert "its certificate is not trusted: " in ended.said
    assert receiver.received == []


def test_by_the_proxy_unless_the_host_is_spared(sender: Sender, authority: Authority) -> None:
    (sender.folder / "authorities").write_text(authority.pem)
    with receiving(200, context=authority.server_context) as receiver, Proxy("me:hunter2").run() as proxy:
        password = proxy.url.replace("http://", "http://me:hunter2@")
        assert sender.send(receiver.url(), https_proxy=password).code == 0
        assert proxy.targets == [f"127.0.0.1:{receiver.port}"]
        assert sender.send(receiver.url(), https_proxy=password, no_proxy="127.0.0.0/8").code == 0
        (sender.folder / "proxies" / "httpsProxy").write_text(password)
        assert sender.send(receiver.url()).code == 0
        assert len(proxy.targets) == 2
        quick = replace_patience(try_for_seconds=0.5)
        refused = sender.send(receiver.url(), https_proxy=proxy.url, patience=quick)
        assert (refused.code, "the proxy answers 407" in refused.said) == (EXIT_UNREACHED, True)
    assert len(receiver.received) == 3


@pytest.mark.parametrize("is_in_secret", [False, True])
def test_by_plain_http_no_proxy_of_the_runs_own_gets_what_is_for_certain_hosts(
    sender: Sender, is_in_secret: bool
) -> None:
    """Wherever address and proxy stand: such a proxy could read and answer what only these hosts are to get."""
    with receiving(200) as receiver, receiving(200) as proxy:
        changes: dict[str, Any] = {
            "allowed_hosts": (f"127.0.0.1:{receiver.port}",), "is_proxy_own": True, "http_proxy": proxy.url(""),
        }  # fmt: skip
        url: str | None = receiver.url(f"/{PATH_TOKEN}")
        if is_in_secret:
            sender.put(url=receiver.url(f"/{PATH_TOKEN}"))
            (sender.folder / "proxies" / "httpProxy").write_text(proxy.url(""))
            url, changes["http_proxy"] = None, None
        refused = sender.send(url, **changes)
        assert (refused.code, receiver.received, proxy.received) == (EXIT_REFUSED, [], [])
        where = (
            "the address in the key url of the notification's Secret" if is_in_secret else "the notification's address"
        )
        assert refused.said.startswith(f"{where} is at http://127.0.0.1:{receiver.port}, but this installation sends ")
        # By the installation's proxy, by none, and where every host may get it, it is sent.
        assert sender.send(url, **changes, no_proxy="127.0.0.1").code == 0
        assert len(receiver.received) == 1
        assert sender.send(url, **{**changes, "is_proxy_own": False}).code == 0
        assert sender.send(url, **{**changes, "allowed_hosts": ("*",)}).code == 0
        assert len(proxy.received) == 2


@pytest.mark.parametrize(
    ("proxy", "place"),
    [
        ("http://[::1]:3128", "http://[::1]:3128"),
        ("proxy:3128", "http://proxy:3128"),
        ("https://proxy", "https://proxy:443"),
    ],
)
def test_a_proxy_may_be_written_as_others_take_it(sender: Sender, proxy: str, place: str) -> None:
    delivery = sender.delivery.model_copy(update={"url": "https://h.example/", "https_proxy": proxy})
    files = Files(**{name: sender.folder / name for name in ("secret", "proxies", "authorities")})
    found = build_request(delivery, files).proxy
    assert found is not None
    assert found.url == place


def test_slack_gets_one_line_from_an_address_that_is_a_secret(sender: Sender) -> None:
    body, content_type = build_slack_body(build_event(make_run(begun()), TOLD))
    with receiving(200) as receiver:
        sender.put(url=receiver.url(f"/services/{PATH_TOKEN}") + "\n")
        ended = sender.send(None, kind="slack", body=body, content_type=content_type)
    assert (ended.code, ended.said) == (0, f"http://127.0.0.1:{receiver.port} answers 200")
    [one] = receiver.received
    assert one.path == f"/services/{PATH_TOKEN}"
    assert one.headers["content-type"] == "application/json"
    assert not {name for name in one.headers if name.startswith("webhook-")}
    assert json.loads(one.body) == {
        "text": "`team/invoices: Failed OutOfMemory (train, attempt 2): a &lt;b&gt; &amp; $(PATH) ü`", "mrkdwn": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    "said",
    [
        "@all @here", "<!channel> <@U123>", "` @channel `", "```\n@all\n```", "https://evil.example/x",
        "![x](https://evil.example/x.png)", "[x](https://evil.example)", "\\` *x*", "`" * 2000,
    ],
)  # fmt: skip
def test_nothing_that_others_wrote_calls_or_leads_anybody_anywhere(said: str) -> None:
    """The line is a code span whose end is ours, and in which there is nobody to call."""
    told = TOLD.model_copy(update={"message": said, "reason": f"@all\n{said[:100]}"})
    body, _ = build_slack_body(build_event(make_run(begun()), told))
    line = json.loads(body)["text"]
    assert (line[0], line[-1]) == ("`", "`")
    assert not set(line[1:-1]) & set("`@<>\n")
    assert line.startswith("`team/invoices: Failed \uff20all\\n")


@pytest.mark.parametrize(
    ("keys", "changes", "said"),
    [
        ({}, {"is_signed": True}, "has no key signingKey"),
        ({"signingKey": "short"}, {"is_signed": True}, "signingKey of the notification's Secret has 5 bytes, but"),
        ({"signingKey": "whsec_???"}, {"is_signed": True}, "is no base64 behind whsec_"),
        ({"bearer": "two words"}, {}, "bearer of the notification's Secret must be a token"),
        ({"bearer": "a\r\nX: y"}, {}, "bearer of the notification's Secret must be a token"),
        ({}, {"url": None}, "has no key url"),
        ({"url": f"https://me:hunter2@127.0.0.1/{PATH_TOKEN}"}, {"url": None}, "must be https://HOST/PATH, without"),
        ({"url": f"http://127.0.0.1/{PATH_TOKEN}"}, {"url": None, "insecure": False}, "key url of the notification's "
         "Secret is at http://127.0.0.1, but this installation sends notifications by https only"),
        ({"url": f"https://evil.example/{PATH_TOKEN}"}, {"url": None, "allowed_hosts": ("hooks.example",)},
         "is at https://evil.example, which this installation does not allow (policy.notificationHosts)"),
        ({}, {"http_proxy": "ftp://me:hunter2@proxy"}, "spec.download.httpProxy, or the key httpProxy of its Secret"),
        *(({}, {"http_proxy": proxy}, "spec.download.httpProxy, or the key httpProxy of its Secret, must be http://HOST")
          for proxy in ("http://me:hunter2@proxy:port", "http://me:hunter2@proxy:65536", "http://me:hunter2@:3128",
                        "http://me:hunter2@[::1")),
        ({}, {"url": f"http://127.0.0.1:65536/{PATH_TOKEN}"}, "the notification's address is at "
         "http://127.0.0.1:65536: its port must be a number up to 65535"),
        ({"url": f"https://127.0.0.1:99999/{PATH_TOKEN}"}, {"url": None}, "the address in the key url of the "
         "notification's Secret is at https://127.0.0.1:99999: its port must be"),
    ],
)  # fmt: skip
def test_what_is_set_wrongly_is_named_and_not_shown(
    sender: Sender, keys: dict[str, str], changes: dict[str, Any], said: str
) -> None:
    sender.put(**keys)
    with receiving(200) as receiver:
        ended = sender.send(**{"url": receiver.url(), **changes})
    assert ended.code == EXIT_REFUSED
    assert said in ended.said
    assert receiver.received == []


def test_authorities_that_are_none_are_named(sender: Sender) -> None:
    (sender.folder / "authorities").write_text("none")
    ended = sender.send("http://127.0.0.1:1/")
    assert (ended.code, "caConfigMap: ca.crt must hold certificates" in ended.said) == (EXIT_REFUSED, True)


def test_a_delivery_that_is_none_ends_at_once(sender: Sender) -> None:
    with mock.patch.object(sender, "describe", return_value='{"kind": "pigeon"}'):
        assert sender.send(None).said == "LLAVA_DELIVERY holds nothing that can be sent"


def test_asked_to_stop_it_ends_at_once_and_says_so(sender: Sender) -> None:
    with saying(silent) as port:
        process = sender.start(
            f"http://127.0.0.1:{port}/", patience=replace_patience(try_for_seconds=600, answer_seconds=0.2)
        )
        assert process.stderr is not None
        log = process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=20)
    ended = sender.ended(process.returncode, log + rest)
    assert (ended.code, ended.said) == (EXIT_UNREACHED, "asked to stop before it was delivered")
