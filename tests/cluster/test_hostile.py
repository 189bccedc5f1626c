"""Hostile objects of every kind that the operator reads, thrown at a running one.

What a tenant may write in a namespace of its own must not end the process, hold up the runs of others, or reach their
status. In the run's own namespace owner UIDs keep out accidents; whoever may create pods there can write owners, too,
and no test claims more.
"""

import asyncio
import contextlib
import copy
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from llava_api.constants import (
    API_VERSION,
    KIND,
    LABEL_COMPLETION_INDEX,
    LABEL_MANAGED_BY,
    LABEL_RUN,
    LABEL_STAGE,
    MANAGER,
    StageName,
)
from llava_api.report import StageResult
from llava_operator.kube.client import Kube
from llava_operator.kube.errors import KubeError
from llava_operator.kube.kinds import CONFIG_MAPS, JOBS, PODS, RUNS, Kind
from llava_operator.kube.objects import Object
from tests.cluster.kubelets import RESULTS, FakeKubelet, ended, succeed
from tests.cluster.kubelets import running as pod_runs
from tests.cluster.operators import OperatorProcess, running
from tests.cluster.worlds import NAMESPACES, connect, is_true, make_run, until
from tests.kubectl import Kubectl, wait_for

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def operator(installation: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    log = tmp_path_factory.mktemp("hostile") / "operator.log"
    process = OperatorProcess(pod_name="attacked", kubeconfig=installation, log=log, extra={"RESYNC_SECONDS": "1"})
    with running(process):
        process.wait_until_leader()
        yield process
    # Of connections that it cuts off at its end Python tells as well, since warnings are errors.
    assert not re.search(r"^(?!Exception ignored in).*\nTraceback", log.read_text(), re.MULTILINE), log.read_text()


def measure(operator: OperatorProcess, name: str) -> float:
    """The sum over all samples of a metric."""
    text = operator.fetch("/metrics")[1]
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (.+)$", text, re.MULTILINE))


class Stage:
    """A namespace with a run that trains until it is told to go on, and one beside it for the attacker."""

    def __init__(self, kube: Kube, name: str) -> None:
        self.kube = kube
        self.victim, self.attacker = f"victim-{name}", f"attacker-{name}"
        self.goes_on = False
        self.uids: dict[str, str] = {}

    def behave(self, pod: Object) -> Object | None:
        if not pod["metadata"].get("generateName", "").startswith("run-"):
            return None
        if pod["metadata"]["labels"].get(LABEL_STAGE) == StageName.TRAIN and not self.goes_on:
            return pod_runs() if pod["status"]["phase"] == "Pending" else None
        return succeed(pod)

    async def run(self) -> Object:
        return await self.kube.get(RUNS, self.victim, "run")

    async def trains(self) -> bool:
        stages = (await self.run()).get("status", {}).get("stages", [])
        return any(s["name"] == "train" and s["message"] == "2 pods run" for s in stages)

    async def has_ended(self) -> Object | None:
        status: Object = (await self.run()).get("status", {})
        return status if is_true(status, "Complete") or is_true(status, "Failed") else None


@contextlib.asynccontextmanager
async def staged(api_server: Kubectl, name: str) -> AsyncIterator[Stage]:
    assert api_server.kubeconfig is not None
    async with connect(api_server.kubeconfig) as api:
        stage = Stage(Kube(api, timeout_s=20), name)
        for namespace in (stage.victim, stage.attacker):
            await stage.kube.create(NAMESPACES, None, {"metadata": {"name": namespace}})
        kubelet = asyncio.create_task(FakeKubelet(stage.kube, stage.victim, stage.behave).run())
        try:
            await stage.kube.create(RUNS, stage.victim, make_run("run", stage.victim))
            await until("the victim to train", stage.trains)
            stage.uids["run"] = (await stage.run())["metadata"]["uid"]
            stage.uids["job"] = (await stage.kube.get(JOBS, stage.victim, "run-train-1"))["metadata"]["uid"]
            yield stage
        finally:
            kubelet.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await kubelet
            api_server.run("delete", "namespace", stage.victim, stage.attacker, "--wait=false")


def make_pod(name: str, **meta: Any) -> Object:
    labels = {LABEL_MANAGED_BY: MANAGER, LABEL_RUN: "run", LABEL_STAGE: "train", **meta.pop("labels", {})}
    spec = {"containers": [{"name": "stage", "image": "i"}], "restartPolicy": "Never"}
    return {"metadata": {"name": name, "labels": labels, **meta}, "spec": spec}


FORGED_RESULT = StageResult(
    stage=StageName.TRAIN, attempt=1, digests={"adapter": "sha256:forged"}, train=RESULTS[StageName.TRAIN].train
).to_termination_message()


async def test_one_poisoned_pod_ends_nothing(api_server: Kubectl, operator: OperatorProcess) -> None:
    """Its completion index is no number, its run is empty, and it lies in somebody else's namespace."""
    async with staged(api_server, "poison") as stage:
        skipped = measure(operator, "llava_operator_objects_skipped_total")
        poison = make_pod("poison", labels={LABEL_COMPLETION_INDEX: "x"})
        nameless = make_pod("nameless", labels={LABEL_RUN: ""})
        for pod in (poison, nameless):
            await stage.kube.create(PODS, stage.attacker, pod)

        async def has_relisted() -> bool:
            # Two events, and again at every relist.
            return measure(operator, "llava_operator_objects_skipped_total") >= skipped + 6

        await until("three looks at the pods", has_relisted)
        assert operator.process is not None
        assert operator.process.poll() is None
        assert operator.fetch("/healthz")[0] == 200
        # After a restart they are there from the beginning.
        assert operator.stop() == 0
        operator.start()
        operator.wait_until_leader()
        stage.goes_on = True
        status = await until("the victim's end", stage.has_ended)
        assert status["phase"] == "Succeeded"
        assert measure(operator, "llava_operator_pass_errors_total") == 0
        log = operator.log.read_text()
        assert log.count("in namespace attacker-poison is passed over") == 2, "once in each process"
        assert "pass over attacker" not in log


async def test_nesting_as_deep_as_the_api_server_takes_ends_nothing(
    api_server: Kubectl, operator: OperatorProcess, tmp_path: Path
) -> None:
    """Python's json gives up at 1,000 levels, by an exception that kopf hands on until the process ends."""
    async with staged(api_server, "nesting") as stage:
        for kind, api, body in (
            (PODS, "v1", make_pod("nested")),
            (RUNS, API_VERSION, make_run("nested", stage.attacker)),
        ):
            entry = {"manager": "m", "operation": "Update", "apiVersion": api, "time": "2026-01-01T00:00:00Z",
                     "fieldsType": "FieldsV1", "fieldsV1": "NESTED"}  # fmt: skip
            text = json.dumps({**body, "metadata": {**body["metadata"], "managedFields": [entry]}})
            # Go's decoder ends at 10,000 levels.
            levels = 9_900
            (tmp_path / "nested.json").write_text(text.replace('"NESTED"', '{"f:a":' * levels + "{}" + "}" * levels))
            api_server.run("create", "--raw", kind.path(stage.attacker), "-f", str(tmp_path / "nested.json"))
            stored = api_server.run("get", "--raw", kind.path(stage.attacker, "nested"))
            assert stored.count('{"f:a"') > 5_000, "the API server has stored something else"
        # Events, and some relists.
        await asyncio.sleep(3)
        assert operator.process is not None
        assert operator.process.poll() is None, operator.log.read_text()[-2000:]
        assert operator.stop() == 0
        operator.start()
        operator.wait_until_leader()
        stage.goes_on = True
        assert (await until("the victim's end", stage.has_ended))["phase"] == "Succeeded"


async def test_pod_with_the_labels_of_a_job_reports_no_result_for_it(
    api_server: Kubectl, operator: OperatorProcess
) -> None:
    """One of the same namespace that another object owns: its forged result comes first, and is not taken.

    (One that nobody owns is adopted by the Job controller as soon as it carries the Job's labels.)
    """
    async with staged(api_server, "forgery") as stage:
        labels = {LABEL_COMPLETION_INDEX: "0", "batch.kubernetes.io/controller-uid": stage.uids["job"]}
        other = await stage.kube.create(CONFIG_MAPS, stage.victim, {"metadata": {"name": "other"}})
        owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "other", "uid": other["metadata"]["uid"]}
        # Named so that a list has it first.
        forgery = make_pod("a-forgery", labels=labels, ownerReferences=[{**owner, "controller": True}])
        await stage.kube.create(PODS, stage.victim, forgery)
        await stage.kube.patch(
            PODS, stage.victim, "a-forgery", {"status": ended(0, FORGED_RESULT)}, subresource="status"
        )
        stage.goes_on = True
        status = await until("the victim's end", stage.has_ended)
        assert status["phase"] == "Succeeded"
        assert status["artifacts"]["digests"]["adapter"] == "sha256:a"


# --- everything at once

LABEL_VALUES = st.sampled_from(["", "x", "run", "0", "1", "train", "9" * 20, "run-train-1"]) | st.from_regex(
    r"\A[A-Za-z0-9]([A-Za-z0-9_.]{0,10}[A-Za-z0-9])?\Z"
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
STATES = st.one_of(
    st.fixed_dictionaries({"waiting": st.fixed_dictionaries({"reason": TEXT, "message": TEXT})}),
    st.just({"running": {}}),
    st.fixed_dictionaries(
        {
            "terminated": st.fixed_dictionaries(
                {"exitCode": st.integers(-(2**31), 2**31 - 1), "message": TEXT | st.just(FORGED_RESULT), "reason": TEXT}
            )
        }
    ),
)


@st.composite
def hostile(draw: st.DrawFn) -> tuple[Kind, Object, Object | None]:
    """Kind, object and status. ``RUN`` and ``JOB`` in an owner stand for the victim's UIDs."""
    kind = draw(st.sampled_from([PODS, PODS, JOBS, CONFIG_MAPS, RUNS]))
    labels = {LABEL_MANAGED_BY: MANAGER} | draw(
        st.dictionaries(st.sampled_from([LABEL_RUN, LABEL_STAGE, LABEL_COMPLETION_INDEX]), LABEL_VALUES)
    )
    owner = st.fixed_dictionaries(
        {
            "apiVersion": st.sampled_from(["batch/v1", API_VERSION, "v1"]),
            "kind": st.sampled_from(["Job", KIND, "Pod"]),
            "name": st.sampled_from(["run", "run-train-1", "../../victim/llavafinetunes/run", "%2e%2e"]),
            "uid": st.sampled_from(["RUN", "JOB", "no-uid"]),
            "controller": st.booleans(),
        }
    )
    meta = {"generateName": draw(st.sampled_from(["run-", "x-"])), "labels": labels}
    meta["ownerReferences"] = draw(st.lists(owner, max_size=2))
    if kind == RUNS:
        return kind, {**make_run("run", ""), "metadata": meta}, draw(st.none() | RUN_STATUS)
    if kind == CONFIG_MAPS:
        return (
            kind,
            {"metadata": meta, "data": draw(st.dictionaries(st.sampled_from(["run.json", "ca.crt"]), TEXT))},
            None,
        )
    pod = make_pod("x")
    if kind == JOBS:
        template = {"metadata": {"labels": labels}, "spec": pod["spec"]}
        return kind, {"metadata": meta, "spec": {"template": template, "suspend": draw(st.booleans())}}, None
    status = draw(
        st.fixed_dictionaries(
            {"phase": st.sampled_from(["Pending", "Running", "Succeeded", "Failed", "Unknown"])},
            optional={
                "reason": TEXT,
                "message": TEXT,
                "containerStatuses": STATES.map(
                    lambda state: [{"name": "stage", "state": state, "ready": False, "restartCount": 0, "image": "i",
                                    "imageID": "i"}]
                ),
                "conditions": st.fixed_dictionaries(
                    {"type": st.sampled_from(["DisruptionTarget", "PodScheduled"]),
                     "status": st.sampled_from(["True", "False"]), "reason": TEXT, "message": TEXT}
                ).map(lambda condition: [condition]),
            },
        )
    )  # fmt: skip
    return kind, {"metadata": meta, "spec": pod["spec"]}, status


RUN_STATUS = st.fixed_dictionaries(
    {},
    optional={
        "phase": st.sampled_from(["Pending", "Running", "Failed", "Dreaming"]),
        "startTime": st.sampled_from(["2026-02-30T12:00:00Z", "0000-01-01t00:00:00z", "2026-11-01T12:00:00Z"]),
        "stages": st.lists(
            st.fixed_dictionaries(
                {"name": st.sampled_from(["prepare", "train"]), "state": st.sampled_from(["Running", "Failed"]),
                 "attempt": st.integers(0, 2**53)},
                optional={"job": st.sampled_from(["..", "", "run-train-1", "a/b", "x?y"]), "jobUid": TEXT},
            ),
            max_size=1,
        ),
        "progress": st.fixed_dictionaries(
            {"stage": st.just("train"), "attempt": st.just(1), "podUid": TEXT, "step": st.integers(0, 2**53),
             "totalSteps": st.integers(0, 2**53), "lastUpdateTime": st.sampled_from(["2026-02-30T12:00:00Z"])}
        ),
    },
)  # fmt: skip


async def throw(stage: Stage, objects: list[tuple[Kind, Object, Object | None]]) -> int:
    """Create them in the attacker's namespace; how many the API server has taken."""
    return sum(await asyncio.gather(*(_throw_one(stage, *thrown) for thrown in objects)))


async def _throw_one(stage: Stage, kind: Kind, body: Object, status: Object | None) -> bool:
    made = copy.deepcopy(body)
    for owner in made["metadata"].get("ownerReferences", []):
        owner["uid"] = stage.uids.get(owner["uid"].lower(), owner["uid"])
    try:
        name = (await stage.kube.create(kind, stage.attacker, made))["metadata"]["name"]
    except KubeError:
        # What the API server refuses cannot hurt.
        return False
    if status:
        # It may refuse the status, and the garbage collector may be quicker.
        with contextlib.suppress(KubeError):
            await stage.kube.patch(kind, stage.attacker, name, {"status": status}, subresource="status")
    return True


def test_whatever_a_tenant_writes_others_are_not_touched(api_server: Kubectl, operator: OperatorProcess) -> None:
    num_taken = 0

    async def attack() -> None:
        async with staged(api_server, "all") as stage:
            before = (await stage.run())["status"]
            examples: list[list[tuple[Kind, Object, Object | None]]] = []

            # Hypothesis makes them here and the loop throws them: it cannot call what is to be awaited.
            @settings(
                max_examples=25, deadline=None, phases=[Phase.generate], database=None,
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(st.lists(hostile(), min_size=4, max_size=8))
            def make(objects: list[tuple[Kind, Object, Object | None]]) -> None:
                examples.append(objects)

            make()
            nonlocal num_taken
            for objects in examples:
                num_taken += await throw(stage, objects)
                assert operator.process is not None
                assert operator.process.poll() is None, operator.log.read_text()[-4000:]
            await asyncio.to_thread(
                wait_for, "an empty queue", lambda: measure(operator, "llava_operator_queue_depth") == 0, timeout_s=30
            )
            assert operator.fetch("/healthz")[0] == 200
            assert operator.fetch("/metrics")[0] == 200
            assert (await stage.run())["status"] == before, "nothing of it reaches another's status"
            stage.goes_on = True
            status = await until("the victim's end", stage.has_ended)
            assert status["phase"] == "Succeeded"
            assert status["artifacts"]["digests"]["adapter"] == "sha256:a"

    asyncio.run(attack())
    assert num_taken > 60, "an attack of which the API server takes nothing proves nothing"
    assert measure(operator, "llava_operator_objects_skipped_total") > 20
