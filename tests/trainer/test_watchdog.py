"""A process that does not get any further is noticed, whatever it is at; one that saves is left alone."""

import json
import os
import re
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from llava_api.failures import Reason
from llava_trainer.training.flight import ENV_ENTRIES, find_behind, keep_records, write_records
from llava_trainer.training.processes import Processes
from llava_trainer.training.watchdog import Doing, Watchdog
from llava_trainer.training.worker import explain_stall
from tests.trainer.many import run_in_processes

LIMIT_S = 0.2


def await_stall(*beats: Doing) -> list[Doing]:
    stalled: list[Doing] = []
    heard = threading.Event()

    def note(doing: Doing) -> None:
        stalled.append(doing)
        heard.set()

    with Watchdog(LIMIT_S, note) as watchdog:
        for doing in beats:
            watchdog.beat(doing)
        heard.wait(10 if beats and beats[-1] is not Doing.SAVING else 2)
    return stalled


@pytest.mark.parametrize("doing", [Doing.LOADING, Doing.COMPUTING, Doing.WAITING])
def test_a_process_that_stands_still_is_noticed(doing: Doing, capfd: pytest.CaptureFixture[str]):
    assert await_stall(Doing.LOADING, doing) == [doing]
    # All threads' stacks: this one's among them.
    assert "await_stall" in capfd.readouterr().err


def test_nothing_is_noticed_before_the_first_beat_or_while_saving():
    assert await_stall() == []
    assert await_stall(Doing.COMPUTING, Doing.SAVING) == []


def test_whoever_waits_is_not_the_cause():
    told = [explain_stall(3, doing, 300.0, {"gloo 0": 7}) for doing in (Doing.LOADING, Doing.WAITING)]
    assert [word.lost_peer for word in told] == [False, True]
    assert {word.failure.reason for word in told} == {Reason.WORKER_STALLED}
    assert told[0].positions == {"gloo 0": 7}
    assert told[0].failure.message == (
        "training process 3 has not gone on for 300 s: it loads samples; the stacks are in its log"
    )


def stand_still(processes: Processes, folder: Path) -> dict[str, int]:
    """Sum up gradients over three processes inside the backward pass; in the third one, the second process sleeps."""
    found: dict[str, int] = {}
    noticed = threading.Event()

    def note(doing: Doing) -> None:
        assert doing is Doing.COMPUTING
        found.update(write_records(folder / f"rank-{processes.rank}.json", processes.device))
        noticed.set()

    def reduce(gradient: torch.Tensor, step: int) -> torch.Tensor:
        if step == 2 and processes.rank == 1:
            # All others are in the operation by now, each as sure as this one to have stood still.
            noticed.wait(30)
            time.sleep(2)
        dist.all_reduce(gradient)
        return gradient

    with Watchdog(1.0, note) as watchdog:
        for step in range(3):
            watchdog.beat(Doing.COMPUTING)
            weight = torch.ones(8, requires_grad=True)
            weight.register_hook(partial(reduce, step=step))
            weight.square().sum().backward()
    return found


def test_of_processes_that_all_stand_in_the_backward_pass_the_one_behind_is_found(tmp_path: Path):
    positions = dict(enumerate(run_in_processes(3, stand_still, tmp_path)))
    rank, how = find_behind(positions, range(3))
    assert rank == 1
    assert re.fullmatch(r"it has begun (\d+) operations with the others \(process group gloo 0\), and they (\d+)", how)
    records = json.loads((tmp_path / "rank-1.json").read_text())["gloo"]
    assert records["entries"][-1]["profiling_name"] == "gloo:all_reduce"


@pytest.mark.parametrize(
    ("positions", "behind"),
    [
        ({0: {"nccl 0": 9, "gloo 1": 4}, 1: {"nccl 0": 9, "gloo 1": 4}}, None),
        ({0: {"nccl 0": 9, "gloo 1": 4}, 1: {"nccl 0": 9, "gloo 1": 3}}, 1),
        ({0: {"nccl 0": 8}, 1: {"nccl 0": 9}, 2: {"nccl 0": 8}}, 0),
        # Stopped from outside: it cannot say anything.
        ({0: {"nccl 0": 9}, 2: {"nccl 0": 9}}, 1),
        ({0: {}, 1: {}}, None),
        # The first has lost its connection to the second, which gave up and is no cause by what is known here.
        ({0: {}, 1: {"nccl 0": 9}}, None),
        ({}, None),
    ],
)
def test_whoever_has_begun_the_fewest_operations_is_behind(positions: dict, behind: int | None):
    found = find_behind(positions, range(max(positions, default=0) + 1))
    assert (found and found[0]) == behind


def test_records_that_cannot_be_written_do_not_hide_the_standstill(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").write_text("in the way")
    assert write_records(tmp_path / "file" / "rank-0.json", torch.device("cpu")) == {}
    assert "cannot be written" in caplog.text


def test_who_has_set_how_much_is_recorded_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    for name in ENV_ENTRIES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    keep_records()
    assert int(os.environ[ENV_ENTRIES[0]]) > 0
    monkeypatch.delenv(ENV_ENTRIES[0])
    monkeypatch.setenv(ENV_ENTRIES[1], "0")
    keep_records()
    assert ENV_ENTRIES[0] not in os.environ
