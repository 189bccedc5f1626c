"""The stage that publishes, with the operator as a process against a real control plane."""

import base64
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llava_api.constants import LABEL_STAGE, GateOutcome, StageName
from llava_api.failures import Reason
from llava_api.report import Judgement, Published, PublishNumbers, StageFailure, StageResult
from llava_operator.kube.kinds import CONFIG_MAPS, JOBS, SECRETS, VOLUME_CLAIMS
from llava_operator.kube.objects import Object
from tests.cluster.kubelets import RESULTS, ended, holds, succeed
from tests.cluster.operators import OperatorProcess, running
from tests.cluster.worlds import RUN, World, condition_of, until
from tests.kubectl import Kubectl

pytestmark = pytest.mark.cluster

DIGEST = f"sha256:{'d' * 64}"
DESTINATIONS: dict[str, tuple[str, ...]] = {
    "s3://models/llava": ("accessKeyId", "secretAccessKey", "sessionToken", "endpoint", "region", "unknown"),
    "hf://team/llava": ("token",),
    "oci://registry.example/team/llava:1": ("username", "password", ".dockerconfigjson"),
}
"""Addresses, each with the keys of its Secret."""


@pytest.fixture(scope="module")
def operator(installation: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    """One operator that says all that it can."""
    log = tmp_path_factory.mktemp("operators") / "op.log"
    one = OperatorProcess(pod_name="op-publishing", kubeconfig=installation, log=log, extra={"LOG_LEVEL": "debug"})
    with running(one):
        one.wait_until_leader()
        yield one
    assert "Traceback" not in log.read_text(), log.read_text()


def publish(*addresses: str, **changes: Any) -> Object:
    return {"destinations": [{"address": address} for address in addresses], **changes}


def stage_of_pod(pod: Object) -> StageName:
    return StageName(pod["metadata"]["labels"][LABEL_STAGE])


def stage_of_status(status: Object, name: StageName = StageName.PUBLISH) -> Object:
    found: Object = next(one for one in status["stages"] if one["name"] == name)
    return found


class Marked:
    """Secrets of a namespace, each value of which can be told from anything else."""

    def __init__(self) -> None:
        self.values: list[str] = []

    def make(self, name: str, *keys: str) -> Object:
        """A Secret."""
        made = {key: f"marked-{secrets.token_hex(16)}" for key in keys}
        self.values += made.values()
        return {"metadata": {"name": name}, "type": "Opaque", "stringData": made}

    def find(self, text: str) -> list[str]:
        """Values that stand in a text, plainly or as Kubernetes writes Secrets."""
        return [one for one in self.values if one in text or base64.b64encode(one.encode()).decode() in text]


def dump_namespace(kubectl: Kubectl, namespace: str) -> dict[str, str]:
    """Everything in a namespace but its Secrets, by kind."""
    kinds = kubectl.run("api-resources", "--namespaced", "--verbs=list", "-o", "name").split()
    kept = [kind for kind in kinds if kind != "secrets"]
    assert {"llavafinetunes.finetune.llava.dev", "jobs.batch", "pods", "configmaps", "events.events.k8s.io"} <= {*kept}
    text = kubectl.run("-n", namespace, "get", ",".join(kept), "-o", "json")
    found: dict[str, list[Object]] = {}
    for one in json.loads(text)["items"]:
        found.setdefault(one["kind"], []).append(one)
    return {kind: json.dumps(objects) for kind, objects in found.items()}


async def test_what_stands_in_a_secret_stands_nowhere_else(
    api_server: Kubectl, world: World, operator: OperatorProcess
) -> None:
    """Neither in an object of the namespace, an Event, a status, nor in the operator's log and metrics."""
    marked = Marked()
    for n, keys in enumerate(DESTINATIONS.values()):
        await world.put(SECRETS, marked.make(f"destination-{n}", *keys))
    await world.put(SECRETS, marked.make("signing-key", "privateKey"))
    await world.put(SECRETS, marked.make("proxies", "httpProxy", "httpsProxy"))
    assert len(marked.values) == 13

    def behave(pod: Object) -> Object | None:
        if stage_of_pod(pod) is not StageName.PUBLISH or pod["status"]["phase"] == "Pending":
            return succeed(pod)
        attempt = int(pod["metadata"]["name"].split("-")[2])
        if attempt == 1:
            failure = StageFailure(reason=Reason.DESTINATION_UNAVAILABLE, message="the registry does not answer")
            failed = StageResult(stage=StageName.PUBLISH, attempt=attempt, failure=failure)
            return ended(89, failed.to_termination_message())
        published = tuple(
            Published(destination=n, what="merged", revision="r", digest=DIGEST, size_bytes=1, sent_bytes=0)
            for n in range(len(DESTINATIONS))
        )
        numbers = PublishNumbers(published=published)
        result = StageResult(stage=StageName.PUBLISH, attempt=attempt, publish=numbers)
        return ended(0, result.to_termination_message())

    world.behave = behave
    destinations = [
        {"address": address, "secretRef": {"name": f"destination-{n}"}} for n, address in enumerate(DESTINATIONS)
    ]
    await world.create_run(
        publish={"destinations": destinations, "signing": {"name": "signing-key"}},
        download={"secretRef": {"name": "proxies"}},
    )
    status = await world.ended(timeout_s=60)
    assert "failure" not in status, status["failure"]
    assert [one["address"] for one in status["artifacts"]["published"]] == list(DESTINATIONS)
    named = {"destination-0", "destination-1", "destination-2", "signing-key"}
    async for job in world.kube.list(JOBS, world.namespace):
        volumes = json.dumps(job["spec"]["template"]["spec"]["volumes"])
        is_publishing = job["metadata"]["labels"][LABEL_STAGE] == StageName.PUBLISH
        assert {one for one in named if f'"{one}"' in volumes} == (named if is_publishing else set())
        assert '"unknown"' not in volumes
    found = dump_namespace(api_server, world.namespace) | {
        "log": operator.log.read_text(), "metrics": operator.fetch("/metrics")[1],
    }  # fmt: skip
    assert all(found[kind] for kind in ("LlavaFineTune", "Job", "Pod", "ConfigMap", "Event", "log", "metrics"))
    assert "DestinationUnavailable" in found["Event"] + found["LlavaFineTune"]
    assert f"{world.namespace}/{RUN}" in found["log"]
    assert {kind: marked.find(text) for kind, text in found.items() if marked.find(text)} == {}
    # Whoever would look for nothing finds nothing.
    annotation = {"metadata": {"annotations": {"leak": base64.b64encode(marked.values[0].encode()).decode()}}}
    api_server.run("-n", world.namespace, "patch", "lft", RUN, "--type=merge", "-p", json.dumps(annotation))
    assert marked.find(dump_namespace(api_server, world.namespace)["LlavaFineTune"]) == marked.values[:1]


async def test_a_destination_that_refuses_is_corrected_and_nothing_is_trained_again(
    world: World, operator: OperatorProcess
) -> None:
    """And an attempt that is under way goes on with what it was made with."""

    def refuse(pod: Object) -> Object | None:
        if stage_of_pod(pod) is not StageName.PUBLISH or pod["status"]["phase"] == "Pending":
            return succeed(pod)
        failure = StageFailure(reason=Reason.DESTINATION_REFUSED, message="s3://models/one holds another model")
        failed = StageResult(stage=StageName.PUBLISH, attempt=1, failure=failure)
        return ended(90, failed.to_termination_message())

    world.behave = refuse
    await world.create_run(publish=publish("s3://models/one"))
    status = await world.ended()
    assert (status["phase"], status["failure"]["reason"]) == ("Failed", Reason.DESTINATION_REFUSED)
    assert condition_of(status, "Published")["reason"] == Reason.DESTINATION_REFUSED
    before = {one["metadata"]["uid"] async for one in world.kube.list(JOBS, world.namespace)}
    world.behave = holds(StageName.PUBLISH)
    await world.change_run(publish=publish("s3://models/two"), retry=1)

    def is_under_way(status: Object) -> bool:
        attempts = stage_of_status(status)["attempts"]
        return len(attempts) == 2 and attempts[-1]["state"] == "Running"

    status = await world.status_when("the second attempt", is_under_way)
    await world.change_run(publish=publish("s3://models/three"))
    generation = (await world.run())["metadata"]["generation"]
    await world.status_when("the change to be seen", lambda one: one["observedGeneration"] == generation)
    world.behave = succeed
    status = await world.ended()
    assert status["phase"] == "Succeeded"
    assert [one["address"] for one in status["artifacts"]["published"]] == ["s3://models/two"]
    told = [
        json.loads((await world.kube.get(CONFIG_MAPS, world.namespace, f"{RUN}-publish-{n}"))["data"]["run.json"])
        for n in (1, 2)
    ]
    assert [one["publish"]["destinations"][0]["address"] for one in told] == ["s3://models/one", "s3://models/two"]
    after = {one["metadata"]["uid"] async for one in world.kube.list(JOBS, world.namespace)}
    assert len(after - before) == 1, "one more attempt to publish, and nothing else"
    assert all(len(one["attempts"]) == 1 for one in status["stages"][:-1])
    assert ("Normal", "Published") in await world.events()


async def test_what_a_gate_has_not_let_pass_is_left_out_and_kept(world: World, operator: OperatorProcess) -> None:
    judged = Judgement(
        outcome=GateOutcome.FAILED, metric="exact_match", gain=-0.1, low=-0.2, high=-0.05, limit=0.0, samples=90,
        groups=30, smallest_difference=0.1,
    )  # fmt: skip

    def fail_the_gate(pod: Object) -> Object | None:
        if stage_of_pod(pod) is not StageName.EVALUATE or pod["status"]["phase"] == "Pending":
            return succeed(pod)
        good = RESULTS[StageName.EVALUATE]
        assert good.evaluate is not None
        told = good.model_copy(update={"evaluate": good.evaluate.model_copy(update={"gate": judged})})
        return ended(0, told.to_termination_message())

    world.behave = fail_the_gate
    await world.create_run(
        publish=publish("s3://models/one"), evaluation={"workers": {"gpus": 0}, "gate": {}},
        storage={"size": "1Gi", "retain": "OnSuccess"},
    )  # fmt: skip
    status = await world.ended()
    assert status["phase"] == "Succeeded"
    left_out = stage_of_status(status)
    assert (left_out["state"], left_out["reason"], left_out.get("attempts", [])) == ("Skipped", "GateFailed", [])
    held = condition_of(status, "Published")
    assert (held["status"], held["reason"], held["message"]) == ("False", "GateFailed", left_out["message"])
    assert condition_of(status, "GatePassed")["status"] == "False"
    assert "publish" not in " ".join(await world.children())
    claim = await world.kube.get(VOLUME_CLAIMS, world.namespace, f"{RUN}-run")
    assert not claim["metadata"].get("ownerReferences"), "it has the only copy"

    async def is_told() -> bool:
        return ("Warning", "NotPublished") in await world.events()

    await until("the Event NotPublished", is_told)
