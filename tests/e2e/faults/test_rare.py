"""Faults that take long or are rare: `make test-long` runs them, `make test` does not.

As in ``test_everyday``, one training goes through most of them, one after the other.
"""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from llava_api.constants import Phase, StageName
from llava_api.failures import Reason
from llava_api.status import SUCCEEDED, AttemptState, StageState
from llava_trainer.training.curve import read_curve
from tests.e2e.faults.breaking import TRAINING, Breaker
from tests.e2e.faults.operators import STATUS_CURRENT_S, operator_down
from tests.e2e.faults.training import EVERY_STEPS, STEPS_PER_EPOCH, Training, check_whole
from tests.e2e.runs import Runs, stage_states
from tests.kubectl import wait_for
from tests.recovery import Recovery

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(1200)]

EPOCHS = 40
STALL_S = 300
"""The longest that a training process may stand still."""
AWAY_S = 20
CHILDREN_GONE_S = 60
LONG = 400

Record = Callable[[Recovery], None]


@pytest.fixture(scope="module")
def training(runs: Runs, breaker: Breaker) -> Iterator[Training]:
    made = Training(runs=runs, name="rare")
    made.start(epochs=EPOCHS)
    yield made
    runs.delete(made.name)


def test_api_server_killed_and_restarted(training: Training, breaker: Breaker) -> None:
    number = training.wait_for_steps(EVERY_STEPS)
    before = {pod["metadata"]["uid"] for pod in training.pods(number).values()}
    step = training.curve(number)[-1].step
    breaker.cluster.kill_api_server()
    time.sleep(AWAY_S)
    assert training.curve(number)[-1].step > step, "training waited for the API server"
    breaker.cluster.start_api_server()
    step = training.curve(number)[-1].step

    def is_current() -> bool:
        progress = training.runs.status(training.name).progress
        return progress is not None and progress.attempt == number and progress.step > step

    wait_for("the status to be current again", is_current, timeout_s=STATUS_CURRENT_S)
    assert {pod["metadata"]["uid"] for pod in training.pods(number).values()} == before
    assert training.stage.attempt == number
    assert training.attempt(number).state is AttemptState.RUNNING


def test_newest_checkpoint_damaged(training: Training, breaker: Breaker, record_recovery: Record) -> None:
    number = training.wait_for_steps(3 * EVERY_STEPS)
    pods = training.pods(number)
    for pod in pods.values():
        breaker.send(pod, TRAINING, signal.SIGSTOP)
    manifests = sorted((training.folder(number) / "checkpoints").glob("step-*/manifest.json"))
    older, newest = (manifest.parent for manifest in manifests[-2:])
    victim = max(newest.rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    flip_bytes(victim)
    struck = time.time()
    breaker.send(pods[0], TRAINING, signal.SIGKILL)
    breaker.send(pods[1], TRAINING, signal.SIGCONT)
    recovery = training.follow("SIGKILL, newest checkpoint damaged", number, struck)
    record_recovery(recovery)
    assert training.attempt(number).because == Reason.WORKER_KILLED
    assert training.resumed_step(number + 1) == step_of(older)

    def skipped() -> str | None:
        progress = training.runs.status(training.name).progress
        return (progress.skipped_checkpoints or None) if progress and progress.attempt == number + 1 else None

    assert newest.name in wait_for("the status to tell of it", skipped, timeout_s=60)
    assert recovery.stepped_s <= training.warm_s()


def test_freeze_of_rank_1(training: Training, breaker: Breaker, record_recovery: Record) -> None:
    number = training.wait_for_steps(2 * EVERY_STEPS)
    victim = training.pods(number)[1]
    struck = time.time()
    breaker.send(victim, TRAINING, signal.SIGSTOP)
    recovery = training.follow("freeze of rank 1", number, struck, timeout_s=2 * STALL_S)
    record_recovery(recovery)
    over = training.attempt(number)
    assert (over.because, over.counts, over.pod) == (Reason.WORKER_STALLED, True, victim["metadata"]["name"])
    assert recovery.stepped_s - recovery.detected_s <= training.warm_s()


def test_finished_pod_is_collected_while_the_operator_is_down(training: Training) -> None:
    training.wait_for_steps(1)
    with operator_down(training.runs):
        number = training.stage.attempt
        wait_for("training to end", lambda: phases(training, number) == {"Succeeded"}, timeout_s=400)
        curve = training.curve(number)
        training.runs.kubectl.run("delete", "pod", "-l", f"batch.kubernetes.io/job-name={training.job(number)}")
    status = training.runs.wait_for_end(training.name)
    assert status.phase is Phase.SUCCEEDED, status.failure
    assert set(stage_states(status).values()) == {StageState.SUCCEEDED}
    check_whole(curve)
    assert len(curve) == EPOCHS * STEPS_PER_EPOCH
    lost, found = training.attempt(number), training.attempt(number + 1)
    assert (lost.because, lost.counts, found.because) == (Reason.RESULT_LOST, False, SUCCEEDED)
    # Not a step was done again: the same lines, with the same speeds.
    assert read_curve(training.folder(number + 1) / "history.jsonl") == curve


def test_volume_full(runs: Runs, breaker: Breaker) -> None:
    """A claim of a class that nobody provisions for is bound to a small file system."""
    training = Training(runs=runs, name="full")
    with small_volume(breaker, "full", size="256m") as folder:
        training.start(epochs=EPOCHS, storage={"storageClassName": "full", "size": "200Mi"})
        training.wait_for_steps(EVERY_STEPS)
        fill(folder / "fill")
        status = runs.wait_for_end("full")
        assert status.phase is Phase.FAILED
        assert status.failure is not None
        assert status.failure.reason == Reason.STORAGE_FULL
        assert status.failure.hint
        failed = next(stage for stage in status.stages if stage.name is StageName.TRAIN).attempt
        (folder / "fill").unlink()
        training.patch('{"retry": 1}')
        status = runs.wait_for_end("full")
        assert status.phase is Phase.SUCCEEDED, status.failure
        curve = read_curve(training.folder(failed + 1) / "history.jsonl")
        check_whole(curve)
        assert len(curve) == EPOCHS * STEPS_PER_EPOCH
        runs.delete("full")
        runs.wait_until_gone("full", CHILDREN_GONE_S)


@pytest.mark.parametrize("is_up", [True, False], ids=["operator up", "operator down"])
@pytest.mark.parametrize("moment", ["prepare", "train", "between attempts", "suspended", "merge", "evaluate", "failed"])
def test_deleted(runs: Runs, breaker: Breaker, moment: str, is_up: bool) -> None:
    training = Training(runs=runs, name="deleted")
    bad = {"dataset": {"file": "nothing.json"}} if moment == "failed" else {}
    training.start(epochs=1 if moment in ("merge", "evaluate") else LONG, **bad)
    bring_to(training, breaker, moment)
    if is_up:
        runs.delete("deleted")
        runs.wait_until_gone("deleted", CHILDREN_GONE_S)
        return
    with operator_down(runs):
        runs.delete("deleted")
        runs.wait_until_gone("deleted", CHILDREN_GONE_S)


def bring_to(training: Training, breaker: Breaker, moment: str) -> None:
    """Let a run come to the moment at which it is deleted."""
    runs = training.runs
    if moment in ("prepare", "train", "merge", "evaluate"):
        runs.wait_for_stage(training.name, StageName(moment))
    elif moment == "failed":
        assert runs.wait_for_end(training.name).phase is Phase.FAILED
    elif moment == "suspended":
        training.wait_for_steps(1)
        training.patch('{"suspend": true}')
        wait_for("it to be suspended", lambda: runs.status(training.name).phase is Phase.SUSPENDED, timeout_s=60)
    else:
        number = training.wait_for_steps(1)
        breaker.send(training.pods(number)[0], TRAINING, signal.SIGKILL)
        wait_for("it to be over", lambda: training.attempt(number).because, timeout_s=90)


def phases(training: Training, number: int) -> set[str]:
    return {pod["status"]["phase"] for pod in training.pods(number).values()}


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def flip_bytes(file: Path) -> None:
    """Damage a file in the middle, without changing its size."""
    with file.open("r+b") as stream:
        middle = file.stat().st_size // 2
        stream.seek(middle)
        old = stream.read(64)
        stream.seek(middle)
        stream.write(bytes(byte ^ 0xFF for byte in old))


def fill(file: Path) -> None:
    """Leave no byte free on the file system of a file."""
    with file.open("wb", buffering=0) as stream, suppress(OSError):
        while True:
            stream.write(bytes(4096))


@contextmanager
def small_volume(breaker: Breaker, name: str, *, size: str) -> Iterator[Path]:
    """A volume of the storage class ``name`` on a file system of its own."""
    folder = breaker.cluster.instance.state_dir / f"small-{name}"
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0777", "tmpfs", str(folder)], check=True)
    try:
        breaker.kubectl.apply(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": name},
                "spec": {
                    "storageClassName": name,
                    "accessModes": ["ReadWriteMany"],
                    "capacity": {"storage": "1Gi"},
                    "hostPath": {"path": str(folder)},
                    "persistentVolumeReclaimPolicy": "Retain",
                },
            }
        )
        yield folder
    finally:
        breaker.kubectl.run("delete", "pv", name, "--ignore-not-found", "--wait=false")
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()
