"""Another version of the operator takes over while runs are active: the one before attempts, today's, and back.

Both are real processes, each with the CRD of its version on the same API server; their pods are played.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from llava_api.constants import LABEL_RUN, LABEL_STAGE, StageName
from llava_api.crd import build_crd
from llava_api.failures import Reason, exit_code_of
from llava_api.report import StageFailure, StageResult
from llava_operator.kube.client import Kube
from llava_operator.kube.kinds import CHILD_SELECTOR, JOBS, PODS, RUNS, Kind
from llava_operator.kube.objects import Object
from tests.cluster.kubelets import FakeKubelet, ended, running, succeed
from tests.cluster.operators import OperatorProcess
from tests.cluster.operators import running as started
from tests.cluster.worlds import NAMESPACES, connect, make_run, until
from tests.kubectl import Kubectl
from tests.older import extract_older

pytestmark = pytest.mark.cluster
STAGES = ("prepare", "train", "merge", "evaluate")
HELD_AT = {"preparing": "prepare", "training": "train", "merging": "merge", "evaluating": "evaluate"}
"""Stages at which runs stand when the operator is replaced; merge before its pod has a place."""


EXTRA = {
    "RESYNC_SECONDS": "1", "LEASE_DURATION_SECONDS": "30", "LEASE_RENEW_DEADLINE_SECONDS": "20",
    "LEASE_RETRY_SECONDS": "1",
}  # fmt: skip
"""An operator that is stopped gives its Lease back."""


class Runs:
    """A namespace with runs, and pods that stand still until they are let go on."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self.kube = kube
        self.namespace = namespace
        self.is_held = True

    def behave(self, pod: Object) -> Object | None:
        run, stage = pod["metadata"]["labels"][LABEL_RUN], pod["metadata"]["labels"][LABEL_STAGE]
        if run == "failed":
            said = StageFailure(reason=Reason.INVALID_DATA, message="no samples")
            result = StageResult(stage=StageName(stage), attempt=1, failure=said)
            return ended(exit_code_of(Reason.INVALID_DATA), result.to_termination_message())
        if self.is_held and HELD_AT.get(run) == stage:
            return running() if pod["status"]["phase"] == "Pending" and stage != "merge" else None
        return succeed(pod)

    async def create(self, *names: str) -> None:
        for name in names:
            # By the name that both versions know.
            made = make_run(name, self.namespace, evaluation={"gpus": 0})
            await self.kube.create(RUNS, self.namespace, made)

    async def statuses(self) -> dict[str, Object]:
        found = [one async for one in self.kube.list(RUNS, self.namespace)]
        return {one["metadata"]["name"]: one.get("status", {}) for one in found}

    async def children(self, kind: Kind) -> dict[str, str]:
        """UIDs by name; nothing may be on its way out."""
        found = [one async for one in self.kube.list(kind, self.namespace, CHILD_SELECTOR)]
        assert not [one["metadata"]["name"] for one in found if "deletionTimestamp" in one["metadata"]]
        return {one["metadata"]["name"]: one["metadata"]["uid"] for one in found}

    async def all_children(self) -> dict[str, str]:
        return {**await self.children(JOBS), **await self.children(PODS)}

    async def stand(self, **stages: str) -> None:
        """Wait until these runs are at their stages, their pods with them."""

        async def look() -> bool:
            statuses, pods = await self.statuses(), await self.children(PODS)
            return all(
                any(one["name"] == stage and one["state"] == "Running" for one in statuses[run].get("stages", []))
                and len([pod for pod in pods if pod.startswith(f"{run}-{stage}-1-")]) == (2 if stage == "train" else 1)
                for run, stage in stages.items()
            )

        await until(f"{stages} to stand", look, timeout_s=90)

    async def end(self, **phases: str) -> dict[str, Object]:
        async def look() -> dict[str, Object] | None:
            statuses = await self.statuses()
            return statuses if {run: statuses[run].get("phase") for run in phases} == phases else None

        return await until(f"{phases}", look, timeout_s=120)


@contextlib.asynccontextmanager
async def runs_in(api_server: Kubectl, namespace: str) -> AsyncIterator[Runs]:
    assert api_server.kubeconfig is not None
    async with connect(api_server.kubeconfig) as api:
        kube = Kube(api, timeout_s=20)
        await kube.create(NAMESPACES, None, {"metadata": {"name": namespace}})
        made = Runs(kube, namespace)
        kubelet = asyncio.create_task(FakeKubelet(kube, namespace, made.behave).run())
        try:
            yield made
        finally:
            kubelet.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await kubelet
            api_server.run("delete", "namespace", namespace, "--wait=false")
            install_crd(api_server, build_crd())


def install_crd(api_server: Kubectl, crd: Object) -> None:
    api_server.apply(crd)
    api_server.run("wait", "--for=condition=Established", "crd/llavafinetunes.finetune.llava.dev", "--timeout=30s")


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The operator, the types and the CRD of the version before attempts."""
    return extract_older(tmp_path_factory.mktemp("older"), "crds", "operator/llava_operator")


def older_crd(older: Path) -> Object:
    [file] = (older / "crds").glob("*.yaml")
    made: Object = yaml.safe_load(file.read_text())
    return made


def make_operator(installation: Path, folder: Path, version: str, older: Path | None = None) -> OperatorProcess:
    return OperatorProcess(
        pod_name=version, kubeconfig=installation, log=folder / f"{version}.log", extra=EXTRA,
        code=() if older is None else (older / "operator", older / "crds"),
    )  # fmt: skip


async def make_passes(operator: OperatorProcess, more: int = 12) -> None:
    """Wait until it has looked at its runs several times more."""

    def count() -> float:
        text = operator.fetch("/metrics")[1]
        found = re.search(r"^llava_operator_pass_duration_seconds_count (.+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0

    before = await asyncio.to_thread(count)

    async def look() -> bool:
        return await asyncio.to_thread(count) >= before + more

    await until(f"{more} more passes", look, timeout_s=60)


def keeps(then: Any, now: Any) -> bool:
    """Whether all that was said is said still; beside it stands what the API server fills in by the CRD of now."""
    if isinstance(then, dict):
        return isinstance(now, dict) and all(name in now and keeps(one, now[name]) for name, one in then.items())
    if isinstance(then, list):
        return isinstance(now, list) and len(then) == len(now) and all(map(keeps, then, now))
    return bool(then == now)


async def test_pods_of_active_runs_are_left_alone_by_another_version(
    api_server: Kubectl, installation: Path, older: Path, tmp_path: Path
) -> None:
    before = make_operator(installation, tmp_path, "before", older)
    today = make_operator(installation, tmp_path, "today")
    async with runs_in(api_server, "upgraded") as runs:
        install_crd(api_server, older_crd(older))
        with started(before):
            await asyncio.to_thread(before.wait_until_leader)
            await runs.create(*HELD_AT, "finished", "failed")
            await runs.stand(**HELD_AT)
            told = await runs.end(finished="Succeeded", failed="Failed")
        assert "attempts" not in told["training"]["stages"][1], "it was the version before"
        made = await runs.all_children()

        install_crd(api_server, build_crd())
        with started(today):
            await asyncio.to_thread(today.wait_until_leader)
            await make_passes(today)
            assert await runs.all_children() == made, "nothing is deleted, and nothing made"
            # The same version once more.
            assert await asyncio.to_thread(today.stop) == 0
            today.start()
            await asyncio.to_thread(today.wait_until_leader)
            await make_passes(today)
            assert await runs.all_children() == made
            taken_over = await runs.statuses()
            for run, stage in HELD_AT.items():
                [attempt] = next(one["attempts"] for one in taken_over[run]["stages"] if one["name"] == stage)
                state = "Starting" if stage == "merge" else "Running"
                assert (attempt["number"], attempt["state"], attempt["jobUid"]) == (1, state, made[f"{run}-{stage}-1"])
            for run in ("finished", "failed"):
                for field in ("phase", "completionTime", "artifacts", "failure", "evaluation"):
                    assert keeps(told[run].get(field), taken_over[run].get(field)), (run, field)

            runs.is_held = False
            ended_well = await runs.end(**dict.fromkeys(HELD_AT, "Succeeded"), finished="Succeeded", failed="Failed")
        for run in HELD_AT:
            stages = ended_well[run]["stages"]
            assert [(one["name"], one["attempt"], one["restarts"]) for one in stages] == [(one, 1, 0) for one in STAGES]
        jobs, pods = await runs.children(JOBS), await runs.children(PODS)
        assert set(jobs) == {
            *(f"{run}-{stage}-1" for run in (*HELD_AT, "finished") for stage in STAGES),
            "failed-prepare-1",
        }
        assert made.items() <= {**jobs, **pods}.items(), "each is the one that it was"
        assert len(pods) == 5 * 5 + 1, "none was made twice"
        for run in HELD_AT:
            job = await runs.kube.get(JOBS, runs.namespace, f"{run}-evaluate-1")
            [container] = job["spec"]["template"]["spec"]["containers"]
            assert "nvidia.com/gpu" not in container["resources"]["limits"], "it was to be on the CPU"
            mode = "NonIndexed" if run == "evaluating" else "Indexed"
            assert job["spec"]["completionMode"] == mode, "what runs goes on as it was made"


async def test_the_way_back_destroys_nothing(
    api_server: Kubectl, installation: Path, older: Path, tmp_path: Path
) -> None:
    """Its CRD drops what that version does not know of the statuses."""
    today = make_operator(installation, tmp_path, "today")
    before = make_operator(installation, tmp_path, "before", older)
    async with runs_in(api_server, "downgraded") as runs:
        with started(today):
            await asyncio.to_thread(today.wait_until_leader)
            await runs.create(*HELD_AT, "finished", "failed")
            await runs.stand(**HELD_AT)
            await runs.end(finished="Succeeded", failed="Failed")
        made = await runs.all_children()
        install_crd(api_server, older_crd(older))
        with started(before):
            await asyncio.to_thread(before.wait_until_leader)
            await make_passes(before)
            assert await runs.all_children() == made
        # What it makes of them is not ours to say any more; today's goes on where it was.
        install_crd(api_server, build_crd())
        with started(today):
            await asyncio.to_thread(today.wait_until_leader)
            await make_passes(today)
            assert await runs.all_children() == made
            runs.is_held = False
            await runs.end(**dict.fromkeys(HELD_AT, "Succeeded"), finished="Succeeded", failed="Failed")
        children = await runs.all_children()
        assert made.items() <= children.items()
        assert len(children) == 21 + 26, "none was made twice"
