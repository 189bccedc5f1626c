"""The publish stage to a hub and a registry, from a run that has ended well to what their users get."""

import io
import json
import logging
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_api.report import Published, PublishNumbers
from llava_trainer.publishing.model_layers import INDEX_TYPE, MANIFEST_TYPE
from llava_trainer.retrying import Patience
from llava_trainer.sources.fetching import Surroundings
from llava_trainer.stages import publish
from tests.trainer.evaluated import make_evaluated, publish_config
from tests.trainer.runs import Recorder
from tests.trainer.servers.authority import Authority
from tests.trainer.servers.hub_writing import WritableHub
from tests.trainer.servers.registry import PASSWORD, USERNAME, TokenService, run_registry
from tests.trainer.servers.relay import Relay

TOKEN = "hf_writes-of-a-test"


@dataclass(frozen=True, kw_only=True)
class World:
    """A hub and a registry with its token service, each behind TLS."""

    hub: WritableHub
    hub_relay: Relay
    registry: str
    registry_relay: Relay
    tokens: TokenService


@pytest.fixture(scope="module")
def world(
    docker_registry: Path, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:  # fmt: skip
    folder = tmp_path_factory.mktemp("registry")
    with (
        WritableHub().run() as hub,
        Relay(hub.base).run(authority) as hub_relay,
        TokenService(folder).run(authority) as tokens,
        run_registry(docker_registry, folder, tokens.auth()) as registry,
        Relay(registry).run(authority) as registry_relay,
    ):
        hub.tokens = {TOKEN: True}
        yield World(
            hub=hub, hub_relay=hub_relay, registry=registry, registry_relay=registry_relay, tokens=tokens
        )  # fmt: skip


def test_both_models_to_a_hub_and_a_registry(
    world: World, authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    root = tmp_path / "run"
    make_evaluated(root)
    secrets = root / "secrets"
    host = world.registry_relay.base.partition("://")[2]
    for folder, keys in (
        ("publish-0", {"token": TOKEN}),
        (
            "publish-1",
            {".dockerconfigjson": json.dumps({"auths": {host: {"username": USERNAME, "password": PASSWORD}}})},
        ),
    ):
        (secrets / folder).mkdir(parents=True)
        for key, value in keys.items():
            (secrets / folder / key).write_text(value)
    destinations = [
        {"address": "hf://team/trays", "secretRef": {"name": "hub"}},
        {"address": f"oci://{host}/team/trays:1", "secretRef": {"name": "registry"}},
    ]

    def run(attempt: int) -> tuple[Published, ...]:
        for relay in (world.hub_relay, world.registry_relay):
            relay.begin()
        config = publish_config(root, attempt=attempt, destinations=destinations, what="both")
        config = config.model_copy(
            update={"download": config.download.model_copy(update={"hub_endpoint": world.hub_relay.base})}
        )
        around = Surroundings(
            secrets=secrets, ca_file=authority.ca_file, environ={}, patience=Patience(tries=2, first_s=0, most_s=0)
        )
        with Recorder(config) as reporter:
            output = publish.run(config, reporter, around)
        assert isinstance(output.numbers, PublishNumbers)
        return output.numbers.published

    told = run(1)
    assert [(one.destination, one.what) for one in told] == [
        (0, "merged"), (0, "adapter"), (1, "merged"), (1, "adapter")
    ]  # fmt: skip
    files = world.hub.repositories["team/trays"].files()
    assert told[1].revision == world.hub.repositories["team/trays"].branches["main"]
    merged = {name: body for name, body in files.items() if not name.startswith("adapter/")}
    adapter = {name.removeprefix("adapter/"): body for name, body in files.items() if name.startswith("adapter/")}
    assert unpack(world, "1") == merged
    assert unpack(world, "1-adapter") == adapter
    write(tmp_path / "pulled", merged)
    AutoModelForImageTextToText.from_pretrained(tmp_path / "pulled")
    AutoProcessor.from_pretrained(tmp_path / "pulled")

    again = run(2)
    assert [one.model_copy(update={"sent_bytes": 0}) for one in again] == [
        one.model_copy(update={"sent_bytes": 0, "revision": one.revision if one.destination else told[1].revision})
        for one in told
    ]
    assert {one.sent_bytes for one in again} == {0}
    requests = [*world.hub_relay.requests, *world.registry_relay.requests]
    assert {request.method for request in requests} == {"GET"}
    texts = [
        caplog.text,
        *(path.read_text(errors="replace") for path in (root / "attempts").rglob("*") if path.is_file()),
    ]
    secret = [TOKEN, PASSWORD, *world.tokens.given]
    assert not [one for one in secret for text in texts if one in text]


def unpack(world: World, tag: str) -> dict[str, bytes]:
    """The files of an artifact, as the registry itself has them."""
    token = world.tokens.give("team/trays", "pull")

    def get(path: str) -> bytes:
        headers = {"Authorization": f"Bearer {token}", "Accept": f"{MANIFEST_TYPE}, {INDEX_TYPE}"}
        with urlopen(Request(f"{world.registry}/v2/team/trays/{path}", headers=headers)) as response:
            content: bytes = response.read()
            return content

    found = {}
    for layer in json.loads(get(f"manifests/{tag}"))["layers"]:
        with tarfile.open(fileobj=io.BytesIO(get(f"blobs/{layer['digest']}"))) as archive:
            for entry in archive:
                if entry.isfile():
                    found[entry.name.removeprefix("models/")] = (archive.extractfile(entry) or io.BytesIO()).read()
    return found


def write(folder: Path, files: dict[str, bytes]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, body in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(body)
