"""Notifications on a real API server: one Job each, whatever becomes of the operator, and none that holds a run up."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llava_api.constants import LABEL_NOTIFICATION, LABEL_RUN
from llava_operator.kube.kinds import JOBS, PODS, RUNS
from llava_operator.kube.objects import Object
from tests.cluster.kubelets import FakeKubelet, deliver, do_nothing, ended, succeed
from tests.cluster.kubelets import running as pod_runs
from tests.cluster.operators import OperatorProcess, running
from tests.cluster.test_waiting import BINDINGS, POLICIES, QUOTAS
from tests.cluster.worlds import World, is_true, until, world_of
from tests.kubectl import Kubectl

pytestmark = pytest.mark.cluster

HOOK = {"webhook": {"url": "https://hooks.example/llava"}}
SIGNED = {"webhook": {"url": "https://hooks.example", "secretRef": {"name": "hooks"}}}
SLACK = {"slack": {"secretRef": {"name": "slack"}}}


@contextlib.asynccontextmanager
async def receivers_of(world: World, answer: dict[str, Object]) -> AsyncIterator[None]:
    """Plays the kubelet for pods that send, by the receiver's name; others deliver."""

    def behave(pod: Object) -> Object:
        assert "app.kubernetes.io/managed-by" not in pod["metadata"]["labels"], "the operator would watch it"
        return answer.get(pod["metadata"]["labels"][LABEL_NOTIFICATION]) or deliver(pod)

    kubelet = asyncio.create_task(FakeKubelet(world.kube, world.namespace, behave, LABEL_NOTIFICATION).run())
    try:
        yield
    finally:
        kubelet.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await kubelet


async def list_jobs(world: World) -> list[str]:
    """Receivers of the Jobs that were made."""
    found = [job async for job in world.kube.list(JOBS, world.namespace, LABEL_NOTIFICATION)]
    return sorted(job["metadata"]["labels"][LABEL_NOTIFICATION] for job in found)


async def list_told(world: World) -> list[tuple[str, str, str]]:
    status = await world.status()
    return sorted((one["name"], one["event"], one["state"]) for one in status.get("notifications", []))


async def is_settled(world: World) -> bool:
    told = await list_told(world)
    return bool(told) and all(state != "Pending" for _, _, state in told)


def refused_pod() -> Object:
    """The status of a sending pod that was answered 404."""
    status = ended(65, "https://hooks.example answers 404")
    status["containerStatuses"][0]["name"] = "notifier"
    return status


async def test_each_receiver_is_told_of_each_event_once(
    api_server: Kubectl, installation: Path, tmp_path: Path
) -> None:
    """With another operator after the first, and the finished run's messages found owed by the second."""
    log = tmp_path / "operator.log"
    operator = OperatorProcess(pod_name="op", kubeconfig=installation, log=log, extra={"IMAGE": "operator:test"})
    async with world_of(api_server, "notified", do_nothing) as world, contextlib.AsyncExitStack() as playing:
        with running(operator):
            operator.wait_until_leader()
            receivers = [
                {"name": "all", "events": ["Succeeded", "Failed", "Suspended", "Restarted"], **HOOK},
                {"name": "signed", **SIGNED}, {"name": "slack", **SLACK},
                {"name": "failures", "events": ["Failed"], **HOOK},
            ]  # fmt: skip
            world.behave = lambda pod: pod_runs() if pod["status"]["phase"] == "Pending" else None
            await world.create_run(notifications=receivers, suspend=True)
            await until("the suspension to be told of", lambda: list_jobs(world))
            assert await list_told(world) == [("all", "Suspended", "Pending")]
            # Mutable at any time, also while nothing else may be.
            receivers.append({"name": "late", **HOOK})
            await world.kube.patch(
                RUNS, world.namespace, "run", {"spec": {"suspend": False, "notifications": receivers}}
            )
            world.behave = succeed

            async def done() -> bool:
                return is_true(await world.status(), "Complete")

            await until("the run's end", done, timeout_s=120)
            operator.kill()
            await playing.enter_async_context(receivers_of(world, {"signed": refused_pod()}))
            operator.start()
            await until("every message to be settled", lambda: is_settled(world), timeout_s=120)
            assert await list_told(world) == [
                ("all", "Succeeded", "Delivered"), ("all", "Suspended", "Delivered"),
                ("late", "Succeeded", "Delivered"), ("signed", "Succeeded", "Undelivered"),
                ("slack", "Succeeded", "Delivered"),
            ]  # fmt: skip
            assert await list_jobs(world) == ["all", "all", "late", "signed", "slack"]
            outcomes = {one["name"]: one.get("outcome") for one in (await world.status())["notifications"]}
            assert outcomes["signed"] == "https://hooks.example answers 404"
            metrics = operator.fetch("/metrics")[1]
            for line in (
                'notifications_total{event="Succeeded",outcome="delivered"} 3.0',
                'notifications_total{event="Succeeded",outcome="undelivered"} 1.0',
                'notifications_total{event="Suspended",outcome="delivered"} 1.0',
            ):
                assert f"llava_operator_{line}" in metrics
            await world.delete(RUNS, "run")

            async def gone() -> bool:
                left = [one for kind in (JOBS, PODS) async for one in world.kube.list(kind, world.namespace)]
                return not [one for one in left if one["metadata"]["labels"].get(LABEL_RUN) == "run"]

            # Nobody ends the pods of nodes that are played but their kubelet: those that have ended go at once.
            await until("its Jobs to go with it", gone, timeout_s=60)
    assert "is passed over" not in log.read_text()


async def test_a_run_ends_whose_messages_are_refused_and_they_are_sent_when_they_may(
    api_server: Kubectl, installation: Path, tmp_path: Path
) -> None:
    log = tmp_path / "operator.log"
    operator = OperatorProcess(pod_name="op", kubeconfig=installation, log=log, extra={"IMAGE": "operator:test"})
    rule = {"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}
    name = "not-notified"
    policy = {
        "failurePolicy": "Fail", "matchConstraints": {"resourceRules": [rule]},
        "validations": [{"expression": "!object.metadata.name.contains('-notify-')", "message": "nobody is told"}],
    }  # fmt: skip
    chosen = {"namespaceSelector": {"matchLabels": {"only": name}}}
    binding = {"policyName": name, "validationActions": ["Deny"], "matchResources": chosen}
    async with world_of(api_server, name, do_nothing) as world:
        await world.put(POLICIES, {"metadata": {"name": name}, "spec": policy}, everywhere=True)
        await world.put(BINDINGS, {"metadata": {"name": name}, "spec": binding}, everywhere=True)
        # Room for the stages alone.
        await world.put(QUOTAS, {"metadata": {"name": "stages"}, "spec": {"hard": {"count/jobs.batch": "4"}}})
        with running(operator):
            operator.wait_until_leader()
            world.behave = succeed
            await world.create_run(notifications=[{"name": "team", **HOOK}])

            async def told_why() -> str:
                told = (await world.status()).get("notifications", [])
                return told[0].get("outcome", "") if told else ""

            outcome = await until("the refusal to be told", told_why, timeout_s=120)
            assert "nobody is told" in outcome
            status = await world.status()
            assert is_true(status, "Complete")
            assert all(len(stage["attempts"]) == 1 for stage in status["stages"])
            await world.clear()

            async def quota_refuses() -> bool:
                return "exceeded quota: stages" in log.read_text()

            await until("the quota to refuse it", quota_refuses, timeout_s=120)
            await world.kube.patch(QUOTAS, name, "stages", {"spec": {"hard": {"count/jobs.batch": "5"}}})
            async with receivers_of(world, {}):
                await until("it to be settled", lambda: is_settled(world), timeout_s=120)
            assert await list_told(world) == [("team", "Succeeded", "Delivered")]
            assert await list_jobs(world) == ["team"]
