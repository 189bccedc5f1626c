"""MLflow: a real server for what it keeps, and a stranger in its place for what may not hurt."""

import gzip
import http.server
import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from llava_api.constants import SecretRole, StageName
from llava_api.run_config import RunConfig
from llava_api.spec import Download, Mlflow
from llava_trainer.sources.fetching import Surroundings
from llava_trainer.training.curve import Curve, CurvePoint
from llava_trainer.training.tracking.follower import Follower, following
from llava_trainer.training.tracking.opening import _open_mlflow, make_followers
from tests.trainer.servers import mlflow as server
from tests.trainer.servers.authority import Authority
from tests.trainer.servers.echo import ECHOES, run_echo
from tests.trainer.test_tracking import point
from tests.trainer.trainings import configure

SECRET = "s3cret-WORD_nobody-may-read"
TOTAL_STEPS = 1000


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server.serve(tmp_path_factory.mktemp("mlflow")) as address:
        yield address


def make_config(root: Path, url: str, *, uid: str = "0c6f", experiment: str = "trays", secret: str | None = None,
                **run: Any) -> RunConfig:  # fmt: skip
    mlflow = {"url": url, "experiment": experiment, **({"secretRef": {"name": secret}} if secret else {})}
    config = configure(root, root / "base", training={"tracking": {"mlflow": mlflow}})
    return config.model_copy(update={"run": config.run.model_copy(update={"uid": uid, **run})})


@pytest.fixture
def around(tmp_path: Path) -> Surroundings:
    return Surroundings(secrets=tmp_path / "secrets", ca_file=tmp_path / "ca.crt", environ={})


@contextmanager
def follow(config: RunConfig, around: Surroundings) -> Iterator[Follower]:
    mlflow = config.training.tracking and config.training.tracking.mlflow
    assert isinstance(mlflow, Mlflow)
    follower = Follower(
        "MLflow's server", lambda: _open_mlflow(config, mlflow, TOTAL_STEPS, around),
        config.volume.history_file(config.run.stage, config.run.attempt), interval_s=0.01, longest_s=0.02,
    )  # fmt: skip
    with following([follower], closing_s=30):
        yield follower


def train(config: RunConfig, around: Surroundings, points: list[CurvePoint], *, resumed: list[CurvePoint] = []) -> None:  # noqa: B006
    file = config.volume.history_file(config.run.stage, config.run.attempt)
    file.parent.mkdir(parents=True, exist_ok=True)
    with Curve(file) as history:
        for one in resumed:
            history.append(one)
        with follow(config, around) as follower:
            for one in points:
                history.append(one)
                follower.note(one)


def runs_of(url: str, experiment: str) -> list[dict[str, Any]]:
    with httpx.Client(base_url=f"{url}/api/2.0/mlflow", trust_env=False, timeout=60) as client:
        found = client.get("/experiments/get-by-name", params={"experiment_name": experiment}).json()
        if "experiment" not in found:
            return []
        asked = {"experiment_ids": [found["experiment"]["experiment_id"]]}
        runs: list[dict[str, Any]] = client.post("/runs/search", json=asked).json().get("runs", [])
        return runs


def history_of(url: str, run_id: str, key: str) -> list[tuple[int, float]]:
    asked = {"run_id": run_id, "metric_key": key}
    found = httpx.get(f"{url}/api/2.0/mlflow/metrics/get-history", params=asked, trust_env=False, timeout=60).json()
    return sorted((int(one.get("step", 0)), one["value"]) for one in found.get("metrics", []))


# --- a real server


def test_a_run_and_the_one_that_goes_on_from_it_are_one_curve(url: str, tmp_path: Path, around: Surroundings) -> None:
    first = make_config(tmp_path / "1", url)
    train(first, around, [point(step, float(step)) for step in range(1, 6)])
    # From the checkpoint of step 3: steps 4 and 5 are done again, with the same losses.
    carried = [point(step, float(step)) for step in range(1, 4)]
    again = [point(step, float(step)) for step in range(4, 8)]
    again[-1] = point(7, 7.0, validation_loss=0.5)
    train(make_config(tmp_path / "2", url, attempt=2), around, again, resumed=carried)
    [run] = runs_of(url, "trays")
    assert history_of(url, run["info"]["run_id"], "train/loss") == [(step, float(step)) for step in range(1, 8)]
    assert history_of(url, run["info"]["run_id"], "validation/loss") == [(7, 0.5)]
    assert run["info"]["status"] == "FINISHED"
    assert (run["info"]["run_name"], run["info"]["end_time"] > 0) == ("trays", True)
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    assert (tags["llava.run_uid"], tags["llava.stage"], tags["llava.namespace"]) == ("0c6f", "train", "team-a")


def test_another_run_and_another_stage_are_runs_of_their_own(url: str, tmp_path: Path, around: Surroundings) -> None:
    for number, change in enumerate(({}, {"uid": "other"}, {"stage": StageName.ALIGN})):
        train(make_config(tmp_path / str(number), url, experiment="three", **change), around, [point(1)])
    assert len(runs_of(url, "three")) == 3


def test_more_than_a_request_holds(url: str, tmp_path: Path, around: Surroundings) -> None:
    config = make_config(tmp_path, url, experiment="long")
    train(config, around, [point(301)], resumed=[point(step) for step in range(1, 301)])
    [run] = runs_of(url, "long")
    assert [step for step, _ in history_of(url, run["info"]["run_id"], "train/epoch")] == list(range(1, 302))


def test_one_that_is_broken_off_is_told_so(url: str, tmp_path: Path, around: Surroundings) -> None:
    config = make_config(tmp_path, url, experiment="broken")
    with Curve(config.volume.history_file(StageName.TRAIN, 1)) as history:
        history.append(point(1))
        with suppress(ZeroDivisionError), follow(config, around):
            raise ZeroDivisionError
    [run] = runs_of(url, "broken")
    assert run["info"]["status"] == "KILLED"


# --- a stranger in its place

Respond = Callable[[str, dict[str, str], bytes], tuple[int, dict[str, str], bytes]]


class Stranger:
    """An HTTPS server that answers as it is told, and remembers who asked."""

    def __init__(self, authority: Authority, respond: Respond) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                outer.asked.append((self.path, headers))
                body = self.rfile.read(int(headers.get("content-length", 0)))
                status, more, content = respond(self.path, headers, body)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **more}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self._server.socket = authority.server_context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def run(self) -> Iterator["Stranger"]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()


def obey(path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
    """As MLflow would, of a run that it does not know."""
    answers = {
        "experiments/get-by-name": {"experiment": {"experiment_id": "7"}}, "runs/search": {},
        "runs/create": {"run": {"info": {"run_id": "r"}}}, "runs/get": {"run": {"data": {}}},
        "runs/log-batch": {}, "runs/update": {},
    }  # fmt: skip
    name = path.partition("?")[0].removeprefix("/api/2.0/mlflow/")
    return 200, {}, json.dumps(answers[name]).encode()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def put_secret(around: Surroundings, **keys: str) -> None:
    folder = around.secrets / SecretRole.TRACKING
    folder.mkdir(parents=True)
    for key, value in keys.items():
        (folder / key).write_text(value)


def run_with(
    respond: Respond, tmp_path: Path, authority: Authority, around: Surroundings
) -> list[tuple[str, dict[str, str]]]:
    with Stranger(authority, respond).run() as stranger:
        train(make_config(tmp_path / "run", stranger.url, secret="mlflow"), around, [point(1)])
    return stranger.asked


@pytest.mark.parametrize(
    ("keys", "header"),
    [({"bearer": SECRET}, f"Bearer {SECRET}"), ({"username": "me", "password": "you"}, "Basic bWU6eW91")],
)
def test_credentials_go_to_the_server_and_nowhere_else(
    keys: dict[str, str], header: str, tmp_path: Path, authority: Authority, around: Surroundings,
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO)
    put_secret(around, **keys)
    asked = run_with(obey, tmp_path, authority, around)
    assert {headers["authorization"] for _, headers in asked} == {header}
    assert any(path.endswith("/runs/log-batch") for path, _ in asked)
    told = caplog.text + "".join(capfd.readouterr())
    assert not any(value in told for value in keys.values() if len(value) > 3)
    assert all(SECRET not in file.read_text() for file in (tmp_path / "run").rglob("*") if file.is_file())


def echo(path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
    """Says what it was told, where it can."""
    said = headers["authorization"].removeprefix("Bearer ")
    return 500, {"X-Said": said}, json.dumps({"error_code": said, "message": headers["authorization"]}).encode()


def answer_with(status: int, content: bytes, **headers: str) -> Respond:
    return lambda path, asked, body: (status, headers, content)


def lying_at(name: str, content: bytes) -> Respond:
    def respond(path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        return (200, {}, content) if name in path else obey(path, headers, body)

    return respond


def having(key: str, step: str) -> Respond:
    """Says that it has a metric up to a step."""
    return lying_at("runs/get", f'{{"run": {{"data": {{"metrics": [{{"key": "{key}", "step": {step}}}]}}}}}}'.encode())


BOMB = gzip.compress(gzip.compress(bytes(64 << 20)))
"""Of 64 MiB."""


@pytest.mark.parametrize(
    ("respond", "told"),
    [
        (echo, "experiments/get-by-name: HTTP 500"),
        (answer_with(401, b'{"error_code": "UNAUTHENTICATED"}'), "HTTP 401 (UNAUTHENTICATED)"),
        (answer_with(302, b"", Location="https://127.0.0.1:1/elsewhere"), "HTTP 302"),
        (answer_with(200, b"<html>" + b"x" * 100), "the answer is not one of MLflow's"),
        (answer_with(200, b"[" * 100_000), "the answer is not one of MLflow's"),
        (answer_with(200, b"x" * (3 << 20)), "an answer of more than 1,048,576 bytes"),
        (answer_with(200, BOMB, **{"Content-Encoding": "gzip, gzip"}), "an answer with Content-Encoding gzip, gzip, "),
        (answer_with(200, b"{}"), "an answer lacks experiment"),
        (answer_with(200, b'{"experiment": {"experiment_id": 7}}'), "an answer lacks experiment_id"),
        (lying_at("runs/search", b'{"runs": [7]}'), "an answer lacks info"),
        (lying_at("runs/create", b'{"run": []}'), "an answer lacks run.info"),
        (lying_at("runs/get", b'{"run": {"data": {"metrics": [7]}}}'), "not in MLflow's form"),
        (having("train/loss", '"x"'), "a metric's step is no number"),
        (having("train/loss", "1e999"), "a metric's step is no number"),
        (having("train/loss", "1001"), "has a step of train/loss that this run, of 1,000 steps, cannot have"),
        (having("train/loss", '"1000000000000000"'), "has a step of train/loss that this run, of 1,000 steps, cannot"),
        (having("validation/loss", "-1"), "has a step of validation/loss that this run, of 1,000 steps, cannot have"),
    ],
    ids=[
        "echo", "401", "redirect", "html", "deep", "large", "packed", "empty", "number", "runs", "run", "metrics",
        "text", "infinity", "after the end", "text after the end", "before the beginning",
    ],
)  # fmt: skip
def test_what_it_answers_ends_nothing_and_is_not_repeated(
    respond: Respond, told: str, tmp_path: Path, authority: Authority, around: Surroundings,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO)
    put_secret(around, bearer=SECRET)
    asked = run_with(respond, tmp_path, authority, around)
    assert told in caplog.text
    assert SECRET not in caplog.text
    assert "has not taken all of the curve" in caplog.text
    assert not any("elsewhere" in path for path, _ in asked)


@pytest.mark.parametrize("where", ECHOES)
def test_what_comes_back_in_place_of_http_is_not_repeated(
    where: str, tmp_path: Path, authority: Authority, around: Surroundings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="llava_trainer")
    put_secret(around, bearer=SECRET)
    with run_echo(ECHOES[where], authority) as url:
        train(make_config(tmp_path / "run", url, secret="mlflow"), around, [point(1)])
    assert "does not take the curve" in caplog.text
    assert SECRET.lower() not in caplog.text.lower()


def test_a_packed_answer_is_neither_asked_for_nor_unpacked(
    tmp_path: Path, authority: Authority, around: Surroundings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounds that are looked at when it has been unpacked come too late."""
    unpacked: list[httpx.Response] = []
    monkeypatch.setattr(httpx.Response, "_get_content_decoder", lambda self: unpacked.append(self))
    put_secret(around, bearer=SECRET)
    asked = run_with(answer_with(200, BOMB, **{"Content-Encoding": "gzip, gzip"}), tmp_path, authority, around)
    assert {headers["accept-encoding"] for _, headers in asked} == {"identity"}
    assert unpacked == []


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"bearer": ""}, "spec.training.tracking.mlflow.secretRef: key bearer of the Secret is empty"),
        (
            {"username": "me"},
            "spec.training.tracking.mlflow.secretRef: the Secret must hold both username and password",
        ),
        ({"bearer": f"{SECRET}\nX-More: 1"}, "key bearer of the Secret is empty or has white space inside"),
    ],
    ids=["empty", "half", "two lines"],
)
def test_a_secret_that_is_none_is_named(
    keys: dict[str, str], told: str, tmp_path: Path, authority: Authority, around: Surroundings,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    put_secret(around, **keys)
    assert run_with(obey, tmp_path, authority, around) == []
    assert told in caplog.text
    assert SECRET not in caplog.text


def test_a_certificate_that_nobody_vouches_for_gets_nothing(
    tmp_path: Path, authority: Authority, around: Surroundings, caplog: pytest.LogCaptureFixture
) -> None:
    put_secret(around, bearer=SECRET)
    authority.ca_file.unlink()
    assert run_with(obey, tmp_path, authority, around) == []
    assert "spec.training.tracking.mlflow.url: https://127.0.0.1" in caplog.text
    assert "spec.download.caConfigMap" in caplog.text


def test_nobody_there_ends_nothing(tmp_path: Path, around: Surroundings, caplog: pytest.LogCaptureFixture) -> None:
    train(make_config(tmp_path, "http://127.0.0.1:9"), around, [point(1)])
    assert "does not take the curve: TransientError: ConnectError" in caplog.text


@pytest.mark.parametrize("metric", ['"key": "eval/mine", "step": 1000000000000000', '"key": [], "step": "x"'])
def test_metrics_of_others_in_the_run_are_theirs(
    metric: str, tmp_path: Path, authority: Authority, around: Surroundings, caplog: pytest.LogCaptureFixture
) -> None:
    put_secret(around, bearer=SECRET)
    has = lying_at("runs/get", f'{{"run": {{"data": {{"metrics": [{{{metric}}}]}}}}}}'.encode())
    asked = run_with(has, tmp_path, authority, around)
    assert any(path.endswith("/runs/log-batch") for path, _ in asked)
    assert caplog.text == ""


@pytest.mark.parametrize("proxy", ["said", "in a Secret", "in the environment"])
def test_a_server_in_clear_is_reached_without_a_proxy(
    proxy: str, tmp_path: Path, around: Surroundings, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It would read and answer everything in the place of whom policy.trackingHosts allows."""
    config = make_config(tmp_path, url, experiment=f"directly, proxy {proxy}")
    with run_echo(lambda _: "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}") as address:
        if proxy == "said":
            config = config.model_copy(update={"download": Download(http_proxy=address)})
        elif proxy == "in a Secret":
            (around.secrets / SecretRole.DOWNLOAD).mkdir(parents=True)
            (around.secrets / SecretRole.DOWNLOAD / "httpProxy").write_text(address)
        else:
            around = replace(around, environ={"http_proxy": address, "HTTP_PROXY": address})
        train(config, around, [point(1)])
    assert caplog.text == ""
    [run] = runs_of(url, f"directly, proxy {proxy}")
    assert history_of(url, run["info"]["run_id"], "train/loss") == [(1, 1.0)]


def test_two_that_begin_an_experiment_at_once_share_it(
    tmp_path: Path, authority: Authority, around: Surroundings
) -> None:
    looks: list[str] = []

    def respond(path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        if "get-by-name" in path:
            looks.append(path)
            if len(looks) == 1:
                return 404, {}, b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}'
        if "experiments/create" in path:
            return 400, {}, b'{"error_code": "RESOURCE_ALREADY_EXISTS"}'
        return obey(path, headers, body)

    put_secret(around, bearer=SECRET)
    asked = run_with(respond, tmp_path, authority, around)
    assert len(looks) == 2
    assert any(path.endswith("/runs/log-batch") for path, _ in asked)


def test_it_is_opened_where_it_is_asked_for(tmp_path: Path) -> None:
    assert [follower._name for follower in make_followers(make_config(tmp_path, "https://m.example"), 1)] == [
        "MLflow's server"
    ]
    assert make_config(tmp_path, "https://m.example").download == Download()


@pytest.mark.parametrize(
    "mlflow",
    [
        {"url": "https://h"}, {"experiment": "e"}, {"url": "https://h", "experiment": ""},
        {"url": "https://h", "experiment": "x" * 257}, {"url": "https://" + "h" * 1020, "experiment": "e"},
        {"url": "https://h", "experiment": "e", "token": "x"},
    ],
)  # fmt: skip
def test_bounds(mlflow: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Mlflow"):
        Mlflow.model_validate(mlflow)
