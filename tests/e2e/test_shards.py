"""Evaluation by two pods on a real cluster, one of which is killed: it goes on, and the scores are right."""

import re
import signal
from typing import Any

import pytest

from llava_api.constants import LABEL_COMPLETION_INDEX, Phase, StageName
from tests.e2e.faults.breaking import Breaker
from tests.e2e.runs import Runs
from tests.kubectl import wait_for
from tests.localcluster.cluster import LocalCluster

pytestmark = pytest.mark.e2e

NAME = "shards"
STAGE = "llava-trainer"
_SLOW = 0.5
"""Part of a processor, so that the one that is killed is not through before anybody has looked."""
_WAIT_S = 240


def test_a_pod_that_is_killed_goes_on_and_the_other_is_not_disturbed(runs: Runs, cluster: LocalCluster) -> None:
    breaker = Breaker(cluster=cluster, kubectl=runs.kubectl)
    workers = {"replicas": 2, "gpus": 0}
    runs.start(NAME, evaluation={"workers": workers, "trainingSamples": 128, "prompts": []})
    runs.wait_for_stage(NAME, StageName.EVALUATE)
    victim = wait_for("the pod of index 1 to run", lambda: pod_of(runs, 1, "Running"), timeout_s=_WAIT_S)
    breaker.slow_down(victim, _SLOW)
    wait_for("its first answers", lambda: answers_of(runs, 1) or None, timeout_s=_WAIT_S)
    breaker.send(victim, STAGE, signal.SIGKILL)
    wait_for("its end to be known", lambda: pod_of(runs, 1, "Failed"), timeout_s=_WAIT_S)
    second = wait_for("another in its place", lambda: pod_of(runs, 1, "Running", "Succeeded"), timeout_s=_WAIT_S)
    status = runs.wait_for_end(NAME)
    assert status.phase is Phase.SUCCEEDED, status.failure
    evaluate = next(stage for stage in status.stages if stage.name is StageName.EVALUATE)
    [attempt] = evaluate.attempts
    assert attempt.shards is not None
    assert (attempt.shards.done, attempt.shards.pods_failed, evaluate.restarts) == (2, 1, 0)
    assert len(runs.pods(NAME, StageName.EVALUATE)) == 3
    log = runs.kubectl.run("logs", second["metadata"]["name"])
    left = re.search(r"(\d+) of (\d+) answers are there from earlier pods", log)
    assert left, log
    assert 0 < int(left[1]) < int(left[2])
    assert status.evaluation is not None
    metrics = {metric.split: metric for metric in status.evaluation.metrics if metric.name == "exact_match"}
    assert {split: metric.samples for split, metric in metrics.items()} == {"validation": 64, "train": 128}
    assert metrics["validation"].tuned >= 0.8
    assert metrics["validation"].base <= 0.05
    runs.delete(NAME)


def pod_of(runs: Runs, index: int, *phases: str) -> dict[str, Any] | None:
    """The pod of an index that is in one of these phases."""
    pods = runs.pods(NAME, StageName.EVALUATE)
    found = [pod for pod in pods if pod["metadata"]["labels"][LABEL_COMPLETION_INDEX] == str(index)]
    return next((pod for pod in found if pod["status"].get("phase") in phases), None)


def answers_of(runs: Runs, index: int) -> int:
    """Answers that the pod of an index has reported."""
    status = runs.status(NAME)
    assert status.failure is None, status.failure
    shards = status.progress.shards if status.progress else ()
    found = next((shard for shard in shards if shard.index == index), None)
    assert found is None or found.step < found.total_steps, "it is through before it could be killed"
    return found.step if found else 0
