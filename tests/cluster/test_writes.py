"""What a stage costs: the operator's writes, as the API server counts them itself."""

import asyncio
import logging
import re
from collections import Counter
from pathlib import Path

import pytest

from llava_api.constants import LABEL_STAGE
from llava_operator.kube.objects import Object
from tests.cluster.operators import OperatorProcess, running
from tests.cluster.test_restart import WRITES
from tests.cluster.waits import World, world_of
from tests.cluster.worlds import running as pod_runs
from tests.cluster.worlds import succeed, until
from tests.kubectl import Kubectl

pytestmark = pytest.mark.cluster
logger = logging.getLogger(__name__)

MOST = 8
"""Writes that a stage with its pods may cost besides progress, Events included."""
_WRITTEN = {
    "llavafinetunes", "events", "configmaps", "jobs", "services", "persistentvolumeclaims", "networkpolicies",
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
        # The scheduler's Events are of the same API: it counts them up by PATCH. What creates its first is taken off by
        # whoever counts.
        if kind == "events" and (labels["group"] != "events.k8s.io" or verb == "PATCH"):
            continue
        if kind != "llavafinetunes" and (labels["subresource"] or verb in ("PUT", "PATCH", "APPLY")):
            continue
        counted[f"{verb} {kind}"] += int(float(line.rsplit(" ", 1)[1]))
    return counted


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
    operator = OperatorProcess(
        pod_name="op", kubeconfig=installation, log=tmp_path / "operator.log", extra={"ISOLATE_TRAINING": "true"}
    )
    costs: dict[str, Counter[str]] = {}
    with running(operator):
        operator.wait_until_leader()
        async with world_of(api_server, "writes") as world:
            stages = Stages()
            world.behave = stages.behave
            await world.create_run()
            before = Counter[str]()
            for stage in ("prepare", "train", "merge", "evaluate"):
                await until(f"{stage} to begin", lambda name=stage: begun(world, name))
                before = before or count_writes(api_server)
                await asyncio.sleep(2)
                stages.starts.add(stage)
                await until(f"{stage} to run", lambda name=stage: runs(world, name))
                await asyncio.sleep(2)
                stages.ends.add(stage)
                await until(f"{stage} to end", lambda name=stage: is_over(world, name))
                await asyncio.sleep(2)
                after = count_writes(api_server)
                costs[stage] = after - before
                before = after
    scheduled = {"prepare": 1, "train": 2, "merge": 1, "evaluate": 1}
    for stage, cost in costs.items():
        # FailedScheduling, once a pod: there is no node here.
        cost["POST events"] -= scheduled[stage]
        logger.info("%s costs %d writes: %s", stage, sum(cost.values()), dict(cost))
    assert {stage: sum(cost.values()) for stage, cost in costs.items() if sum(cost.values()) > MOST} == {}, costs
    assert all(cost["PATCH llavafinetunes"] >= 2 for cost in costs.values()), "counted under other names"


async def begun(world: World, stage: str) -> bool:
    return await state_of(world, stage) == "Running" and any(
        pod["metadata"]["labels"][LABEL_STAGE] == stage for pod in await world.pods()
    )


async def runs(world: World, stage: str) -> bool:
    stages = (await world.status()).get("stages", [])
    message: str = next((one["message"] for one in stages if one["name"] == stage), "")
    return message in ("its pod runs", "2 pods run")


async def is_over(world: World, stage: str) -> bool:
    return await state_of(world, stage) == "Succeeded"
