"""Who holds the others up is told by the numbers of their operations, not by who says first that it stands still."""

import json
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from llava_api.failures import Reason
from llava_api.run_config import RunConfig
from llava_trainer.gang import stalls
from llava_trainer.gang.failures import clear_failures, evidence_file, flight_file, rank_log
from llava_trainer.gang.flight import (
    CHECKPOINT_GROUP,
    Evidence,
    GroupPosition,
    find_positions,
    read_evidence,
    write_evidence,
)
from llava_trainer.gang.stalls import explain_stall_of_all, judge
from llava_trainer.gang.watchdog import Doing
from llava_trainer.gang.world import World
from tests.trainer.many import run_in_processes
from tests.trainer.trainings import configure

REDUCE = "nccl2:all_reduce [[4096]]"


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return configure(tmp_path, tmp_path / "base", workers={"processesPerNode": 3, "stallLimitSeconds": 2})


def at(begun: int, *, ended: int | None = None, number: int = 0, name: str = "world", waits_in: str = REDUCE):
    """Waiting in operation ``begun``, unless ``ended`` is the same."""
    ended = begun - 1 if ended is None else ended
    return GroupPosition(
        backend="nccl2",
        number=number,
        name=name,
        begun=begun,
        ended=ended,
        waits_in=waits_in if begun > ended else None,
    )


def computing(*groups: GroupPosition) -> Evidence:
    return Evidence(doing=Doing.COMPUTING, limit_s=2.0, groups=groups)


def test_the_one_that_has_not_begun_what_others_wait_in_is_at_fault():
    verdict = judge({0: computing(at(8)), 1: computing(at(7, ended=7)), 2: computing(at(8))}, 3)
    assert verdict is not None
    assert verdict.rank == 1
    assert verdict.finding == (
        f"it computes, and while others wait in operation 8 of process group world ({REDUCE}), it has begun 7; the "
        "stacks are in its log"
    )


@pytest.mark.parametrize(
    ("positions", "at_fault"),
    [
        # On GPUs a process may be several operations ahead of what it waits in.
        ([[at(9, ended=4)], [at(7, ended=4)], [at(5, ended=4)]], 2),
        # It waits itself, in another group, for one that waits for nobody.
        ([[at(8)], [at(7, ended=7), at(3, number=1, name="control")], [at(6, ended=6)]], 2),
        # Two wait for each other.
        ([[at(8)], [at(7, ended=7), at(3, number=1, name="control")], [at(8)]], None),
        # It has not begun anything in the group, or its recorder has forgotten what.
        ([[at(1)], [at(1)], []], 2),
        ([[at(8)], [at(8)], [at(7, ended=7, name="")]], 2),
        # Two are behind: the first is named.
        ([[at(8)], [at(6, ended=6)], [at(7, ended=7)]], 1),
    ],
)  # fmt: skip
def test_whoever_waits_itself_is_not_at_fault(positions: list[list[GroupPosition]], at_fault: int | None):
    verdict = judge({rank: computing(*groups) for rank, groups in enumerate(positions)}, 3)
    assert (verdict and verdict.rank) == at_fault


def test_one_that_says_nothing_is_at_fault_if_the_others_wait():
    verdict = judge({0: computing(at(8)), 2: computing(at(8))}, 3)
    assert verdict is not None
    assert verdict.rank == 1
    assert verdict.finding.endswith("does not even say where it is: it was stopped, or hangs in a driver")
    # Who is behind may be waiting for the silent one.
    verdict = judge({0: computing(at(8)), 2: computing(at(7))}, 3)
    assert verdict is not None
    assert verdict.rank == 1
    # One that waits for nobody is a cause of its own.
    verdict = judge({0: computing(at(8)), 2: computing(at(7, ended=7))}, 3)
    assert verdict is not None
    assert verdict.rank == 2


def test_where_all_wait_in_the_same_nobody_is_blamed():
    verdict = judge({rank: computing(at(8)) for rank in range(3)}, 3)
    assert verdict is not None
    assert verdict.rank is None
    assert verdict.finding == (
        f"all wait in operation 8 of process group world ({REDUCE}), so a GPU, or the network between them, does not "
        "answer"
    )
    gather = at(8, waits_in="nccl2:all_gather [[1]]")
    verdict = judge({0: computing(at(8)), 1: computing(gather), 2: computing(at(8))}, 3)
    assert verdict is not None
    assert verdict.finding == (
        f"operation 8 of process group world is {REDUCE} on rank 0 and nccl2:all_gather [[1]] on rank 1"
    )


def test_where_nobody_waits_nothing_is_told(config: RunConfig, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stalls, "_POLL_S", 0.01)
    assert judge({rank: computing(at(8, ended=8)) for rank in range(3)}, 3) is None
    assert judge({0: computing(at(8, ended=8))}, 3) is None
    assert explain_stall_of_all(config) is None
    assert explain_stall_of_all(configure(config.volume_root.parent, config.model_dir)) is None


def test_what_a_recorder_holds_is_read(caplog: pytest.LogCaptureFixture):
    def entry(group: int, description: str, *, p2p: bool = False) -> dict:
        return {"pg_id": group, "process_group": [str(group), description], "profiling_name": "gloo:all_reduce",
                "is_p2p": p2p, "input_sizes": [[4, 2]], "collective_seq_id": 6}  # fmt: skip

    def status(begun: int, ended: int) -> dict:
        return {"last_enqueued_collective": str(begun), "last_completed_collective": str(ended)}

    recording = {
        "version": "2.10",
        "pg_status": {"0": status(6, 5), "1": status(1, -1), "2": status(3, 2), "3": status(9, 9)},
        "entries": [entry(0, "default_pg"), entry(1, CHECKPOINT_GROUP), entry(0, "default_pg", p2p=True)],
    }
    found = find_positions({"gloo": json.dumps(recording).encode(), "nccl": b'{"pg_status": 3}'})
    assert found == (
        GroupPosition(backend="gloo", number=0, name="0", begun=6, ended=5, waits_in="gloo:all_reduce [[4, 2]]"),
        # Threads that write checkpoints wait for each other as long as it takes.
        GroupPosition(backend="gloo", number=1, name="1", begun=1, ended=0),
        GroupPosition(backend="gloo", number=2, begun=3, ended=2),
        GroupPosition(backend="gloo", number=3, begun=9, ended=9),
    )
    assert "flight recorder of nccl cannot be read" in caplog.text


@pytest.mark.parametrize("content", [b"", b'{"doing": "sleeps", "groups": []}', b"\x80\x04\x95", b" " * (2 << 20)])
def test_evidence_that_cannot_be_read_is_none(config: RunConfig, content: bytes):
    evidence_file(config, 0).parent.mkdir(parents=True)
    evidence_file(config, 0).write_bytes(content)
    assert read_evidence(config, 0) is None
    clear_failures(config, range(3))
    assert not evidence_file(config, 0).exists()


def leave_evidence(world: World, config: RunConfig, behind: int, silent: int) -> None:
    """All begin an operation but ``behind``, and say how far they are but ``silent``; then it is ended together."""
    checkpoints = dist.new_group(backend="gloo", group_desc=CHECKPOINT_GROUP)
    dist.barrier(group=checkpoints)
    tensor = torch.ones(3)
    dist.all_reduce(tensor)
    # A checkpoint is written meanwhile, and the first rank is slower than the others.
    writing = None if world.rank == 0 else dist.barrier(group=checkpoints, async_op=True)
    work = None if world.rank == behind else dist.all_reduce(tensor, async_op=True)
    if world.rank != silent:
        write_evidence(config, world.rank, Doing.COMPUTING, 2.0)
    deadline = time.monotonic() + 60
    told = {rank for rank in range(world.world_size) if rank != silent}
    while any(not flight_file(config, rank).exists() for rank in told) and time.monotonic() < deadline:
        time.sleep(0.01)
    (work or dist.all_reduce(tensor, async_op=True)).wait()
    (writing or dist.barrier(group=checkpoints, async_op=True)).wait()


@pytest.mark.parametrize(("behind", "silent"), [(1, -1), (2, 2)])
def test_torch_numbers_what_processes_do(config: RunConfig, behind: int, silent: int):
    rank_log(config, behind).parent.mkdir(parents=True)
    rank_log(config, behind).write_text("its last words\n")
    run_in_processes(3, leave_evidence, config, behind, silent)
    failure = explain_stall_of_all(config)
    assert failure is not None
    assert (failure.reason, failure.rank, failure.log_tail) == (Reason.WORKER_STALLED, behind, "its last words\n")
    assert failure.message.startswith(f"rank {behind} has not gone on for 2 s: ")
    assert "others wait in operation 2 of process group 0 (gloo:all_reduce [[3]])" in failure.message
    # What torch itself holds, for people.
    assert json.loads(flight_file(config, 0).read_text())["gloo"]["entries"]
