"""Weights & Biases: its own client on the volume and against a server in its own server's place."""

import base64
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llava_api.constants import SecretRole
from llava_api.run_config import RunConfig
from llava_api.spec import Wandb
from llava_trainer.errors import StageError
from llava_trainer.sources.fetching import Surroundings
from llava_trainer.training.curve import Curve, CurvePoint
from llava_trainer.training.tracking import wandb
from llava_trainer.training.tracking.follower import Follower, following
from llava_trainer.training.tracking.opening import _open_wandb, make_followers
from llava_trainer.training.tracking.wandb import WandbError
from tests.trainer.servers.authority import Authority
from tests.trainer.servers.wandb import Service, serve
from tests.trainer.test_tracking import point
from tests.trainer.trainings import configure

KEY = "s3cret" * 6 + "abcd"
TOTAL_STEPS = 100
UID = "0c6f-11"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The client is told by the environment, which other tests share."""
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ERROR_REPORTING", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def service(authority: Authority) -> Iterator[Service]:
    with serve(authority) as made:
        yield made


@pytest.fixture
def around(tmp_path: Path, authority: Authority) -> Surroundings:
    folder = tmp_path / "secrets" / SecretRole.WANDB
    folder.mkdir(parents=True)
    (folder / "apiKey").write_text(KEY)
    return Surroundings(secrets=tmp_path / "secrets", ca_file=authority.ca_file, environ={})


def make_config(root: Path, url: str | None, *, attempt: int = 1) -> RunConfig:
    wandb = {"project": "trays", **({"url": url, "secretRef": {"name": "key"}} if url else {})}
    config = configure(root, root / "base", training={"tracking": {"wandb": wandb}})
    return config.model_copy(update={"run": config.run.model_copy(update={"uid": UID, "attempt": attempt})})


def asked(config: RunConfig) -> Wandb:
    tracking = config.training.tracking
    assert tracking is not None
    assert tracking.wandb is not None
    return tracking.wandb


def train(config: RunConfig, around: Surroundings, points: list[CurvePoint], *, resumed: list[CurvePoint]) -> None:
    """An attempt of training, whose curve begins with what the one before has left."""
    file = config.volume.history_file(config.run.stage, config.run.attempt)
    file.parent.mkdir(parents=True, exist_ok=True)
    follower = Follower(
        "Weights & Biases", lambda: _open_wandb(config, asked(config), TOTAL_STEPS, around), file,
        interval_s=0.01, longest_s=0.02,
    )  # fmt: skip
    with Curve(file) as history:
        for one in resumed:
            history.append(one)
        with following([follower], closing_s=60):
            for one in points:
                history.append(one)
                follower.note(one)


def sync(folder: Path, url: str, home: Path) -> None:
    """Upload what lies in a folder, as its user does."""
    (run,) = (folder / "wandb").glob("offline-run-*")
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(home), "WANDB_BASE_URL": url, "WANDB_API_KEY": KEY,
        "WANDB_ERROR_REPORTING": "false",
    }  # fmt: skip
    command = [str(Path(sys.executable).with_name("wandb")), "sync", str(run)]
    # It leaves logs where it is called.
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def losses(rows: list[dict[str, Any]]) -> list[tuple[int, float]]:
    return [(row["_step"], row["train/loss"]) for row in rows]


# --- on the volume


def test_without_a_key_the_run_is_on_the_volume_and_can_be_uploaded(tmp_path: Path, around: Surroundings) -> None:
    config = make_config(tmp_path, None)
    points = [point(step, 1 / step) for step in (1, 2)] + [point(3, 1 / 3, validation_loss=0.5)]
    train(config, around, points, resumed=[])
    with serve() as service:
        assert service.num_requests == 0
        sync(config.volume.wandb_dir(config.run.stage, 1), service.url, tmp_path)
    rows = service.history[UID]
    assert [step for step, _ in losses(rows)] == [1, 2, 3]
    assert [loss for _, loss in losses(rows)] == pytest.approx([1.0, 0.5, 1 / 3])
    assert [row["_timestamp"] for row in rows] == [1001.0, 1002.0, 1003.0]
    assert rows[-1]["validation/loss"] == 0.5


def test_the_next_attempt_has_the_whole_curve_each_step_once(tmp_path: Path, around: Surroundings) -> None:
    """An upload appends to what is there under its id: the last attempt has to have all of it."""
    train(make_config(tmp_path, None), around, [point(1), point(2), point(3)], resumed=[])
    config = make_config(tmp_path, None, attempt=2)
    train(config, around, [point(3), point(4)], resumed=[point(1), point(2)])
    with serve() as service:
        sync(config.volume.wandb_dir(config.run.stage, 2), service.url, tmp_path)
    assert [step for step, _ in losses(service.history[UID])] == [1, 2, 3, 4]


def test_one_that_failed_is_begun_anew(tmp_path: Path, around: Surroundings) -> None:
    config = make_config(tmp_path, None)
    first = _open_wandb(config, asked(config), TOTAL_STEPS, around)
    first.close()
    first.close()
    second = _open_wandb(config, asked(config), TOTAL_STEPS, around)
    second.finish(succeeded=True)
    folder = config.volume.wandb_dir(config.run.stage, 1)
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 1


def test_it_is_told_nothing_of_the_machine(tmp_path: Path, around: Surroundings) -> None:
    config = make_config(tmp_path, None)
    train(config, around, [point(1)], resumed=[])
    told = b"".join(
        file.read_bytes() for file in config.volume.wandb_dir(config.run.stage, 1).rglob("*.wandb") if file.is_file()
    )
    assert b"trays" in told
    for word in (f'"{os.uname().nodename}"', "pytest", "torch", sys.executable, str(Path.cwd())):
        assert word.encode() not in told, word
    assert not (tmp_path / "home").exists()


# --- at a server


def test_with_a_key_the_server_has_the_curve_and_a_next_attempt_goes_on(
    tmp_path: Path, around: Surroundings, service: Service
) -> None:
    train(make_config(tmp_path, service.url), around, [point(step) for step in (1, 2, 3)], resumed=[])
    assert [step for step, _ in losses(service.history[UID])] == [1, 2, 3]
    # Step 3 was told, and its checkpoint is that of step 2: it is done again.
    later = make_config(tmp_path, service.url, attempt=2)
    train(later, around, [point(3), point(4), point(5)], resumed=[point(1), point(2)])
    assert [step for step, _ in losses(service.history[UID])] == [1, 2, 3, 4, 5]


def test_the_key_goes_to_the_server_and_nowhere_else(
    tmp_path: Path, around: Surroundings, service: Service, caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    config = make_config(tmp_path, service.url)
    with caplog.at_level(logging.DEBUG):
        train(config, around, [point(1)], resumed=[])
    assert service.credentials == {"Basic " + base64.b64encode(f"api:{KEY}".encode()).decode()}
    written = "".join(capfd.readouterr()) + caplog.text + "".join(service.bodies)
    assert KEY not in written
    left = [file for file in tmp_path.rglob("*") if file.is_file() and file.name != "apiKey"]
    assert left
    assert not [file for file in left if KEY.encode() in file.read_bytes()]


def test_a_server_that_is_away_for_long_leaves_no_files_behind(
    tmp_path: Path, around: Surroundings, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is begun anew every minute until it is there again."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    wandb._own_folder.cache_clear()
    service.refusal = 404
    config = make_config(tmp_path, service.url)
    for _ in range(2):
        with pytest.raises(WandbError):
            _open_wandb(config, asked(config), TOTAL_STEPS, around)
    # On the volume, which other runs may share, somebody else could change whom it trusts.
    assert not list(config.volume.wandb_dir(config.run.stage, 1).rglob("*.pem"))
    (bundle,) = (tmp_path / "tmp").rglob("*.pem")
    assert os.environ["SSL_CERT_FILE"] == str(bundle)
    assert around.ca_file is not None
    assert around.ca_file.read_text().strip() in bundle.read_text()
    wandb._own_folder.cache_clear()


def test_a_certificate_that_nobody_vouches_for_gets_nothing(
    tmp_path: Path, around: Surroundings, service: Service
) -> None:
    stranger = Surroundings(secrets=around.secrets, ca_file=tmp_path / "none.crt", environ={})
    config = make_config(tmp_path, service.url)
    with pytest.raises(WandbError, match="certificate"):
        _open_wandb(config, asked(config), TOTAL_STEPS, stranger)
    assert service.credentials == set()


@pytest.mark.parametrize(
    ("status", "message"), [(401, "secretRef"), (404, "project or entity"), (400, "debug-internal")]
)
def test_what_a_server_refuses_is_told_in_words_of_our_own(
    tmp_path: Path, around: Surroundings, service: Service, caplog: pytest.LogCaptureFixture, status: int, message: str
) -> None:
    service.refusal = status
    config = make_config(tmp_path, service.url)
    with pytest.raises(WandbError, match=message) as refused:
        _open_wandb(config, asked(config), TOTAL_STEPS, around)
    (credential,) = service.credentials
    assert credential not in caplog.text + str(refused.value)
    assert "SAID" not in caplog.text + str(refused.value)


def test_one_that_is_tried_again_and_again_leaves_one_file_of_authorities(
    tmp_path: Path, around: Surroundings, service: Service
) -> None:
    """A server may be away for weeks, and the pod's temporary folder is bounded."""
    service.refusal = 401
    config, bundles = make_config(tmp_path, service.url), set()
    for _ in range(2):
        with pytest.raises(WandbError, match="secretRef"):
            _open_wandb(config, asked(config), TOTAL_STEPS, around)
        bundles.add(os.environ["SSL_CERT_FILE"])
    (bundle,) = bundles
    assert Path(bundle).read_text().endswith(around.ca_file.read_text())


def test_steps_that_the_run_cannot_have_are_not_believed(
    tmp_path: Path, around: Surroundings, service: Service
) -> None:
    service.steps_claimed = TOTAL_STEPS + 1
    config = make_config(tmp_path, service.url)
    with pytest.raises(WandbError, match=r"project"):
        _open_wandb(config, asked(config), TOTAL_STEPS, around)


@pytest.mark.parametrize(("change", "message"), [
    (lambda file: file.unlink(), "has no key apiKey"),
    (lambda file: file.write_text(""), "key apiKey"),
])  # fmt: skip
def test_a_secret_without_a_key_is_told(
    tmp_path: Path, around: Surroundings, change: Callable[[Path], object], message: str
) -> None:
    change(around.secrets / SecretRole.WANDB / "apiKey")
    config = make_config(tmp_path, "https://localhost:1")
    with pytest.raises(StageError, match=message):
        _open_wandb(config, asked(config), TOTAL_STEPS, around)


def test_a_run_may_have_all_trackers(tmp_path: Path) -> None:
    tracking = {"tensorboard": {}, "wandb": {"project": "p"}, "mlflow": {"url": "https://m.example", "experiment": "e"}}
    config = configure(tmp_path, tmp_path / "base", training={"tracking": tracking})
    assert len(make_followers(config, 1)) == 3


@pytest.mark.parametrize("when", ["begin", "end"])
def test_a_server_that_is_broken_ends_nothing(
    tmp_path: Path, service: Service, when: str, around: Surroundings
) -> None:
    """In a process of its own, whose end the client may not hold up."""
    config = make_config(tmp_path, service.url)
    (tmp_path / "config.json").write_text(config.model_dump_json(by_alias=True))
    service.broken = when == "begin"
    code = f"""
import logging
import sys
from pathlib import Path
from llava_api.run_config import RunConfig
from llava_trainer.sources.fetching import Surroundings
from llava_trainer.training.tracking.opening import make_followers
from llava_trainer.training.tracking import wandb
from llava_trainer.training.tracking.follower import following
from llava_trainer.training.curve import Curve, CurvePoint
def point(step):
    return CurvePoint(step=step, epoch=0.1, loss=1.0, learning_rate=1e-3, grad_norm=0.5, tokens=1,
                      samples_per_second=1.0, tokens_per_second=1.0)
logging.basicConfig()
config = RunConfig.model_validate_json(Path({str(tmp_path / "config.json")!r}).read_text())
around = Surroundings(secrets=Path({str(around.secrets)!r}), ca_file=Path({str(around.ca_file)!r}), environ={{}})
file = config.volume.history_file(config.run.stage, 1)
file.parent.mkdir(parents=True, exist_ok=True)
with Curve(file) as history, following(make_followers(config, 100, around)) as followers:
    for step in range(1, 4):
        history.append(point(step))
        followers[0].note(point(step))
        print("step", step, flush=True)
        sys.stdin.readline()
print("trained", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    for step in range(1, 4):
        while process.stdout.readline() != f"step {step}\n":
            assert process.poll() is None
        if when == "end" and step == 3:
            wait_for(lambda: service.num_requests > 1)
            service.broken = True
        process.stdin.write("\n")
        process.stdin.flush()
    out, _ = process.communicate(timeout=120)
    assert out == "trained\n"
    assert process.returncode == 0


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
