"""What a stage costs: the operator's writes, as the API server counts them itself."""

import asyncio
import logging
import re
from collections import Counter
from pathlib import Path

import pytest

from llava_api.constants import LABEL_STAGE
from llava_operator.kube.kinds import EVENTS
from llava_operator.kube.objects import Object
from tests.cluster.kubelets import do_nothing, succeed
from tests.cluster.kubelets import running as pod_runs
from tests.cluster.operators import OperatorProcess, running
from tests.cluster.test_restart import WRITES
from tests.cluster.worlds import NAMESPACES, World, until, world_of
from tests.kubectl import Kubectl

pytestmark = pytest.mark.cluster
logger = logging.getLogger(__name__)

MOST = 8
"""Writes that a stage with its pods may cost besides progress, Events included."""
_WRITTEN = {
    "llavafinetunes", "configmaps", "jobs", "services", "persistentvolumeclaims", "networkpolicies",
}  # fmt: skip


def count_writes(api_server: Kubectl) -> Counter[str]:
    """Requests by verb and resource since the API server began, without those of Kubernetes' own controllers."""
    counted: Counter[str] = Counter()
    for line in api_server.run("get", "--raw", "/metrics").splitlines():
        if not line.startswith("apiserver_request_total{"):
            continue
        labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
        kind, verb = labels["resource"], labels["verb"]
        if verb not in WRITES or kind not in _WRITTEN:
            continue
        if kind != "llavafinetunes" and (labels["subresource"] or verb in ("PUT", "PATCH", "APPLY")):
            continue
        counted[f"{verb} {kind}"] += int(float(line.rsplit(" ", 1)[1]))
    return counted


async def nothing_goes(world: World) -> None:
    """Wait until what tests before this one have left is gone: Kubernetes deletes it piece by piece, and is counted."""

    async def look() -> bool:
        return not [one async for one in world.kube.list(NAMESPACES, None) if "deletionTimestamp" in one["metadata"]]

    await until("namespaces of other tests to be gone", look, timeout_s=180)


class Stages:
    """Holds pods back until their stage is let go on."""

    def __init__(self) -> None:
        self.starts: set[str] = set()
        self.ends: set[str] = set()

    def behave(self, pod: Object) -> Object | None:
        stage = pod["metadata"]["labels"][LABEL_STAGE]
        if pod["status"]["phase"] == "Pending":
            return pod_runs() if stage in self.starts else None
        return succeed(pod) if stage in self.ends else None


async def state_of(world: World, stage: str) -> str:
    stages = (await world.status()).get("stages", [])
    return next((one["state"] for one in stages if one["name"] == stage), "")


async def test_a_stage_costs_few_writes(api_server: Kubectl, installation: Path, tmp_path: Path) -> None:
    """From a stage's begin to the next one's; the first stage's volume and authority are the run's."""
    # What is written with progress only, texts included, is not written at all meanwhile.
    extra = {"PROGRESS_INTERVAL_SECONDS": "300", "ISOLATE_TRAINING": "true"}
    operator = OperatorProcess(pod_name="op", kubeconfig=installation, log=tmp_path / "operator.log", extra=extra)
    costs: dict[str, Counter[str]] = {}
    with running(operator):
        operator.wait_until_leader()
        async with world_of(api_server, "writes", do_nothing) as world:
            stages = Stages()
            world.behave = stages.behave
            await nothing_goes(world)
            await world.create_run()
            before = Counter[str]()

            async def count(world: World) -> Counter[str]:
                # The scheduler writes Events of the same API: the operator's are counted by themselves, one POST each.
                made = [one async for one in world.kube.list(EVENTS, world.namespace)]
                ours = sum(one["regarding"]["kind"] == "LlavaFineTune" for one in made)
                return count_writes(api_server) + Counter({"POST events": ours})

            for stage in ("prepare", "train", "merge", "evaluate"):
                await until(f"{stage} to begin", lambda name=stage: begun(world, name))
                await asyncio.sleep(2)
                # With the Event that says so, which comes after the Job.
                before = before or await count(world)
                stages.starts.add(stage)
                await until(f"{stage} to run", lambda name=stage: runs(world, name))
                await asyncio.sleep(2)
                stages.ends.add(stage)
                await until(f"{stage} to end", lambda name=stage: is_over(world, name))
                await asyncio.sleep(2)
                after = await count(world)
                costs[stage] = after - before
                before = after
    for stage, cost in costs.items():
        logger.info("%s costs %d writes: %s", stage, sum(cost.values()), dict(cost))
    assert {stage: sum(cost.values()) for stage, cost in costs.items() if sum(cost.values()) > MOST} == {}, costs
    assert all(cost["PATCH llavafinetunes"] >= 2 for cost in costs.values()), "counted under other names"


async def begun(world: World, stage: str) -> bool:
    return await state_of(world, stage) == "Running" and any(
        pod["metadata"]["labels"][LABEL_STAGE] == stage for pod in await world.pods()
    )


async def runs(world: World, stage: str) -> bool:
    stages = (await world.status()).get("stages", [])
    return any(one["name"] == stage and one["attempts"][-1]["state"] == "Running" for one in stages)


async def is_over(world: World, stage: str) -> bool:
    return await state_of(world, stage) == "Succeeded"
