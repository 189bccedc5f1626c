"""Strangers in the rendezvous store: what launchers believe, and by which key."""

import logging
import multiprocessing
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from llava_api.constants import StageName
from llava_api.failures import Reason
from llava_api.report import StageFailure
from llava_trainer.errors import StageError
from llava_trainer.gang.rendezvous import Patience, Rendezvous
from llava_trainer.gang.signing import MAX_BYTES, Signer, make_signer, provide_key
from tests.trainer.attempts import begin
from tests.trainer.test_launcher_parts import HASTE, KILLED, SIGNER
from tests.trainer.trainings import configure

LIE = "pay here: https://elsewhere.example"
FAILURE = StageFailure(reason=Reason.INTERNAL_ERROR, message=LIE).model_dump_json()
OTHERS = Signer(b"\1" * 32, run_uid="0c6f", stage="train", attempt=1)
KEYS = ("failure", "result", "left/0", "left/1", "heartbeat/0", "heartbeat/1", "arrived/0", "arrived/1")
ADDRESSES = ("MASTER_ADDR", "MASTER_PORT", "/MASTER_ADDR", "torchelastic/role/train/MASTER_ADDR", "init/MASTER_ADDR")


def lies(name: str) -> Iterator[str | bytes]:
    """What a stranger may put under a name of ours, of every kind."""
    yield FAILURE if name.endswith("failure") else "1"
    yield OTHERS.sign(name, FAILURE)
    # Signed by us, for another name.
    yield SIGNER.sign("rendezvous/other", FAILURE)
    yield b"\xff\xfe\x00"
    yield ":"
    yield "0" * 64 + ":" + FAILURE
    yield "x" * (MAX_BYTES + 1)


class Stranger:
    """A client of the store that has no key."""

    def __init__(self, port: int) -> None:
        self.store = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=10))

    def put(self, name: str, value: str | bytes) -> None:
        self.store.set(name, value)
        # Answered after it.
        self.store.check([name])


@contextmanager
def met(port: int, patience: Patience = HASTE) -> Iterator[tuple[Rendezvous, Rendezvous]]:
    signers = [Signer(bytes(32), run_uid="0c6f", stage="train", attempt=1) for _ in range(2)]
    with (
        Rendezvous("127.0.0.1", port, node=0, num_nodes=2, signer=signers[0], patience=patience) as first,
        Rendezvous("127.0.0.1", port, node=1, num_nodes=2, signer=signers[1], patience=patience) as second,
    ):
        yield first, second


@pytest.mark.parametrize("number", range(7))
def test_what_a_stranger_leaves_is_as_if_it_were_not_there(port: int, number: int, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING), met(port, Patience(farewell_s=0.0, interval_s=0.02)) as (first, second):
        stranger = Stranger(port)
        for name in KEYS:
            stranger.put(f"rendezvous/{name}", list(lies(f"rendezvous/{name}"))[number])
        assert [one.find_failure() for one in (first, second)] == [None, None]
        assert first.count_beats() == {1: 0}
        # Words of ours take their place.
        second.beat()
        assert first.count_beats() == {1: 1}
        assert second.report_failure(KILLED) == KILLED
        assert first.find_failure() == KILLED
        first.announce_result("done")
        assert second.await_result() == "done"
    assert LIE not in caplog.text
    told = [record.message for record in caplog.records if "rendezvous/failure" in record.message]
    assert told
    assert "was not signed by this run" in told[0]
    assert len(told) == 2, "once a launcher, however often it looks"


def test_pods_meet_though_a_stranger_writes_over_their_arrival(port: int):
    with met(port, Patience(arrival_s=60.0, farewell_s=0.0, interval_s=0.02)) as (first, second):
        stranger = Stranger(port)
        first.beat()
        stranger.put("rendezvous/heartbeat/0", "gone")
        waiting = threading.Thread(target=first.await_all)
        waiting.start()
        second.await_all()
        waiting.join(60)
        assert not waiting.is_alive()


def test_a_result_that_a_stranger_writes_over_is_told_again(port: int):
    patience = Patience(farewell_s=60.0, interval_s=0.02)
    heard: list[str] = []

    def listen() -> None:
        with second:
            heard.append(second.await_result())

    with Rendezvous("127.0.0.1", port, node=0, num_nodes=2, signer=SIGNER, patience=patience) as first:
        second = Rendezvous("127.0.0.1", port, node=1, num_nodes=2, signer=SIGNER, patience=patience)
        first.announce_result("done")
        Stranger(port).put("rendezvous/result", "{}")
        waiting = threading.Thread(target=listen)
        waiting.start()
    waiting.join(60)
    assert heard == ["done"]


def test_a_signature_holds_for_one_run_stage_attempt_name_and_value():
    key = bytes(range(32))
    signer = Signer(key, run_uid="a", stage="train", attempt=1)
    signed = signer.sign("name", "välue:1")
    assert signer.verify("name", signed.encode()) == "välue:1"
    assert signer.verify("other", signed.encode()) is None
    assert signer.verify("name", signed.encode() + b"0") is None
    assert signer.verify("name", b"") is None
    for other in (
        Signer(key, run_uid="b", stage="train", attempt=1), Signer(key, run_uid="a", stage="align", attempt=1),
        Signer(key, run_uid="a", stage="train", attempt=2), Signer(bytes(32), run_uid="a", stage="train", attempt=1),
        # Fields do not run into each other.
        Signer(key, run_uid='a", "train", 1, "name', stage="train", attempt=1),
    ):  # fmt: skip
        assert other.verify("name", signed.encode()) is None


def test_all_pods_get_one_key_that_nobody_else_can_read(tmp_path: Path):
    umask = os.umask(0)
    try:
        with multiprocessing.get_context("fork").Pool(8) as pool:
            keys = pool.starmap(_provide, [(tmp_path / "train-1",)] * 64)
    finally:
        os.umask(umask)
    assert len(set(keys)) == 1
    assert len(keys[0]) == 32
    (file,) = (tmp_path / "train-1").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def _provide(folder: Path) -> bytes:
    return provide_key(folder, wait_s=10)


@pytest.mark.parametrize("error", [PermissionError(1, "no links"), FileExistsError(17, "an answer was lost")])
def test_a_file_system_without_links_has_a_key_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError):
    def refuse(*_: object) -> None:
        if isinstance(error, FileExistsError):
            (tmp_path / "rendezvous.key").write_bytes(b"k" * 32)
        raise error

    monkeypatch.setattr(os, "link", refuse)
    key = provide_key(tmp_path, wait_s=1)
    monkeypatch.undo()
    assert provide_key(tmp_path, wait_s=1) == key
    assert [path.name for path in tmp_path.iterdir()] == ["rendezvous.key"]


def test_a_key_that_stays_short_is_named(tmp_path: Path):
    (tmp_path / "rendezvous.key").write_bytes(b"short")
    with pytest.raises(
        StageError, match=r"rendezvous\.key.* has 5 bytes instead of 32 after 0 s: is the run's"
    ) as caught:
        provide_key(tmp_path, wait_s=0.1)
    assert caught.value.reason is Reason.RENDEZVOUS_FAILED


def test_a_key_that_cannot_be_read_is_named(tmp_path: Path):
    (tmp_path / "rendezvous.key").mkdir()
    with pytest.raises(StageError, match=r"rendezvous\.key.*: Is a directory: is the run's volume"):
        provide_key(tmp_path, wait_s=0.1)


def test_an_attempt_that_comes_back_keeps_its_key_and_another_has_its_own(tmp_path: Path):
    config = configure(tmp_path, tmp_path)
    signed = make_signer(config).sign("name", "value").encode()
    assert make_signer(config).verify("name", signed) == "value"
    key = (config.volume.attempt_dir(StageName.TRAIN, 1) / "rendezvous.key").read_bytes()
    assert make_signer(begin(configure(tmp_path, tmp_path, attempt=2))).verify("name", signed) is None
    assert (config.volume.attempt_dir(StageName.TRAIN, 2) / "rendezvous.key").read_bytes() != key
