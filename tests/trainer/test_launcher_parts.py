"""How a launcher finds the cause of a failure, and how launchers hear of each other."""

import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from llava_api.failures import Reason, exit_code_of
from llava_api.report import StageFailure
from llava_api.run_config import RunConfig
from llava_trainer.errors import StageError
from llava_trainer.gang.failures import (
    Exit,
    RankFailure,
    clear_failures,
    fill_steps,
    find_cause,
    rank_failure_file,
    rank_log,
    read_failures,
    write_rank_failure,
)
from llava_trainer.gang.heartbeats import HeartbeatMonitor, Silence
from llava_trainer.gang.launcher import RankLogs, Worker, launch
from llava_trainer.gang.rendezvous import Patience, Rendezvous
from llava_trainer.gang.signing import Signer
from llava_trainer.gang.stopping import saving_time_s
from llava_trainer.gang.world import LostPeerError
from llava_trainer.logs import ProcessLog
from llava_trainer.stages import train
from llava_trainer.training.curve import Curve, CurvePoint, find_last_step
from llava_trainer.training.progress import Progress
from llava_trainer.training.worker import explain_rank_failure
from tests.trainer.trainings import configure

HASTE = Patience(arrival_s=5.0, silence_s=0.3, farewell_s=5.0, interval_s=0.02)
SIGNER = Signer(bytes(32), run_uid="0c6f", stage="train", attempt=1)
KILLED = StageFailure(reason=Reason.WORKER_KILLED, message="rank 1 was killed by SIGKILL", rank=1)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return configure(tmp_path, tmp_path / "base", workers={"numNodes": 2, "processesPerNode": 2})


def say(config: RunConfig, rank: int, reason: Reason, *, lost_peer: bool = False) -> None:
    failure = StageFailure(reason=reason, message=f"said by {rank}", rank=rank)
    write_rank_failure(config, rank, RankFailure(failure=failure, lost_peer=lost_peer))


def exits(*codes: tuple[int, int]) -> list[Exit]:
    """(rank, code) in the order in which they were noticed."""
    return [Exit(rank=rank, code=code, time_s=float(index)) for index, (rank, code) in enumerate(codes)]


def test_a_process_that_says_why_is_believed_before_those_that_lost_it(config: RunConfig):
    say(config, 0, Reason.RENDEZVOUS_FAILED, lost_peer=True)
    say(config, 1, Reason.LOSS_NOT_FINITE)
    found = find_cause(config, exits((0, 72), (1, 67)))
    assert (found.failure.reason, found.failure.rank, found.lost_peer) == (Reason.LOSS_NOT_FINITE, 1, False)


def test_a_killed_process_is_the_cause_before_those_that_lost_it(config: RunConfig):
    say(config, 0, Reason.RENDEZVOUS_FAILED, lost_peer=True)
    rank_log(config, 1).parent.mkdir(parents=True)
    rank_log(config, 1).write_text("step 3\n")
    failure = find_cause(config, exits((0, 72), (1, -signal.SIGKILL))).failure
    assert failure == KILLED.model_copy(update={"log_tail": "step 3\n"})


@pytest.mark.parametrize("ended_by_launcher", [-signal.SIGTERM, -signal.SIGHUP, -signal.SIGABRT])
def test_a_process_that_was_ended_because_of_another_is_not_the_cause(config: RunConfig, ended_by_launcher: int):
    assert find_cause(config, exits((0, ended_by_launcher), (1, -signal.SIGKILL))).failure.rank == 1


def test_of_two_killed_processes_the_first_is_the_cause(config: RunConfig):
    assert find_cause(config, exits((1, -signal.SIGKILL), (0, -signal.SIGKILL))).failure.rank == 1


def test_a_process_that_ends_without_a_word_is_an_internal_error(config: RunConfig):
    rank_failure_file(config, 1).parent.mkdir(parents=True)
    rank_failure_file(config, 1).write_text('{"failure": {"reas')
    failure = find_cause(config, exits((1, 1))).failure
    assert (failure.reason, failure.rank) == (Reason.INTERNAL_ERROR, 1)
    assert "exit code 1 without saying why" in failure.message


def test_exit_code_of_a_process_that_could_not_write_why_tells_all_the_same(config: RunConfig):
    lost, full = exit_code_of(Reason.RENDEZVOUS_FAILED), exit_code_of(Reason.STORAGE_FULL)
    found = find_cause(config, exits((0, lost), (1, full)))
    assert (found.failure.reason, found.failure.rank, found.lost_peer) == (Reason.STORAGE_FULL, 1, False)
    assert "StorageFull" in found.failure.message
    assert find_cause(config, exits((0, lost))).lost_peer


def test_an_unknown_signal_has_a_number(config: RunConfig):
    assert "signal 63" in find_cause(config, exits((0, -63))).failure.message


def test_where_everyone_lost_somebody_the_cause_lies_elsewhere(config: RunConfig):
    say(config, 0, Reason.RENDEZVOUS_FAILED, lost_peer=True)
    assert find_cause(config, exits((0, 72))).lost_peer


def test_words_of_an_earlier_run_of_the_pod_are_forgotten(config: RunConfig):
    say(config, 1, Reason.LOSS_NOT_FINITE)
    clear_failures(config, range(2))
    assert read_failures(config, range(2)) == {}


@pytest.mark.parametrize(
    ("error", "reason", "lost_peer"),
    [
        (StageError(Reason.INVALID_MODEL, "no"), Reason.INVALID_MODEL, False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. And more"), Reason.OUT_OF_DEVICE_MEMORY,
         False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), Reason.OUT_OF_DEVICE_MEMORY,
         False),
        (LostPeerError("rank 0 could not write its part"), Reason.RENDEZVOUS_FAILED, True),
        (dist.DistNetworkError("gone"), Reason.RENDEZVOUS_FAILED, True),
        (RuntimeError("[/gloo/transport/tcp/pair.cc:456] Connection closed by peer"), Reason.RENDEZVOUS_FAILED, True),
        (RuntimeError("something else"), Reason.INTERNAL_ERROR, False),
        (OSError(28, "No space left on device"), Reason.STORAGE_FULL, False),
    ],
)  # fmt: skip
def test_every_error_of_a_process_has_its_reason(error: Exception, reason: Reason, lost_peer: bool):
    with ProcessLog() as log:
        word = explain_rank_failure(error, 3, log, Progress(step=12, attempt_steps=2))
    assert (word.failure.reason, word.lost_peer, word.failure.rank) == (reason, lost_peer, 3)
    assert (word.failure.step, word.failure.attempt_steps) == (12, 2)
    assert "rank 3" in word.failure.log_tail


NCCL_ERROR = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3763, {}, NCCL version 2.28.9\n"
    "{}\nLast error:\n{}"
)
SHARED_MEMORY = NCCL_ERROR.format(
    "unhandled system error (run with NCCL_DEBUG=INFO for details)",
    "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.",
    "Error while creating shared memory segment /dev/shm/nccl-7FyPQ9 (size 9637888)",
)
PEER_GONE = NCCL_ERROR.format(
    "remote process exited or there was a network error",
    "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.",
    "socketProgress: Connection closed by remote peer trays-train-1-1.trays<59116>",
)
NCCL_TIMEOUT = (
    "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=4, OpType=BROADCAST, NumelIn=112, NumelOut=112, "
    "Timeout(ms)=600000) ran for 600011 milliseconds before timing out."
)


@pytest.mark.parametrize(
    ("text", "reason", "told"),
    [
        (SHARED_MEMORY, Reason.NCCL_FAILED,
         "NCCL version 2.28.9; ncclSystemError: System call (e.g. socket, malloc) or external library call failed or "
         "device error.; last error: Error while creating shared memory segment"),
        (PEER_GONE, Reason.RENDEZVOUS_FAILED, "remote process exited"),
        (NCCL_TIMEOUT, Reason.NCCL_FAILED, "OpType=BROADCAST"),
    ],
    ids=["shared memory", "peer gone", "timeout"],
)  # fmt: skip
def test_what_nccl_says_is_told(config: RunConfig, text: str, reason: Reason, told: str):
    """As an exception, and in the log of a process that PyTorch's watchdog over NCCL has ended."""
    with ProcessLog() as log:
        word = explain_rank_failure(dist.DistBackendError(text), 1, log, Progress())
    assert (word.failure.reason, word.lost_peer) == (reason, True)
    assert told in word.failure.message
    rank_log(config, 1).parent.mkdir(parents=True)
    rank_log(config, 1).write_text(
        "step 3\nterminate called after throwing an instance of 'c10::DistBackendError'\n  what():  [PG ID 0 PG GUID "
        f"0(default_pg) Rank 1] Process group watchdog thread terminated with exception: {text}\n"
    )
    found = find_cause(config, exits((1, -signal.SIGABRT)))
    assert (found.failure.reason, found.lost_peer) == (reason, True)
    assert told in found.failure.message
    # Killed otherwise, it is not NCCL's word that counts.
    assert find_cause(config, exits((1, -signal.SIGKILL))).failure.reason is Reason.WORKER_KILLED


def test_who_knows_what_nccl_said_is_believed_before_who_only_lost_somebody(config: RunConfig):
    say(config, 0, Reason.RENDEZVOUS_FAILED, lost_peer=True)
    say(config, 1, Reason.NCCL_FAILED, lost_peer=True)
    assert find_cause(config, exits((0, 72), (1, 88))).failure.rank == 1


def test_how_far_it_was_is_known_of_a_process_that_could_not_say(config: RunConfig):
    history = config.volume.history_file(config.run.stage, 1)

    def fill(failure: StageFailure) -> StageFailure:
        return fill_steps(config, failure, range(2), lambda: find_last_step(history))

    assert fill(KILLED) == KILLED
    history.parent.mkdir(parents=True, exist_ok=True)
    history.write_text('{"step": 3}\n')
    assert fill(KILLED) == KILLED, "a curve that cannot be read is none"
    with Curve(history) as curve:
        curve.append(
            CurvePoint(step=7, epoch=0.5, loss=1.0, learning_rate=0.1, grad_norm=1.0, tokens=1, samples_per_second=1.0,
                  tokens_per_second=1.0)
        )  # fmt: skip
    filled = fill(KILLED)
    assert (filled.step, filled.attempt_steps) == (7, None)
    lost = StageFailure(reason=Reason.RENDEZVOUS_FAILED, message="lost", rank=0, step=8, attempt_steps=2)
    write_rank_failure(config, 0, RankFailure(failure=lost, lost_peer=True))
    filled = fill(KILLED)
    assert (filled.step, filled.attempt_steps, filled.rank) == (8, 2, 1)
    assert fill(lost.model_copy(update={"step": 1})).step == 1


def test_a_grace_period_leaves_time_for_the_rest():
    assert [saving_time_s(seconds) for seconds in (15, 30, 120)] == [5, 20, 110]


def test_each_process_has_a_log_of_its_own(config: RunConfig):
    logs = RankLogs(config)
    destination = logs.reify({0: {"RANK": "2"}, 1: {"RANK": "3"}})
    assert [Path(destination.stdouts[local]).name for local in (0, 1)] == ["rank-2.log", "rank-3.log"]
    assert destination.tee_stdouts == destination.stdouts
    assert logs.root_log_dir == str(config.volume.log_dir(config.run.stage, 1))


def test_launchers_meet(port: int):
    arrived = []

    def take_part(node: int) -> None:
        with Rendezvous("127.0.0.1", port, node=node, num_nodes=3, signer=SIGNER, patience=HASTE) as rendezvous:
            rendezvous.await_all()
            arrived.append(node)
            if node == 0:
                # It hashes what came out, however large: that is no silence.
                time.sleep(2 * HASTE.silence_s)
                rendezvous.announce_result("done")
            else:
                assert rendezvous.await_result() == "done"

    threads = [threading.Thread(target=take_part, args=(node,)) for node in (2, 1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(arrived) == [0, 1, 2]


def test_a_first_launcher_that_never_says_what_came_out_is_not_waited_for_for_good(port: int):
    patience = Patience(result_s=0.2, farewell_s=0.0)
    with (
        Rendezvous("127.0.0.1", port, node=0, num_nodes=2, signer=SIGNER, patience=patience),
        Rendezvous("127.0.0.1", port, node=1, num_nodes=2, signer=SIGNER, patience=patience) as second,
        pytest.raises(StageError, match="does not say what came out") as caught,
    ):
        second.await_result()
    assert caught.value.reason is Reason.RENDEZVOUS_FAILED


def test_pods_that_do_not_come_are_named(port: int):
    patience = Patience(arrival_s=0.2, interval_s=0.02, farewell_s=0.0)
    with (
        Rendezvous("127.0.0.1", port, node=0, num_nodes=3, signer=SIGNER, patience=patience) as rendezvous,
        pytest.raises(StageError, match=r"1 of 3 training pods .*missing: 1, 2") as caught,
    ):
        rendezvous.await_all()
    assert caught.value.reason is Reason.RENDEZVOUS_FAILED


def test_a_first_pod_that_cannot_be_reached_is_named(port: int):
    with pytest.raises(StageError, match=rf"127\.0\.0\.1:{port} within 0 s: .*refused") as caught:
        Rendezvous(
            "127.0.0.1", port, node=1, num_nodes=2, signer=SIGNER, patience=Patience(arrival_s=0.2, interval_s=0.02)
        )
    assert caught.value.reason is Reason.RENDEZVOUS_FAILED


def test_a_port_that_is_taken_is_named(port: int):
    with socket.socket() as listener:
        listener.bind(("", port))
        listener.listen()
        with pytest.raises(StageError, match=f"no rendezvous at 127.0.0.1:{port}"):
            Rendezvous("127.0.0.1", port, node=0, num_nodes=2, signer=SIGNER, patience=HASTE)


def test_the_first_failure_is_the_one_that_everyone_reports(port: int):
    patience = Patience(farewell_s=0.0)
    with Rendezvous("127.0.0.1", port, node=0, num_nodes=2, signer=SIGNER, patience=patience) as first:
        second = Rendezvous("127.0.0.1", port, node=1, num_nodes=2, signer=SIGNER, patience=HASTE)
        assert first.find_failure() is None
        assert second.report_failure(KILLED) == KILLED
        later = StageFailure(reason=Reason.INTERNAL_ERROR, message="lost", log_tail="own log")
        assert first.report_failure(later) == KILLED.model_copy(update={"log_tail": "own log"})
        assert second.find_failure() == KILLED


def test_agents_that_do_not_find_each_other_fail_as_such(tmp_path: Path, port: int):
    config = configure(tmp_path, tmp_path / "base", workers={"numNodes": 2, "rendezvousPort": port})
    patience = Patience(agents_s=1.0)
    with (
        Rendezvous("127.0.0.1", port, node=0, num_nodes=1, signer=SIGNER, patience=patience) as rendezvous,
        pytest.raises(StageError, match="agents did not find each other") as caught,
    ):
        launch(config, rendezvous, patience, Worker(module="nowhere", find_step=lambda: None))
    assert caught.value.reason is Reason.RENDEZVOUS_FAILED


def test_who_comes_after_another_has_failed_does_not_begin(port: int):
    with Rendezvous("127.0.0.1", port, node=0, num_nodes=3, signer=SIGNER, patience=Patience(farewell_s=0.0)) as first:
        first.report_failure(KILLED)
        with pytest.raises(StageError, match="killed by SIGKILL") as caught:
            first.await_all()
    assert (caught.value.reason, caught.value.rank) == (Reason.WORKER_KILLED, 1)


def test_a_watch_hears_of_another_launchers_failure(port: int):
    heard: list[StageFailure] = []
    patience = Patience(farewell_s=0.0)
    with Rendezvous("127.0.0.1", port, node=0, num_nodes=2, signer=SIGNER, patience=patience) as first:
        second = Rendezvous("127.0.0.1", port, node=1, num_nodes=2, signer=SIGNER, patience=HASTE)
        with HeartbeatMonitor(first, HASTE, heard.append), HeartbeatMonitor(second, HASTE, lambda failure: None):
            time.sleep(2 * HASTE.silence_s)
            assert heard == []
            second.report_failure(KILLED)
            await_length(heard, 1)
    assert heard == [KILLED]


def test_a_launcher_that_falls_silent_is_noticed(port: int):
    heard: list[StageFailure] = []
    patience = Patience(farewell_s=0.0)
    with Rendezvous("127.0.0.1", port, node=0, num_nodes=2, signer=SIGNER, patience=patience) as first:
        Rendezvous("127.0.0.1", port, node=1, num_nodes=2, signer=SIGNER, patience=HASTE)
        with HeartbeatMonitor(first, HASTE, heard.append):
            await_length(heard, 1)
    assert heard[0].reason is Reason.RENDEZVOUS_FAILED
    assert "pod 1 has given no sign of life" in heard[0].message


def test_one_that_left_is_not_silent(port: int):
    with Rendezvous("127.0.0.1", port, node=0, num_nodes=2, signer=SIGNER, patience=HASTE) as first:
        with Rendezvous("127.0.0.1", port, node=1, num_nodes=2, signer=SIGNER, patience=HASTE) as second:
            second.beat()
            assert first.count_beats() == {1: 1}
        assert first.count_beats() == {}


def test_silence_is_counted_from_the_last_sign():
    silence = Silence(10.0)
    assert silence.find({1: 0, 2: 0}, 0.0) is None
    assert silence.find({1: 1, 2: 0}, 9.0) is None
    assert "pod 2" in silence.find({1: 1, 2: 0}, 11.0).message
    assert silence.find({1: 1}, 15.0) is None


def await_length(heard: list, length: int, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while len(heard) < length:
        assert time.monotonic() < deadline, f"{len(heard)} of {length} after {timeout_s} s"
        time.sleep(0.01)


def test_what_training_processes_inherit_is_set_unless_somebody_has_set_it(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
):
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")
    for name in (*names, "DS_ACCELERATOR", "OMP_NUM_THREADS"):
        # Set first, so that what the stage sets is taken back.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    train._set_environment(config)
    assert "expandable_segments:True" in os.environ["PYTORCH_ALLOC_CONF"].split(",")
    # PyTorch refuses what it does not know.
    torch._C._accelerator_setAllocatorSettings(os.environ.pop("PYTORCH_ALLOC_CONF"))
    assert os.environ.pop("TORCH_FR_BUFFER_SIZE") == "1000"
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:False")
    monkeypatch.setenv("TORCH_NCCL_TRACE_BUFFER_SIZE", "0")
    train._set_environment(config)
    assert not os.environ.keys() & {"PYTORCH_ALLOC_CONF", "TORCH_FR_BUFFER_SIZE"}
