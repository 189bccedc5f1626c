"""Progress reports against a real HTTPS server: what arrives, and that nothing holds the stage up."""

import datetime
import http.server
import ipaddress
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from llava_api.failures import Reason
from llava_api.report import ProgressReport
from llava_api.run_config import Reporting, RunConfig
from llava_trainer import reporting
from llava_trainer.errors import StageError
from llava_trainer.files import Space
from llava_trainer.reporting import Pace, Reporter, StepRate
from tests.trainer.exports import prepare_config

FAST = Pace(interval_s=0.05, timeout_s=1.0)
DEADLINE_S = 10.0
ONCE = " (the run goes on either way; this is not logged again)"


@dataclass
class Authority:
    """A certificate authority of our own."""

    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        extensions = [
            x509.BasicConstraints(ca=True, path_length=0),
            x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()),
        ]
        self.certificate = self._sign(self.name, self.key.public_key(), extensions)

    def _sign(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, extensions: list) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(hours=1))
        )  # fmt: skip
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(self.key, hashes.SHA256())

    def write_ca(self, path: Path) -> None:
        path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def write_leaf(self, path: Path) -> None:
        """Key and certificate for 127.0.0.1, in one file."""
        key = ec.generate_private_key(ec.SECP256R1())
        extensions = [
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
        ]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
        certificate = self._sign(subject, key.public_key(), extensions)
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )


class Server(http.server.ThreadingHTTPServer):
    """Takes reports; ``status``, ``answer`` and ``hold`` decide how it answers."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, leaf: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.answer = 204, b""
        self.keeps = True
        """Whether a connection may carry more than one report."""
        self.drip_s = 0.0
        """Pause between two bytes of an answer."""
        self.redirect = ""
        self.num_connections = self.num_answered = 0
        self.connections: set[socket.socket] = set()
        self.hold = threading.Event()
        self.hold.set()
        self.reports: list[ProgressReport] = []
        self.tokens: list[str] = []
        self.targets: set[tuple[str, str, str]] = set()
        self.arrived = threading.Condition()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(leaf)
        self.socket = self.context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def get_request(self) -> tuple[socket.socket, object]:
        """Count who comes."""
        connection = super().get_request()
        self.num_connections += 1
        self.connections.add(connection[0])
        return connection

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        """Forget it."""
        self.connections.discard(request)
        super().shutdown_request(request)

    def end_connections(self) -> None:
        """As a server does with idle ones."""
        for connection in tuple(self.connections):
            connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that does not trust us goes away; that is what some tests want."""

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self.arrived:
            assert self.arrived.wait_for(condition, DEADLINE_S), f"{len(self.reports)} reports, tokens {self.tokens}"


class Handler(http.server.BaseHTTPRequestHandler):
    """One report."""

    server: Server

    def setup(self) -> None:
        self.protocol_version = "HTTP/1.1" if self.server.keeps else "HTTP/1.0"
        super().setup()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.arrived:
            self.server.reports.append(ProgressReport.model_validate(json.loads(body)))
            self.server.tokens.append(self.headers["Authorization"])
            self.server.targets.add((self.command, self.path, self.headers["Content-Type"]))
            self.server.arrived.notify_all()
        self.server.hold.wait(DEADLINE_S)
        if self.server.drip_s:
            for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: " + b"y" * 10_000:
                self.wfile.write(bytes([byte]))
                time.sleep(self.server.drip_s)
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.answer)))
        if self.server.redirect:
            self.send_header("Location", self.server.redirect)
        self.end_headers()
        self.wfile.write(self.server.answer)
        with self.server.arrived:
            self.server.num_answered += 1
            self.server.arrived.notify_all()

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def server(authority: Authority, tmp_path: Path) -> Iterator[Server]:
    authority.write_ca(tmp_path / "ca.crt")
    authority.write_leaf(tmp_path / "leaf.pem")
    (tmp_path / "token").write_text("first-token\n")
    served = Server(tmp_path / "leaf.pem")
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield served
    served.hold.set()
    served.shutdown()
    served.server_close()
    thread.join(DEADLINE_S)


@pytest.fixture(autouse=True)
def _volume(monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume whose other users do nothing meanwhile."""
    monkeypatch.setattr(reporting, "find_space", lambda _: Space(size=100, free=70))


@pytest.fixture
def config(server: Server, tmp_path: Path) -> RunConfig:
    return config_with(tmp_path, f"https://127.0.0.1:{server.server_port}/v1/progress")


def config_with(tmp_path: Path, url: str) -> RunConfig:
    told = Reporting(url=url, ca_file=tmp_path / "ca.crt", token_file=tmp_path / "token")
    return prepare_config(tmp_path, tmp_path).model_copy(update={"reporting": told})


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_report_arrives_with_the_token(config: RunConfig, server: Server):
    with Reporter(config, FAST) as reporter:
        reporter.update(3, 10, loss=0.5, losses=(0.7, 0.5), learning_rate=1e-4, epoch=0.3, message="going well")
        server.wait_for(lambda: len(server.reports) == 1)
    assert server.tokens == ["Bearer first-token"]
    assert server.targets == {("POST", "/v1/progress", "application/json")}
    assert server.reports[0] == ProgressReport(
        run_uid="0c6f", stage="prepare", attempt=1, step=3, total_steps=10, loss=0.5, losses=(0.7, 0.5),
        learning_rate=1e-4, epoch=0.3, message="going well", volume_free_bytes=70, volume_size_bytes=100,
    )  # fmt: skip


def test_a_volume_that_does_not_tell_is_left_out(config: RunConfig, server: Server, monkeypatch: pytest.MonkeyPatch):
    def fail(_: Path) -> None:
        raise OSError("Stale file handle")

    without_limit = Space(size=2**63, free=2**63)
    for told in (lambda _: None, lambda _: without_limit, fail):
        monkeypatch.setattr(reporting, "find_space", told)
        server.reports.clear()
        with Reporter(config, FAST) as reporter:
            reporter.update(3, 10)
            server.wait_for(lambda: len(server.reports) == 1)
        assert (server.reports[0].volume_free_bytes, server.reports[0].volume_size_bytes) == (None, None)


def test_the_newest_report_wins_and_the_last_one_is_pushed_at_the_end(config: RunConfig, server: Server):
    server.hold.clear()
    with Reporter(config, Pace(interval_s=30, timeout_s=5)) as reporter:
        reporter.update(1, 1000)
        server.wait_for(lambda: len(server.reports) == 1)
        for step in range(2, 1001):
            reporter.update(step, 1000)
        server.hold.set()
    assert [report.step for report in server.reports] == [1, 1000]


def test_pushes_keep_their_distance(config: RunConfig, server: Server):
    with Reporter(config, Pace(interval_s=0.2, timeout_s=5)) as reporter:
        began = time.monotonic()
        for step in range(60):
            reporter.update(step, 60)
            time.sleep(0.01)
        elapsed = time.monotonic() - began
    assert 2 <= len(server.reports) <= elapsed / 0.2 + 2
    assert server.reports[-1].step == 59


def test_a_token_that_changes_is_read_anew(config: RunConfig, server: Server, tmp_path: Path):
    with Reporter(config, FAST) as reporter:
        reporter.update(1, 3)
        server.wait_for(lambda: len(server.tokens) == 1)
        (tmp_path / "token").write_text("second-token")
        reporter.update(2, 3)
        server.wait_for(lambda: len(server.tokens) == 2)
    assert server.tokens == ["Bearer first-token", "Bearer second-token"]


def test_a_new_authority_is_read_anew(config: RunConfig, server: Server, tmp_path: Path, caplog):
    caplog.set_level(logging.INFO)
    server.keeps = False
    with Reporter(config, FAST) as reporter:
        reporter.update(1, 3)
        server.wait_for(lambda: len(server.reports) == 1)
        other = Authority()
        other.write_leaf(tmp_path / "leaf.pem")
        server.context.load_cert_chain(tmp_path / "leaf.pem")
        reporter.update(2, 3)
        wait_until(lambda: warnings_in(caplog))
        other.write_ca(tmp_path / "ca.crt")
        reporter.update(3, 3)
        server.wait_for(lambda: server.reports[-1].step == 3)
    assert [report.step for report in server.reports] == [1, 3]
    assert any("certificate verify failed" in warning for warning in warnings_in(caplog))
    assert caplog.messages[-1] == f"progress reports are accepted again{ONCE}"


def test_an_attempt_that_was_accepted_is_over_with_the_first_409(config: RunConfig, server: Server):
    with Reporter(config, FAST) as reporter:
        reporter.update(1, 9)
        server.wait_for(lambda: server.num_answered == 1)
        server.status, server.answer = 409, b'{"error": "pod p does not belong to the current stage of a run"}'
        reporter.update(2, 9)
        wait_until(lambda: reporter.fence.find_reason())
        with pytest.raises(
            StageError, match=r"attempt 1 of prepare does not count any more.*HTTP 409: pod p"
        ) as caught:
            reporter.update(3, 9)
        assert caught.value.reason is Reason.SUPERSEDED
        with pytest.raises(StageError, match="HTTP 409"):
            reporter.fence.check()


def test_a_first_report_may_come_before_the_operator_knows_of_the_attempt(config: RunConfig, server: Server):
    server.status = 409
    with Reporter(config, FAST) as reporter:
        for step in range(1, 5):
            reporter.update(step, 9)
            server.wait_for(lambda step=step: server.num_answered >= step)
        server.status = 204
        reporter.update(5, 9)
        server.wait_for(lambda: server.num_answered == 5)
        reporter.fence.check()


@pytest.mark.parametrize("between", [409, 503])
def test_an_attempt_that_was_never_accepted_is_over_when_409_stays(config: RunConfig, server: Server, between: int):
    """Anything else in between begins the time anew."""
    now = [0.0]
    server.status = 409
    with Reporter(config, Pace(interval_s=0.05, timeout_s=1.0, doubt_s=60), clock=lambda: now[0]) as reporter:
        for number, (at, status) in enumerate([(0.0, 409), (30.0, between), (59.0, 409)], start=1):
            now[0], server.status = at, status
            reporter.update(number, 9)
            server.wait_for(lambda number=number: server.num_answered == number)
            reporter.fence.check()
        # Whenever the first of the last ones was taken note of: by then it is long ago, or not.
        now[0] = 130.0 if between == 409 else 61.0
        reporter.update(4, 9)
        server.wait_for(lambda: server.num_answered == 4)
        if between == 409:
            wait_until(lambda: reporter.fence.find_reason())
        else:
            time.sleep(0.2)
            reporter.fence.check()


@pytest.mark.parametrize("status", [400, 401, 403, 429, 500, 503])
def test_no_other_refusal_ends_an_attempt(config: RunConfig, server: Server, status: int):
    with Reporter(config, FAST) as reporter:
        reporter.update(1, 9)
        server.wait_for(lambda: server.num_answered == 1)
        server.status = status
        reporter.update(2, 9)
        server.wait_for(lambda: server.num_answered == 2)
        time.sleep(0.1)
        reporter.update(3, 9)
        reporter.fence.check()


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_refusal_is_logged_once_with_what_the_operator_says(config: RunConfig, server: Server, caplog):
    server.status, server.answer = 403, b'{"error": "the pod is not the run\'s current one"}'
    with Reporter(config, FAST) as reporter:
        for step in range(4):
            reporter.update(step, 4)
            server.wait_for(lambda step=step: server.reports and server.reports[-1].step == step)
    assert warnings_in(caplog) == [f"a report was not accepted: HTTP 403: the pod is not the run's current one{ONCE}"]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"<html>no", "<html>no"),
        (b'{"error": 5}', '{"error": 5}'),
        (b"", ""),
        (b"a\n\x1b[2J", "a\\n\\x1b[2J"),
        (b"[" * 4000, "[" * 200),
    ],
)
def test_answers_of_another_form_are_told_as_they_are(
    answer: bytes, told: str, config: RunConfig, server: Server, caplog
):
    server.status, server.answer = 500, answer
    with Reporter(config, FAST) as reporter:
        reporter.update(1, 2)
    assert warnings_in(caplog) == [f"a report was not accepted: HTTP 500: {told}{ONCE}"]


def test_a_redirect_is_not_followed(config: RunConfig, server: Server, caplog):
    server.status, server.redirect = 302, f"https://127.0.0.1:{server.server_port}/elsewhere"
    with Reporter(config, FAST) as reporter:
        reporter.update(1, 2)
    assert len(server.reports) == 1
    assert "HTTP 302" in warnings_in(caplog)[0]


def test_no_server_at_all_holds_nothing_up(tmp_path: Path, authority: Authority, caplog):
    authority.write_ca(tmp_path / "ca.crt")
    (tmp_path / "token").write_text("t")
    with Reporter(config_with(tmp_path, "https://127.0.0.1:1/v1/progress"), FAST) as reporter:
        for step in range(20):
            reporter.update(step, 20)
            time.sleep(0.01)
    assert len(warnings_in(caplog)) == 1
    assert "ConnectionRefusedError" in warnings_in(caplog)[0]


def test_a_server_that_never_answers_holds_the_end_up_only_for_the_deadline(config: RunConfig, server: Server):
    server.hold.clear()
    reporter = Reporter(config, Pace(interval_s=0.05, timeout_s=0.5))
    reporter.update(1, 2)
    server.wait_for(lambda: len(server.reports) == 1)
    for step in range(100):
        reporter.update(step, 100)
    closing = threading.Thread(target=reporter.close)
    closing.start()
    closing.join(DEADLINE_S)
    assert not closing.is_alive()


@pytest.mark.parametrize(("file", "content", "told"), [
    ("token", None, "FileNotFoundError"), ("token", b"t\xff", "UnicodeDecodeError"), ("token", b"a\nb", "ValueError"),
    ("ca.crt", None, "FileNotFoundError"), ("ca.crt", b"no certificate", "SSLError"),
])  # fmt: skip
def test_credentials_that_cannot_be_read_are_told(
    file: str, content: bytes | None, told: str, config: RunConfig, server: Server, tmp_path: Path, caplog
):
    (tmp_path / file).unlink() if content is None else (tmp_path / file).write_bytes(content)
    with Reporter(config, FAST) as reporter:
        reporter.update(1, 2)
    assert server.reports == []
    assert told in warnings_in(caplog)[0]
    assert "a\\nb" not in warnings_in(caplog)[0]


@pytest.mark.parametrize(("url", "told"), [
    ("http://127.0.0.1:1/x", "must begin with https://"), ("ftp://h/", "must begin with https://"),
    ("127.0.0.1", "must begin with https://"), ("https:///x", "must begin with https://"),
    ("https://h:port/", "ValueError: Port could not be cast"),
])  # fmt: skip
def test_the_token_goes_nowhere_but_over_tls(url: str, told: str, tmp_path: Path, authority: Authority, caplog):
    authority.write_ca(tmp_path / "ca.crt")
    (tmp_path / "token").write_text("t")
    with Reporter(config_with(tmp_path, url), FAST) as reporter:
        reporter.update(1, 2)
    (warning,) = warnings_in(caplog)
    assert told in warning


def test_without_an_address_nothing_is_started(tmp_path: Path):
    before = threading.active_count()
    with Reporter(prepare_config(tmp_path, tmp_path)) as reporter:
        reporter.update(1, 2)
        assert threading.active_count() == before


def push(reporter: Reporter, server: Server, *steps: int) -> None:
    """Report steps, each when the one before has arrived."""
    for step in steps:
        reporter.update(step, 100)
        server.wait_for(lambda step=step: server.reports and server.reports[-1].step == step)


def test_one_connection_carries_many_reports(config: RunConfig, server: Server):
    with Reporter(config, FAST) as reporter:
        push(reporter, server, *range(1, 11))
    assert server.num_connections == 1


def test_a_connection_that_the_operator_has_ended_costs_no_report(config: RunConfig, server: Server, caplog):
    with Reporter(config, FAST) as reporter:
        push(reporter, server, 1)
        server.wait_for(lambda: server.num_answered == 1)
        server.end_connections()
        push(reporter, server, 2, 3)
    assert server.num_connections == 2
    assert warnings_in(caplog) == []


def test_an_answer_that_ends_the_connection_is_heeded(config: RunConfig, server: Server, caplog):
    server.keeps = False
    with Reporter(config, FAST) as reporter:
        push(reporter, server, 1, 2, 3)
    assert server.num_connections == 3
    assert warnings_in(caplog) == []


def test_a_new_authority_makes_a_new_connection(config: RunConfig, server: Server, tmp_path: Path, caplog):
    with Reporter(config, FAST) as reporter:
        push(reporter, server, 1, 2)
        other = Authority()
        other.write_leaf(tmp_path / "leaf.pem")
        server.context.load_cert_chain(tmp_path / "leaf.pem")
        push(reporter, server, 3)
        assert server.num_connections == 1, "who was trusted is trusted on"
        other.write_ca(tmp_path / "ca.crt")
        push(reporter, server, 4)
        assert server.num_connections == 2
        Authority().write_ca(tmp_path / "ca.crt")
        reporter.update(5, 100)
        wait_until(lambda: warnings_in(caplog))
    assert server.reports[-1].step == 4
    assert "certificate verify failed" in warnings_in(caplog)[0]


def test_an_empty_authority_trusts_nobody(config: RunConfig, server: Server, tmp_path: Path, caplog):
    (tmp_path / "ca.crt").write_bytes(b"")
    with Reporter(config, FAST) as reporter:
        reporter.update(1, 2)
    assert server.reports == []
    assert "Empty certificate data" in warnings_in(caplog)[0]


def test_the_operator_says_when_the_next_report_is_welcome_but_the_last_one_comes_when_there_is_one(
    config: RunConfig, server: Server
):
    server.status, server.answer = 200, b'{"nextReportSeconds": 600}'
    with Reporter(config, FAST) as reporter:
        push(reporter, server, 1)
        for step in range(2, 30):
            reporter.update(step, 100)
            time.sleep(0.01)
        assert len(server.reports) == 1
    assert [report.step for report in server.reports] == [1, 29]


@pytest.mark.parametrize("answer", [
    b"", b"soon", b"[]", b"{}", b'{"nextReportSeconds": null}', b'{"nextReportSeconds": "soon"}',
    b'{"nextReportSeconds": -1}', b'{"nextReportSeconds": 1e308}', b'{"nextReportSeconds": NaN}',
    b'{"nextReportSeconds": 601}', b'{"nextReportSeconds": 0}', b"\xff" * 5000, b"[" * 5000, b"1" * 5000,
])  # fmt: skip
def test_an_answer_that_makes_no_sense_changes_nothing(answer: bytes, config: RunConfig, server: Server, caplog):
    server.status, server.answer = 200, answer
    with Reporter(config, FAST) as reporter:
        push(reporter, server, 1, 2)
    assert warnings_in(caplog) == []


def test_a_pace_is_bounded_both_ways():
    pace = Pace()
    assert [pace.wait_s(asked, 0) for asked in (None, 0.0, 15.0, 1e9)] == [2.0, 2.0, 15.0, 600.0]
    for failures, longest in ((1, 4.0), (2, 8.0), (5, 60.0), (5000, 60.0)):
        waits = [pace.wait_s(None, failures) for _ in range(100)]
        assert longest / 2 <= min(waits) < max(waits) <= longest


def test_an_answer_a_byte_at_a_time_is_not_waited_for(config: RunConfig, server: Server, caplog):
    server.drip_s = 0.01
    with Reporter(config, Pace(interval_s=0.01, timeout_s=0.5)) as reporter:
        reporter.update(1, 2)
        wait_until(lambda: warnings_in(caplog))
        server.drip_s = 0.0
        push(reporter, server, 2)
    assert server.num_connections == 2
    assert "TimeoutError" in warnings_in(caplog)[0]


def test_what_comes_back_in_place_of_http_is_not_logged(
    config: RunConfig, server: Server, caplog, monkeypatch: pytest.MonkeyPatch
):
    def repeat(self: Handler) -> None:
        do_post(self)
        self.close_connection = True

    do_post = Handler.do_POST
    monkeypatch.setattr(Handler, "do_POST", repeat)
    monkeypatch.setattr(
        Handler, "send_response",
        lambda self, _: self.wfile.write(f"Authorization: {self.headers['Authorization']}\r\n\r\n".encode()),
    )  # fmt: skip
    with Reporter(config, FAST) as reporter:
        reporter.update(1, 2)
        wait_until(lambda: warnings_in(caplog))
    assert warnings_in(caplog) == [f"a report was not accepted: BadStatusLine: what came is no HTTP{ONCE}"]


def test_of_a_huge_answer_only_the_beginning_is_read(config: RunConfig, server: Server, caplog):
    server.status, server.answer = 500, b"x" * 30_000_000
    with Reporter(config, FAST) as reporter:
        push(reporter, server, 1, 2)
    assert server.num_connections == 2
    assert warnings_in(caplog) == [f"a report was not accepted: HTTP 500: {'x' * 200}{ONCE}"]


def test_numbers_that_json_does_not_have_are_left_out(config: RunConfig, server: Server):
    with Reporter(config, FAST) as reporter:
        losses = tuple(float(index) for index in range(80))
        reporter.update(
            1, 2, loss=float("nan"), grad_norm=float("inf"), epoch=0.5, message="x" * 999,
            losses=(*losses, float("nan")),
        )  # fmt: skip
    (report,) = server.reports
    assert (report.loss, report.grad_norm, report.epoch) == (None, None, 0.5)
    assert report.losses == losses[-60:]
    assert report.message == "x" * 256


def test_an_update_after_the_end_is_not_pushed(config: RunConfig, server: Server):
    reporter = Reporter(config, FAST)
    reporter.close()
    reporter.update(1, 2)
    assert server.reports == []


def test_threads_report_one_after_the_other(config: RunConfig):
    both = threading.Barrier(2)
    together = []

    def clock() -> float:
        try:
            both.wait(0.1)
            together.append("two threads count at once")
        except threading.BrokenBarrierError:
            pass
        return time.monotonic()

    with Reporter(config, FAST, clock) as reporter:
        threads = [threading.Thread(target=reporter.update, args=(step, 9)) for step in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert together == []


def test_the_estimate_follows_the_rate():
    rate = StepRate()
    assert rate.seconds_to(100) is None
    for second in range(11):
        rate.observe(second * 2, float(second))
    assert rate.seconds_to(100) == pytest.approx(40.0)
    assert rate.seconds_to(20) == 0
    assert rate.seconds_to(10) == 0
    assert rate.seconds_to(0) is None


def test_one_slow_step_moves_the_estimate_little_and_a_lasting_change_moves_it_wholly():
    rate = StepRate(smoothing_s=30)
    for second in range(100):
        rate.observe(second, float(second))
    rate.observe(100, 104.0)
    assert rate.seconds_to(200) == pytest.approx(110, rel=0.05)
    for step in range(1, 101):
        rate.observe(100 + step, 104.0 + 4 * step)
    assert rate.seconds_to(300) == pytest.approx(400, rel=0.02)


def test_standing_still_and_going_back_do_no_harm():
    rate = StepRate()
    rate.observe(5, 1.0)
    rate.observe(5, 2.0)
    rate.observe(6, 1.0)
    assert rate.seconds_to(10) is None
    rate.observe(8, 4.0)
    assert rate.seconds_to(10) == pytest.approx(2.0)
    rate.observe(1, 5.0)
    assert rate.seconds_to(10) is None


def test_the_estimate_stays_within_what_a_report_may_say():
    rate = StepRate()
    rate.observe(0, 0.0)
    rate.observe(1, 1e9)
    assert rate.seconds_to(2**53) == 1e9
