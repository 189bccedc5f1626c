"""The train stage as pods run it: launchers and training processes, killed, stopped and brought back."""

import dataclasses
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from llava_api.constants import StageName
from llava_api.failures import Reason, exit_code_of
from llava_api.run_config import Reporting, RunConfig
from llava_trainer.data.processor import Processor
from llava_trainer.data.samples import Sample, write_samples
from llava_trainer.errors import StageError
from llava_trainer.files import sha256_file, sha256_folder
from llava_trainer.gang.stopping import StopRequest
from llava_trainer.gang.world import World
from llava_trainer.reporting import Reporter
from llava_trainer.training.curve import CurvePoint, read_curve
from llava_trainer.training.retention import list_checkpoints
from llava_trainer.training.train import train
from tests.trainer.attempts import begin
from tests.trainer.many import run_in_processes
from tests.trainer.servers.authority import Authority
from tests.trainer.test_signing import ADDRESSES, FAILURE, KEYS, LIE, Stranger, lies
from tests.trainer.trainings import (
    StopAfter,
    TrainStage,
    break_rank,
    environment_of_one,
    make_dataset,
    make_training,
    plan_of,
    text_only,
)

END_DEADLINE_S = 30
"""Within which every launcher ends after a process was killed, in whichever pod."""
LONG = 400
"""Epochs of a training that does not come to its end in these tests."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    """20 samples, 4 of them without an image: 3 batches an epoch, in the last of which process 1 has no share."""
    folder = tmp_path_factory.mktemp("dataset")
    samples = make_dataset(folder)[:16]
    return folder, [*samples, *(text_only(sample) for sample in samples[:4])]


@pytest.fixture
def make_config(tmp_path: Path, toy_model_dir: Path, dataset: tuple[Path, list[Sample]]) -> Callable[..., RunConfig]:
    (tmp_path / "dataset").symlink_to(dataset[0])

    def make(*, num_nodes: int = 1, world: int = 1, attempt: int = 1, **training) -> RunConfig:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        return make_training(
            tmp_path, toy_model_dir, dataset[1], training=training, attempt=attempt,
            workers={"numNodes": num_nodes, "processesPerNode": world, "rendezvousPort": port},
        )  # fmt: skip

    return make


def curve(config: RunConfig) -> list[CurvePoint]:
    return read_curve(config.volume.history_file(config.run.stage, config.run.attempt))


def await_step(config: RunConfig, step: int, *stages: TrainStage, timeout_s: float = 90) -> None:
    """Wait until ``step`` steps are done."""
    deadline = time.monotonic() + timeout_s
    while not (entries := curve(config)) or entries[-1].step < step:
        ended = [stage for stage in stages if stage.process.poll() is not None]
        assert not ended, ended[0].output
        assert time.monotonic() < deadline, f"not at step {step} after {timeout_s} s: {stages[0].output}"
        time.sleep(0.05)


def pid_of_rank(stage: TrainStage, rank: int) -> int:
    (pid,) = [pid for pid in stage.training_processes() if f"RANK={rank}".encode() in environment(pid)]
    return pid


def environment(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def rank_log(config: RunConfig, rank: int) -> str:
    return (config.volume.log_dir(StageName.TRAIN, config.run.attempt) / f"rank-{rank}.log").read_text()


def train_straight(world: World, config: RunConfig) -> None:
    train(config, world, Reporter(config), StopRequest())


def test_two_processes_killed_and_resumed_end_where_one_straight_run_ends(make_config: Callable[..., RunConfig]):
    settings = {"epochs": 4, "lora": {"rank": 4, "alpha": 8, "dropout": 0.1}}
    straight = make_config(world=2, **settings)
    run_in_processes(2, train_straight, straight)
    expected = [(entry.loss, entry.grad_norm) for entry in curve(straight)]
    assert len(expected) == 12
    digest = sha256_file(straight.volume.adapter_dir / "adapter_model.safetensors")

    killed = make_config(world=2, attempt=2, checkpoint={"everySteps": 3, "keep": 2}, **settings)
    for path in straight.volume.adapter_dir.iterdir():
        path.unlink()
    straight.volume.adapter_dir.rmdir()
    with TrainStage(killed) as stage:
        await_step(killed, 5, stage)
        began = time.monotonic()
        os.kill(pid_of_rank(stage, 1), signal.SIGKILL)
        assert stage.wait(END_DEADLINE_S) == exit_code_of(Reason.WORKER_KILLED)
        assert time.monotonic() - began < END_DEADLINE_S
        failure = stage.result.failure
        assert stage.training_processes() == []
    assert (failure.reason, failure.rank) == (Reason.WORKER_KILLED, 1)
    assert failure.message == "rank 1 was killed by SIGKILL"
    assert failure.step >= 5
    assert list_checkpoints(killed.volume.checkpoints_dir(StageName.TRAIN, 2))
    assert not killed.volume.adapter_dir.exists()

    with TrainStage(killed) as stage:
        assert stage.wait() == 0, stage.output
        result = stage.result
    assert "resuming from" in stage.output
    assert [(entry.loss, entry.grad_norm) for entry in curve(killed)] == expected
    assert sha256_file(killed.volume.adapter_dir / "adapter_model.safetensors") == digest
    assert result.failure is None
    assert (result.train.steps, result.train.world_size) == (12, 2)
    assert result.train.final_loss == expected[-1][0]
    assert result.digests == {"adapter": sha256_folder(killed.volume.adapter_dir)}
    for rank in (0, 1):
        assert f"[rank {rank}] " in stage.output
    assert "step 12 of 12" in rank_log(killed, 0)


def test_a_process_killed_in_one_pod_ends_all_pods(
    make_config: Callable[..., RunConfig], process_group: tuple[World, int]
):
    config = make_config(num_nodes=2, epochs=LONG)
    with TrainStage(config, node=1) as second, TrainStage(config, node=0) as first:
        await_step(config, 3, first, second)
        os.kill(pid_of_rank(second, 1), signal.SIGKILL)
        deadline = time.monotonic() + END_DEADLINE_S
        codes = [stage.wait(deadline - time.monotonic()) for stage in (second, first)]
        assert [stage.training_processes() for stage in (first, second)] == [[], []]
        failures = [stage.result.failure for stage in (first, second)]
    assert codes == [exit_code_of(Reason.WORKER_KILLED)] * 2
    assert [(f.reason, f.rank, f.message) for f in failures] == [
        (Reason.WORKER_KILLED, 1, "rank 1 was killed by SIGKILL")
    ] * 2
    # What two pods learned until then is what one rank learns.
    losses = [entry.loss for entry in curve(config)[:3]]
    single = begin(make_config(attempt=2, epochs=LONG))
    world, port = process_group
    with environment_of_one(port), pytest.raises(StageError, match="after step 3"):
        train(single, world, Reporter(single), StopAfter(3))
    assert losses == pytest.approx([entry.loss for entry in curve(single)], rel=1e-5)


def test_a_pod_asked_to_stop_saves_and_stops_all_pods(make_config: Callable[..., RunConfig]):
    """Whatever a stranger puts into the gang's store meanwhile."""
    config = make_config(num_nodes=2, epochs=LONG)
    with TrainStage(config, node=0) as first, TrainStage(config, node=1) as second:
        await_step(config, 3, first, second)
        stranger = Stranger(config.workers.rendezvous_port)
        # A failure in our own name first: it is what ended the run.
        for name in (*(f"rendezvous/{key}" for key in KEYS), *ADDRESSES):
            for lie in lies(name):
                stranger.put(name, lie)
            stranger.put(name, FAILURE if name.endswith("failure") else "10.0.0.1")
        reached = curve(config)[-1].step
        # Launchers look once a second.
        deadline = time.monotonic() + 10
        while "was not signed by this run" not in first.output or "was not signed by this run" not in second.output:
            assert time.monotonic() < deadline, first.output + second.output
            time.sleep(0.05)
        await_step(config, reached + 3, first, second)
        os.kill(second.process.pid, signal.SIGTERM)
        assert [stage.wait(END_DEADLINE_S) for stage in (second, first)] == [exit_code_of(Reason.INTERRUPTED)] * 2
        failures = [stage.result.failure for stage in (first, second)]
        assert LIE not in first.output + second.output
    (checkpoint,) = list_checkpoints(config.volume.checkpoints_dir(StageName.TRAIN, 1))
    saved = int(checkpoint.name.removeprefix("step-"))
    assert saved == curve(config)[-1].step > reached
    assert all(f"the checkpoint of step {saved} is on the volume" in failure.message for failure in failures)
    assert [failure.reason for failure in failures] == [Reason.INTERRUPTED] * 2
    assert {failure.step for failure in failures} == {saved}


@pytest.fixture
def endpoint(request: pytest.FixtureRequest, port: int) -> Iterator[int]:
    """Where reports go: nobody listens there, or somebody who takes every connection and never says a word."""
    if request.param == "refused":
        yield port
        return
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken: list[socket.socket] = []

        def take() -> None:
            with suppress(OSError):
                while True:
                    taken.append(listener.accept()[0])

        threading.Thread(target=take, daemon=True).start()
        yield listener.getsockname()[1]
        assert taken, "nobody has tried to report"
        for connection in taken:
            connection.close()


@pytest.mark.parametrize(
    ("endpoint", "told"), [("silent", "TimeoutError"), ("refused", "ConnectionRefusedError")], indirect=["endpoint"]
)
def test_training_ends_well_though_no_report_is_ever_taken(
    make_config: Callable[..., RunConfig], endpoint: int, told: str, authority: Authority, tmp_path: Path
):
    config = make_config(epochs=4)
    (tmp_path / "token").write_text("a token")
    reporting = Reporting(
        url=f"https://127.0.0.1:{endpoint}/v1/progress", ca_file=authority.ca_file, token_file=tmp_path / "token"
    )
    with TrainStage(config.model_copy(update={"reporting": reporting})) as stage:
        assert stage.wait() == 0, stage.output
        result = stage.result
    assert result.failure is None
    assert result.train.steps == 12
    assert [entry.step for entry in curve(config)] == list(range(1, 13))
    assert result.digests == {"adapter": sha256_folder(config.volume.adapter_dir)}
    assert f"a report was not accepted: {told}" in stage.output
    assert "accepted again" not in stage.output


def test_the_exit_code_of_the_process_that_failed_is_handed_on(
    make_config: Callable[..., RunConfig], toy_model_dir: Path, tmp_path: Path
):
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in toy_model_dir.iterdir():
        if path.name != "model.safetensors":
            (broken / path.name).symlink_to(path)
    tensors = load_file(toy_model_dir / "model.safetensors")
    tensors["language_model.lm_head.weight"][7] = float("inf")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    config = make_config()
    config = RunConfig.model_validate(config.model_dump(by_alias=True) | {"modelDir": broken})
    with TrainStage(config) as stage:
        assert stage.wait() == exit_code_of(Reason.LOSS_NOT_FINITE) == 67
        failure = stage.result.failure
    assert (failure.reason, failure.rank) == (Reason.LOSS_NOT_FINITE, 0)
    assert "before the first step, and whatever the learning rate" in failure.message
    assert "LossNotFinite" in failure.log_tail


def test_a_process_that_hangs_is_named_and_leaves_its_stack(
    tmp_path: Path, toy_model_dir: Path, make_config: Callable[..., RunConfig], dataset: tuple[Path, list[Sample]],
    toy_processor: Processor,
):  # fmt: skip
    config = make_config(world=2, epochs=LONG)
    plan = plan_of(config, toy_processor, world_size=2)
    probed = {index for extreme in plan.find_extremes() for row in extreme.rows for index in row}
    others = (index for rows in plan.rank_batch(1, rank=1) for row in rows for index in row)
    chosen = next(index for index in others if dataset[1][index].images and index not in probed)
    # Opening a pipe that nobody writes to never returns. Only process 1 does so, for the second step.
    pipe = config.dataset_dir / config.dataset.images / "pipe.png"
    os.mkfifo(pipe)
    samples = list(dataset[1])
    samples[chosen] = dataclasses.replace(samples[chosen], images=(pipe.name,))
    write_samples(config.volume.train_file, samples)
    with TrainStage(with_limit(config, 4.0, grace_period_seconds=15)) as stage:
        assert stage.wait() == exit_code_of(Reason.WORKER_STALLED) == 79, stage.output
        failure = stage.result.failure
    assert (failure.reason, failure.rank) == (Reason.WORKER_STALLED, 1)
    assert failure.message.startswith("rank 1 has not gone on for 4 s: it loads samples, and while others ")
    assert failure.message.endswith("; the stacks are in its log")
    assert "in open_image" in rank_log(config, 1)


def test_a_process_that_hangs_in_backward_is_named_whoever_says_so_first(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
):
    """All compute and all say so at about the same time: only the numbers of their operations differ.

    When that is, follows from how long the steps before took, as the first rank has measured it.
    """
    config = with_limit(make_config(world=2, epochs=LONG), 300.0, grace_period_seconds=15)
    break_rank(monkeypatch, "hang", rank=1, at=10)
    monkeypatch.setenv("STALL_SHORTEST_S", "3")
    with TrainStage(config) as stage:
        assert stage.wait() == exit_code_of(Reason.WORKER_STALLED), stage.output
        failure = stage.result.failure
    assert (failure.reason, failure.rank) == (Reason.WORKER_STALLED, 1)
    told = re.fullmatch(
        r"rank 1 has not gone on for (\d+) s: it computes, and while others wait in operation (\d+) of "
        r"process group \d \(gloo:\w+ \[.*\]\), it has begun (\d+); the stacks are in its log",
        failure.message,
    )
    assert told, failure.message
    assert 3 <= int(told[1]) < 60
    assert failure.step == failure.attempt_steps > 3
    assert "in hang" in rank_log(config, 1)


def with_limit(config: RunConfig, stall_limit_seconds: float, **workers: int) -> RunConfig:
    changed = config.workers.model_copy(update={"stall_limit_seconds": stall_limit_seconds, **workers})
    return config.model_copy(update={"workers": changed})
