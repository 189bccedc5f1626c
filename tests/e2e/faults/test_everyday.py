"""One training through every fault that a cluster has in store on an ordinary day, one after the other.

The tests build on each other: all hit the same run, and the last one looks at what became of it.
"""

import signal
import time
from collections.abc import Callable, Iterator

import pytest

from llava_api.constants import Condition, Phase
from llava_api.failures import Reason
from llava_api.status import AttemptState, StageState
from tests.demo.target import RELEASE
from tests.e2e.faults.breaking import GOES, OPERATOR, STAYS, TRAINING, Breaker
from tests.e2e.faults.operators import STATUS_CURRENT_S, operator
from tests.e2e.faults.training import (
    EVERY_STEPS,
    GRACE_S,
    RECOVERY_TIMEOUT_S,
    SAME_LOSS,
    STEPS_PER_EPOCH,
    Training,
    check_same,
    check_whole,
)
from tests.e2e.runs import Runs, stage_states
from tests.kubectl import wait_for
from tests.recovery import Recovery

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

EPOCHS = 22
CALM_STEPS = 60
"""Steps of the undisturbed run that the others are compared with."""

Record = Callable[[Recovery], None]


@pytest.fixture(scope="module")
def training(runs: Runs, breaker: Breaker) -> Iterator[Training]:
    made = Training(runs=runs, name="stormy")
    made.start(epochs=EPOCHS)
    yield made
    runs.delete(made.name)


@pytest.fixture(scope="module")
def calm(runs: Runs) -> Training:
    """The same without faults. It begins where the other one waits, and goes when it has done enough."""
    return Training(runs=runs, name="calm")


def test_sigkill_of_rank_0(training: Training, breaker: Breaker, record_recovery: Record) -> None:
    number = training.wait_for_steps(2 * EVERY_STEPS)
    victim = training.pods(number)[0]
    struck = time.time()
    breaker.send(victim, TRAINING, signal.SIGKILL)
    recovery = training.follow("SIGKILL of rank 0", number, struck)
    record_recovery(recovery)
    over = training.attempt(number)
    assert (over.because, over.counts, over.pod) == (Reason.WORKER_KILLED, True, victim["metadata"]["name"])
    assert over.node == victim["spec"]["nodeName"]
    assert "SIGKILL" in over.message
    assert training.stage.restarts == 1
    check_steps(training, number)
    assert recovery.stepped_s <= training.warm_s()


def test_rank_1_goes_over_its_memory_limit(training: Training, breaker: Breaker, record_recovery: Record) -> None:
    number = training.wait_for_steps(2 * EVERY_STEPS)
    victim = training.pods(number)[1]
    struck = time.time()
    breaker.exhaust_memory(victim)
    recovery = training.follow("rank 1 over its memory limit", number, struck)
    record_recovery(recovery)
    over = training.attempt(number)
    assert (over.because, over.counts, over.pod) == (Reason.OUT_OF_MEMORY, True, victim["metadata"]["name"])
    assert over.node == victim["spec"]["nodeName"]
    assert training.stage.restarts == 2
    check_steps(training, number)
    assert recovery.stepped_s <= training.warm_s()


def test_operator_killed(training: Training, breaker: Breaker) -> None:
    number = training.wait_for_steps(1)
    before = {pod["metadata"]["uid"] for pod in training.pods(number).values()}
    [pod] = operator(training.runs).list("pods", "-l", f"app.kubernetes.io/instance={RELEASE}")
    breaker.send(pod, OPERATOR, signal.SIGKILL)
    step = training.curve(number)[-1].step

    def is_current() -> bool:
        progress = training.runs.status(training.name).progress
        return progress is not None and progress.attempt == number and progress.step > step + EVERY_STEPS

    wait_for("the status to be current again", is_current, timeout_s=STATUS_CURRENT_S)
    assert {pod["metadata"]["uid"] for pod in training.pods(number).values()} == before
    assert training.stage.attempt == number
    assert training.attempt(number).state is AttemptState.RUNNING


def test_drain(training: Training, breaker: Breaker, record_recovery: Record) -> None:
    number = training.wait_for_steps(EVERY_STEPS)
    pods = training.pods(number)
    assert GOES in {pod["spec"]["nodeName"] for pod in pods.values()}
    struck = time.time()
    with breaker.cordoned(GOES):
        breaker.kubectl.run(
            "drain", GOES, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s", timeout_s=70
        )
        recovery = training.follow("drain of a node", number, struck)
        assert {pod["spec"]["nodeName"] for pod in training.pods(number + 1).values()} == {STAYS}
    record_recovery(recovery)
    over = training.attempt(number)
    assert (over.because, over.counts, over.node) == (Reason.DRAINED, False, GOES)
    assert training.stage.restarts == 2
    check_steps(training, number)
    # A checkpoint was saved when the pods were asked to stop: nothing is done twice.
    assert training.resumed_step(number + 1) == training.curves[number][-1].step
    assert recovery.stepped_s <= training.warm_s()


def test_suspended_and_resumed_at_another_size(training: Training, breaker: Breaker, record_recovery: Record) -> None:
    number = training.wait_for_steps(EVERY_STEPS)
    struck = time.time()
    training.patch('{"suspend": true}')
    wait_for("the run to be suspended", lambda: is_suspended(training), timeout_s=60)
    assert training.pods(number) == {}
    training.patch('{"workers": {"replicas": 1}}')
    # The next test takes that node away.
    with breaker.cordoned(STAYS):
        training.patch('{"suspend": false}')
        recovery = training.follow("suspend, and resume with one pod", number, struck)
    record_recovery(recovery)
    over, next_ = training.attempt(number), training.attempt(number + 1)
    assert (over.because, over.counts) == (Reason.SUSPENDED, False)
    assert (over.settings.replicas, over.settings.accumulation) == (2, 2)
    assert (next_.settings.replicas, next_.settings.accumulation) == (1, 4)
    assert len(training.pods(number + 1)) == 1
    assert training.stage.restarts == 2
    check_steps(training, number)
    assert training.resumed_step(number + 1) == training.curves[number][-1].step
    assert recovery.stepped_s <= training.warm_s()


def test_node_cut_off_and_reconnected_after_the_next_attempt_began(
    runs: Runs, training: Training, calm: Training, breaker: Breaker, record_recovery: Record
) -> None:
    """The old pod trains on, and knows nothing of the next attempt until it looks at the volume."""
    number = training.wait_for_steps(EVERY_STEPS)
    pods = training.pods(number)
    [old] = pods.values()
    assert old["spec"]["nodeName"] == GOES
    began = time.time()
    with breaker.cut_off(GOES):
        # Else it would have done all steps before the node is given up.
        breaker.slow_down(old, 0.1)
        wait_for("the node to be given up", lambda: breaker.is_tainted(GOES), timeout_s=90)
        tainted = time.time()
        # The other run has the machine to itself until then.
        calm.start(epochs=EPOCHS)
        next_ = training.volume / "attempts" / f"train-{number + 1}"
        wait_for("the next attempt to begin", next_.is_dir, timeout_s=RECOVERY_TIMEOUT_S)
        assert breaker.find_processes(old, TRAINING), "the old pod has ended by itself"
        # Else it would notice before there is anything that it could damage.
        with breaker.frozen([old]):
            with breaker.frozen(runs.pods(calm.name)):
                recovery = training.follow("node cut off (from its taint on)", number, tainted)
            [new] = training.pods(number + 1).values()
            assert new["spec"]["nodeName"] == STAYS
            # What stands still changes nothing: whatever changes, the old pod has changed.
            with breaker.frozen([new]):
                before = training.read_digests(number + 1)
                breaker.slow_down(old, 0)
                breaker.thaw([old])
                wait_for("the old pod to notice", lambda: not breaker.find_processes(old, TRAINING), timeout_s=120)
                breaker.cluster.reconnect(GOES)
                wait_for("the node to be back", lambda: not breaker.is_tainted(GOES), timeout_s=90)
                wait_for("the old pod to go", lambda: not training.pods(number), timeout_s=120)
                assert training.read_digests(number + 1) == before
    record_recovery(recovery)
    record_recovery(recovery.since_earlier("the same (from the cut on)", tainted - began))
    over = training.attempt(number)
    assert (over.because, over.counts, over.node) == (Reason.NODE_LOST, False, GOES)
    assert training.stage.restarts == 2
    check_steps(training, number)
    assert recovery.stepped_s <= training.warm_s() + GRACE_S + 60


def test_losses_are_those_of_a_run_without_faults(training: Training, calm: Training) -> None:
    calm.wait_for_steps(CALM_STEPS)
    undisturbed = calm.curve(1)
    calm.runs.delete(calm.name)
    # Until the run went on with one pod.
    disturbed = [curve for number, curve in training.curves.items() if training.attempt(number).settings.replicas == 2]
    for curve in disturbed:
        check_same(undisturbed, curve, tolerance=SAME_LOSS)
    assert max(map(len, disturbed)) > 4 * EVERY_STEPS
    assert undisturbed[-1].loss < 0.9 * undisturbed[0].loss


def test_the_run_ends_well_and_its_curve_is_whole(training: Training) -> None:
    last = training.stage.attempt
    status = training.runs.wait_for_end(training.name, timeout_s=800)
    assert status.phase is Phase.SUCCEEDED, status.failure
    assert set(stage_states(status).values()) == {StageState.SUCCEEDED}
    assert status.failure is None
    assert training.stage.attempt == last
    assert {c.type for c in status.conditions if c.status == "True"} >= {Condition.READY, Condition.COMPLETE}
    curve = training.curve(last)
    check_whole(curve)
    assert len(curve) == EPOCHS * STEPS_PER_EPOCH


def is_suspended(training: Training) -> bool:
    return training.runs.status(training.name).phase is Phase.SUSPENDED and not training.pods(training.stage.attempt)


def check_steps(training: Training, number: int) -> None:
    """What the status tells of an attempt's steps agrees with what lies on the volume."""
    over = training.attempt(number)
    last, resumed = training.curves[number][-1].step, training.resumed_step(number + 1)
    assert over.to_step is not None
    assert over.to_step <= last
    assert resumed is not None
    # Told by the attempt's first report: a checkpoint may have been complete before anybody knew.
    what = f"attempt {number + 1} to say that it went on from step {resumed}"
    wait_for(what, lambda: training.attempt(number + 1).from_step == resumed or None, timeout_s=STATUS_CURRENT_S)
