"""Model from a hub and dataset from S3, both served by this machine: pods fetch them with the run's credentials.

The Secrets come late: until then the run says what it waits for, and goes on by itself when they are there. Of what is
in them the container sees the keys that it needs.
"""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from llava_api.constants import StageName
from llava_api.status import StageState
from llava_trainer.sources.network import Network, build_client
from tests.demo.inputs import cached_base
from tests.e2e.runs import Runs, stage_states
from tests.kubectl import wait_for
from tests.tiny.export import make_export
from tests.trainer.servers.authority import Authority
from tests.trainer.servers.hub import HubRepository, HubServer
from tests.trainer.servers.s3 import KEYS, open_bucket, run_s3

pytestmark = pytest.mark.e2e

NAME = "fetched"
COMMIT = "c" * 40
TOKEN = "hf_of-the-test"


@pytest.fixture(scope="module")
def gateway(runs: Runs) -> str:
    """Address at which pods reach servers of this machine: that at which they reach the API server."""
    server = runs.kubectl.run("config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}")
    host = urlsplit(server).hostname
    assert host is not None
    return host


@pytest.fixture(scope="module")
def authority(gateway: str, tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), gateway)


@pytest.fixture(scope="module")
def hub(authority: Authority, gateway: str) -> Iterator[HubServer]:
    with HubServer().run(authority, gateway) as server:
        # Pods know no other name of this machine.
        server.cdn = gateway
        files = {path.name: path.read_bytes() for path in cached_base().iterdir()}
        server.repositories["models", "tiny/base"] = HubRepository(
            commits={COMMIT: files}, revisions={"main": COMMIT}, token=TOKEN
        )
        yield server


@pytest.fixture(scope="module")
def s3(authority: Authority, gateway: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("set")
    make_export(folder, format="llava")
    with run_s3(authority, gateway) as endpoint, build_client(Network(ca_pem=authority.pem)) as client:
        make_bucket(client, endpoint)
        store = open_bucket(endpoint, authority)
        for path in folder.rglob("*"):
            if path.is_file():
                store.put_object(Bucket="trays", Key=f"set/{path.relative_to(folder)}", Body=path.read_bytes())
        yield endpoint


def make_bucket(client: httpx.Client, endpoint: str) -> None:
    client.put(f"{endpoint}/trays").raise_for_status()


def secret(name: str, **keys: str) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": keys}


LOOK = """
import json, os, sys
found = {}
for folder, _, files in os.walk("/llava/secrets"):
    for file in files:
        with open(os.path.join(folder, file)) as stream:
            found.setdefault(os.path.relpath(folder, "/llava/secrets"), {})[file] = stream.read()
json.dump(found, sys.stdout)
"""


def keys_seen_by(runs: Runs, pod: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Everything below the folder of Secrets, as a pod like this one finds it: by folder, with hidden files."""
    [container] = pod["spec"]["containers"]
    spec = {key: value for key, value in pod["spec"].items() if key not in ("nodeName", "hostname")}
    spec["containers"] = [{**container, "command": ["python3", "-c", LOOK]}]
    name = "looks-at-secrets"
    runs.kubectl.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
    runs.kubectl.run("wait", "--for=jsonpath={.status.phase}=Succeeded", f"pod/{name}", "--timeout=60s", timeout_s=70)
    found: dict[str, dict[str, str]] = json.loads(runs.kubectl.run("logs", name))
    runs.kubectl.run("delete", "pod", name, "--wait=false")
    return found


def test_run_fetches_its_inputs_once_its_secrets_are_there(
    runs: Runs, hub: HubServer, s3: str, authority: Authority
) -> None:
    runs.start(
        NAME,
        model={"source": "hf://tiny/base@main", "secretRef": {"name": "hub"}},
        dataset={"source": "s3://trays/set", "format": "llava", "secretRef": {"name": "s3"}},
        download={"hubEndpoint": hub.base, "caConfigMap": "authorities"},
    )  # fmt: skip

    def waits_for_secrets() -> bool:
        return any("it needs Secret hub, Secret s3, ConfigMap authorities" in one.message
                   for one in runs.status(NAME).stages)  # fmt: skip

    wait_for("the run to say what it waits for", waits_for_secrets, timeout_s=60)
    [prepare] = runs.pods(NAME, StageName.PREPARE)

    def told_by_the_kubelet() -> bool:
        events = runs.kubectl.list("events", "--field-selector", f"involvedObject.name={prepare['metadata']['name']}")
        told = " ".join(event["message"] for event in events if event["reason"] == "FailedMount")
        return all(f'secret "{name}" not found' in told for name in ("hub", "s3"))

    wait_for("the kubelet to name both Secrets", told_by_the_kubelet, timeout_s=60)
    [state] = [one["state"] for one in runs.pods(NAME, StageName.PREPARE)[0]["status"]["containerStatuses"]]
    assert state["waiting"]["reason"] == "ContainerCreating"
    runs.kubectl.apply(
        secret("hub", token=TOKEN, password="of another", known="none of a run's business"),
        secret("s3", endpoint=s3, accessKeyId=KEYS["access_key_id"], secretAccessKey=KEYS["secret_access_key"],
               token="of another"),
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "authorities"},
         "data": {"ca.crt": authority.pem}},
    )  # fmt: skip
    status = runs.wait_for_step(NAME, 1)
    assert stage_states(status)[StageName.PREPARE] is StageState.SUCCEEDED
    assert status.model is not None
    assert status.model.source == f"hf://tiny/base@{COMMIT}"
    assert "/api/models/tiny/base/revision/main" in {request.path for request in hub.requests}
    [prepare] = runs.pods(NAME, StageName.PREPARE)
    for pod in (prepare, *runs.pods(NAME, StageName.TRAIN)):
        mounted = {volume["name"] for volume in pod["spec"]["volumes"] if volume["name"].startswith("secret-")}
        assert mounted == ({"secret-model", "secret-dataset"} if pod is prepare else set())
    assert keys_seen_by(runs, prepare) == {
        "dataset": {"accessKeyId": KEYS["access_key_id"], "endpoint": s3, "secretAccessKey": KEYS["secret_access_key"]},
        "model": {"token": TOKEN},
    }
    runs.delete(NAME)
