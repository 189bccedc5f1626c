"""Evaluation by several pods: each is retried by itself, and what ends all of them ends the attempt.

API server and Job controller are real; the kubelet is played.
"""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llava_api.constants import (
    ANNOTATION_INDEX_FAILURES,
    LABEL_ATTEMPT,
    LABEL_COMPLETION_INDEX,
    LABEL_RUN,
    LABEL_STAGE,
    StageName,
)
from llava_api.failures import Reason, exit_code_of
from llava_api.report import StageFailure, StageResult
from llava_operator.kube.kinds import JOBS, PODS
from llava_operator.kube.objects import Object
from tests.cluster.kubelets import ended, succeed
from tests.cluster.kubelets import running as pod_runs
from tests.cluster.operators import OperatorProcess, running
from tests.cluster.worlds import World, is_true, until
from tests.kubectl import Kubectl

pytestmark = pytest.mark.cluster

REPLICAS = 3
SPEC = {"evaluation": {"workers": {"replicas": REPLICAS, "gpus": 0}}}
TIMEOUT_S = 120
"""The Job controller waits for 10 s before it replaces a pod, and for 20 before the next."""


@pytest.fixture(scope="module")
def operator(installation: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    log = tmp_path_factory.mktemp("shards") / "operator.log"
    process = OperatorProcess(pod_name="shards", kubeconfig=installation, log=log)
    with running(process):
        process.wait_until_leader()
        yield process
    assert "Traceback" not in log.read_text(), log.read_text()


def behave_as(evaluate: Callable[[Object, int, int], Object | None]) -> Callable[[Object], Object | None]:
    """Pods of other stages succeed; those of evaluation do as told, by their index and how often that had failed."""

    def behave(pod: Object) -> Object | None:
        labels, annotations = pod["metadata"]["labels"], pod["metadata"].get("annotations", {})
        if labels[LABEL_STAGE] != StageName.EVALUATE:
            return succeed(pod)
        if pod["status"]["phase"] == "Pending":
            return pod_runs()
        if "deletionTimestamp" in pod["metadata"]:
            return ended(143, "")
        failures = sum(int(annotations.get(name, "0")) for name in ANNOTATION_INDEX_FAILURES)
        return evaluate(pod, int(labels[LABEL_COMPLETION_INDEX]), failures)

    return behave


def fail(reason: Reason, message: str) -> Object:
    result = StageResult(stage=StageName.EVALUATE, attempt=1, failure=StageFailure(reason=reason, message=message))
    return ended(exit_code_of(reason), result.to_termination_message())


def do_a_part(pod: Object) -> Object:
    """End well without numbers: another pod joins."""
    attempt = int(pod["metadata"]["labels"][LABEL_ATTEMPT])
    return ended(0, StageResult(stage=StageName.EVALUATE, attempt=attempt).to_termination_message())


async def evaluating(world: World, run: str, count: int = REPLICAS) -> dict[int, Object]:
    """Pods of a run's evaluation by index, once so many run and the operator knows."""

    async def look() -> dict[int, Object] | None:
        pods = [
            pod async for pod in world.kube.list(PODS, world.namespace, f"{LABEL_RUN}={run},{LABEL_STAGE}=evaluate")
        ]
        live = {
            int(pod["metadata"]["labels"][LABEL_COMPLETION_INDEX]): pod
            for pod in pods
            if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]
        }
        attempts = (await stage_of(world, run)).get("attempts", [])
        return live if len(live) == count and attempts and attempts[-1]["state"] == "Running" else None

    return await until(f"the pods of {run}'s evaluation", look, timeout_s=TIMEOUT_S)


async def stage_of(world: World, run: str) -> Object:
    stages = (await world.status(run)).get("stages", [])
    return next((stage for stage in stages if stage["name"] == "evaluate"), {})


async def test_pods_are_replaced_one_by_one_and_the_last_one_has_the_result(
    world: World, operator: OperatorProcess, api_server: Kubectl
) -> None:
    """One fails, one is drained, one is deleted by hand; each goes on, and nobody else is disturbed."""
    is_over = False

    def evaluate(pod: Object, index: int, failures: int) -> Object | None:
        if index == 1 and failures == 0:
            return fail(Reason.INTERNAL_ERROR, "ValueError: once")
        if not is_over:
            return None
        return succeed(pod) if index == 3 else do_a_part(pod)

    world.behave = behave_as(evaluate)
    await world.create_run(**{"evaluation": {"workers": {"replicas": 4, "gpus": 0}}})
    await until("a pod to fail", lambda: count_failures(world, "run"), timeout_s=TIMEOUT_S)
    before = await evaluating(world, "run", 4)
    assert before[1]["metadata"]["annotations"][ANNOTATION_INDEX_FAILURES[0]] == "1"
    names = {index: pod["metadata"]["name"] for index, pod in before.items()}
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": names[2]}}
    await world.kube._request("POST", f"{PODS.path(world.namespace, names[2])}/eviction", body=eviction)
    api_server.run("-n", world.namespace, "delete", "pod", names[3], "--wait=false")

    async def replaced() -> dict[int, Object] | None:
        after = await evaluating(world, "run", 4)
        changed = [index for index, pod in after.items() if pod["metadata"]["uid"] != before[index]["metadata"]["uid"]]
        return after if changed == [2, 3] or changed == [3, 2] else None

    after = await until("both to be replaced", replaced, timeout_s=TIMEOUT_S)
    counted, ignored = ANNOTATION_INDEX_FAILURES
    annotations = {index: pod["metadata"]["annotations"] for index, pod in after.items()}
    assert (annotations[2][counted], annotations[2][ignored]) == ("0", "1")
    assert annotations[3][counted] == "1"
    is_over = True
    status = await world.ended(timeout_s=TIMEOUT_S)
    assert is_true(status, "Complete"), status["failure"]
    stage = status["stages"][-1]
    [attempt] = stage["attempts"]
    # The drained one is none of its failures.
    assert (stage["restarts"], attempt["because"], attempt["shards"]) == (0, "Succeeded", {"done": 4, "podsFailed": 2})
    assert status["evaluation"]["metrics"][0]["tuned"] == 0.9


async def count_failures(world: World, run: str) -> bool:
    attempts = (await stage_of(world, run)).get("attempts", [])
    return bool(attempts) and attempts[-1].get("shards", {}).get("podsFailed") == 1


async def test_what_ends_for_good_ends_the_run(world: World, operator: OperatorProcess) -> None:
    """An index that has used up its tries, and an exit code that no other pod could mend; others are stopped."""

    def evaluate(pod: Object, index: int, failures: int) -> Object | None:
        if index == 0 and pod["metadata"]["labels"][LABEL_RUN] == "broken":
            return fail(Reason.INTERNAL_ERROR, f"ValueError: try {failures}")
        if index == 2 and pod["metadata"]["labels"][LABEL_RUN] == "final":
            return fail(Reason.INVALID_DATA, "prompts[0].image does not exist")
        return None

    world.behave = behave_as(evaluate)
    await asyncio.gather(*(world.create_run(name, **SPEC) for name in ("broken", "final")))
    status = await world.ended("final", timeout_s=TIMEOUT_S)
    told = status["failure"]
    assert (told["reason"], told["message"]) == (Reason.INVALID_DATA, "prompts[0].image does not exist")
    status = await world.ended("broken", timeout_s=TIMEOUT_S)
    told = status["failure"]
    assert (told["reason"], told["message"]) == (Reason.INTERNAL_ERROR, "ValueError: try 2")
    for name in ("broken", "final"):
        stage = await stage_of(world, name)
        assert (stage["attempt"], stage["restarts"], stage["state"]) == (1, 1, "Failed")
        job = await world.kube.get(JOBS, world.namespace, f"{name}-evaluate-1")
        assert is_true(job["status"], "Failed")
    left = [pod for pod in await world.pods() if pod["status"]["phase"] in ("Pending", "Running")]
    assert left == []


async def test_an_older_image_that_fails_each_time_ends_as_before(world: World, operator: OperatorProcess) -> None:
    """Its second pod finds the attempt claimed; three attempts are made, each judged by its first pod."""

    def evaluate(pod: Object, index: int, failures: int) -> Object | None:
        return fail(Reason.ATTEMPT_USED, "claimed") if failures else fail(Reason.INTERNAL_ERROR, "ValueError: older")

    world.behave = behave_as(evaluate)
    await world.create_run(**{"evaluation": {"gpus": 0}})
    status = await world.ended(timeout_s=TIMEOUT_S)
    told, stage = status["failure"], status["stages"][-1]
    assert (told["reason"], told["message"]) == (Reason.INTERNAL_ERROR, "ValueError: older")
    assert (stage["attempt"], stage["restarts"]) == (3, 3)
    assert [attempt["because"] for attempt in stage["attempts"]] == [Reason.INTERNAL_ERROR] * 3


async def test_suspended_it_stops_and_goes_on_in_another_attempt(world: World, operator: OperatorProcess) -> None:
    world.behave = behave_as(lambda pod, index, failures: do_a_part(pod) if index == 0 else None)
    await world.create_run(**SPEC)
    await evaluating(world, "run", 2)
    await world.change_run(suspend=True)
    await world.status_when("to be suspended", lambda one: is_true(one, "Suspended"), timeout_s=TIMEOUT_S)
    assert [pod for pod in await world.pods() if pod["status"]["phase"] == "Running"] == []
    world.behave = behave_as(lambda pod, index, failures: succeed(pod))
    await world.change_run(suspend=False)
    status = await world.ended(timeout_s=TIMEOUT_S)
    assert is_true(status, "Complete"), status["failure"]
    first, second = status["stages"][-1]["attempts"]
    assert (first["because"], first["counts"], first["shards"]["done"]) == (Reason.SUSPENDED, False, 1)
    assert (second["because"], second["shards"]) == ("Succeeded", {"done": 3, "podsFailed": 0})
