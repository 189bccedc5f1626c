"""Whole sources from real local servers: a hub, S3 (moto), files behind TLS; by a proxy, with an authority of ours.

What is fetched is what is needed, from where it was said, with the credentials meant for it; what an earlier attempt
has fetched is not fetched again; every refusal names the field, the address and the fix.
"""

import functools
import hashlib
import io
import itertools
import json
import logging
import os
import shutil
import signal
import tarfile
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from urllib.parse import parse_qs

import httpx
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _detect_agent

from llava_api.constants import StageName
from llava_api.failures import Reason
from llava_api.run_config import RunConfig
from llava_trainer.errors import StageError
from llava_trainer.files import sync_file_system
from llava_trainer.outcome import Interrupted
from llava_trainer.retrying import Patience, Retrier
from llava_trainer.sources import downloads, journal, network
from llava_trainer.sources.address import BucketAddress
from llava_trainer.sources.bucket import Bucket
from llava_trainer.sources.credentials import read_credentials
from llava_trainer.sources.downloads import make_catalogue
from llava_trainer.sources.fetching import Input, Surroundings, fetch_inputs
from llava_trainer.sources.network import Network, build_client
from llava_trainer.sources.progress import Progress
from llava_trainer.sources.remote import Listed, RemoteFile
from llava_trainer.sources.transfer import Downloader
from tests.trainer.runs import Recorder, run_config
from tests.trainer.servers.authority import Authority
from tests.trainer.servers.echo import ECHOES, run_echo
from tests.trainer.servers.files import Answer, Fault, FileServer
from tests.trainer.servers.hub import HubRepository, HubServer
from tests.trainer.servers.proxy import Proxy
from tests.trainer.servers.s3 import KEYS, open_bucket, run_s3, upload_in_parts

COMMIT, NEWER = "c" * 40, "d" * 40
WEIGHTS = b"weights in safetensors" * 1000
MODEL = {
    "config.json": b'{"text_config": {}, "vision_config": {}}',
    "generation_config.json": b"{}",
    "tokenizer.json": b"a tokenizer",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"a pickle of the same weights",
    "training_args.bin": b"a pickle of arbitrary objects",
    "modeling_evil.py": b"raise SystemExit",
    "tf_model.h5": b"another format",
    "onnx/model.onnx": b"yet another format",
    "README.md": b"read me",
}
NEEDED = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
IMAGES = {f"images/{name}": f"picture {name}".encode() for name in ("a.jpg", "sub/b ü#?.jpg", "c.jpg")}
ENTRIES = [
    {"id": str(index), "image": name, "conversations": [{"from": "human", "value": "<image>\nWhat?"},
                                                        {"from": "gpt", "value": "That."}]}
    for index, name in enumerate(["a.jpg", "sub/b ü#?.jpg", "gone.jpg", "../../outside.jpg"])
]  # fmt: skip
DATASET = {
    "train.json": json.dumps(ENTRIES).encode(),
    "validation.json": json.dumps(ENTRIES[:1]).encode(),
    "images/unnamed.jpg": b"no sample names it",
    "script.py": b"raise SystemExit",
    **IMAGES,
}
FETCHED = ["images/a.jpg", "images/c.jpg", "images/sub/b ü#?.jpg", "train.json", "validation.json"]


class World:
    """A run, and what the operator puts around it."""

    def __init__(self, root: Path, authority: Authority) -> None:
        self.root = root
        self.attempt = 1
        for name in ("base", "data"):  # The operator mounts the claims of model and dataset.
            (root / name).mkdir(exist_ok=True)
        self.secrets = root / "secrets"
        self.ca_file = authority.ca_file
        self.download: dict[str, Any] = {}
        self.environ: dict[str, str] = {}
        self.model: dict[str, Any] = {}
        self.alignment: dict[str, Any] | None = None
        self.mixture: list[dict[str, Any]] = []
        self.dataset: dict[str, Any] = {
            "source": "pvc://data/", "format": "llava", "file": "train.json", "images": "images",
            "validation": {"file": "validation.json"},
        }  # fmt: skip
        self.evaluation: dict[str, Any] = {"prompts": [{"text": "What is it?", "image": "c.jpg"}, {"text": "Hello"}]}

    def secret(self, role: str, **keys: str) -> None:
        for key, value in keys.items():
            (self.secrets / role).mkdir(parents=True, exist_ok=True)
            (self.secrets / role / key).write_text(value + "\n")

    @property
    def config(self) -> RunConfig:
        run = {"attempt": self.attempt}
        plain = run_config(self.root, StageName.PREPARE, run=run, evaluation=self.evaluation).model_dump()
        plain |= {"model": self.model, "dataset": self.dataset, "download": self.download, "alignment": self.alignment}
        # As where nobody has said where they are mounted: below the claims.
        dirs = [self.root / "claims" / part["dataset"]["source"].partition("://")[2] for part in self.mixture]
        plain |= {"mixture": self.mixture, "mixtureDirs": dirs}
        return RunConfig.model_validate(plain)

    def fetch(self) -> dict[str, Input]:
        config = self.config
        config.volume_root.mkdir(parents=True, exist_ok=True)
        self.recorder = Recorder(config)
        around = Surroundings(
            secrets=self.secrets, ca_file=self.ca_file, claims=self.root / "claims", environ=self.environ,
            patience=Patience(tries=3, first_s=0.01, most_s=0.02),
        )  # fmt: skip
        return fetch_inputs(config, self.recorder, around)

    def failure(self) -> StageError:
        with pytest.raises(StageError) as caught:
            self.fetch()
        return caught.value


@pytest.fixture
def world(tmp_path: Path, authority: Authority) -> World:
    return World(tmp_path, authority)


def set_when(event: threading.Event, holds: Callable[[], bool]) -> None:
    for _ in range(2000):
        if holds():
            break
        time.sleep(0.01)
    event.set()


def names_in(folder: Path) -> list[str]:
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in files if not name.startswith("."))


def assert_same(folder: Path, expected: dict[str, bytes], names: list[str]) -> None:
    assert names_in(folder) == names
    for name in names:
        assert (folder / name).read_bytes() == expected[name]


# --- the hub


@pytest.fixture
def hub_server(authority: Authority, world: World) -> Iterator[HubServer]:
    with HubServer().run(authority) as server:
        server.repositories["models", "llava-hf/tiny"] = HubRepository(
            commits={COMMIT: MODEL, NEWER: {**MODEL, "tokenizer.json": b"a newer tokenizer"}},
            revisions={"main": COMMIT, "v1": COMMIT},
        )
        server.repositories["datasets", "me/set"] = HubRepository(commits={COMMIT: DATASET}, revisions={"main": COMMIT})
        world.download["hub_endpoint"] = server.base
        yield server


def test_model_of_the_hub(world: World, hub_server: HubServer) -> None:
    world.model["source"] = "hf://llava-hf/tiny"
    found = world.fetch()["model"]
    assert found.origin == f"hf://llava-hf/tiny@{COMMIT}"
    assert found.path == world.root / "volume" / "attempts" / "prepare-1" / "inputs" / "downloads" / "model"
    assert_same(found.path, MODEL, NEEDED)
    total = sum(len(MODEL[name]) for name in NEEDED)
    assert world.recorder.steps[-1] == (total, total)


def test_pickles_come_where_there_is_nothing_better(world: World, hub_server: HubServer) -> None:
    files = {name: content for name, content in MODEL.items() if name != "model.safetensors"}
    hub_server.repositories["models", "llava-hf/tiny"].commits[COMMIT] = files
    world.model["source"] = "hf://llava-hf/tiny"
    assert names_in(world.fetch()["model"].path) == sorted({*NEEDED, "pytorch_model.bin"} - {"model.safetensors"})


def test_dataset_of_the_hub(world: World, hub_server: HubServer) -> None:
    world.dataset["source"] = "hf://me/set@main"
    found = world.fetch()["dataset"]
    assert found.origin == f"hf://me/set@{COMMIT}"
    assert_same(found.path, DATASET, FETCHED)


def test_images_in_an_archive_beside_the_dataset(world: World, hub_server: HubServer) -> None:
    """As LLaVA's own datasets are on the hub."""
    images = {name.removeprefix("images/"): content for name, content in IMAGES.items()}
    files = {name: content for name, content in DATASET.items() if not name.startswith("images/")}
    repository = hub_server.repositories["datasets", "me/set"]
    repository.commits[COMMIT] = {**files, "images.zip": make_zip(images), "other.zip": b"not needed"}
    world.dataset["source"] = "hf://me/set"
    found = world.fetch()["dataset"]
    assert_same(found.path, DATASET, FETCHED)
    hub_server.requests.clear()
    world.fetch()
    assert not [request for request in hub_server.requests if "/resolve/" in request.path]


def test_archive_of_images_that_no_setting_names(
    world: World, hub_server: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    files = {name: content for name, content in DATASET.items() if not name.startswith("images/")}
    repository = hub_server.repositories["datasets", "me/set"]
    repository.commits[COMMIT] = {**files, "images.zip": make_zip({"a.jpg": b"picture"}), "more.zip": b"not asked for"}
    world.dataset |= {"source": "hf://me/set", "images": ""}
    error = world.failure()
    assert error.reason is Reason.SOURCE_REFUSED
    assert error.message == (
        f"spec.dataset.source: hf://me/set@{COMMIT} holds none of the 4 pictures that train.json names; it holds "
        "images.zip: set spec.dataset.images to images, and it is unpacked"
    )
    # Where some are there, the others are the checks' business; the hint stands in the log, whose end they show.
    repository.commits[COMMIT]["a.jpg"] = b"picture"
    assert (world.fetch()["dataset"].path / "a.jpg").is_file()
    assert (
        "lacks 3 pictures; the checks name them; it holds images.zip: set spec.dataset.images to images" in caplog.text
    )
    del repository.commits[COMMIT]["images.zip"], repository.commits[COMMIT]["more.zip"]
    caplog.clear()
    world.fetch()
    assert caplog.text.rstrip().endswith("lacks 3 pictures; the checks name them")


def test_token_of_the_secret_opens_a_private_repository(world: World, hub_server: HubServer) -> None:
    hub_server.repositories["models", "llava-hf/tiny"].token = "hf_secret"
    world.model["source"] = "hf://llava-hf/tiny"
    error = world.failure()
    assert error.reason is Reason.SOURCE_REFUSED
    assert "spec.model.source: hf://llava-hf/tiny does not exist as a model repository, or is private" in error.message
    assert "put a token that may read it into spec.model.secretRef (key token)" in error.message
    world.secret("model", token="hf_wrong")
    assert "HTTP 403: the credentials in spec.model.secretRef may not read it" in world.failure().message
    world.secret("model", token="hf_secret")
    assert_same(world.fetch()["model"].path, MODEL, NEEDED)


def test_token_on_the_machine_is_not_sent(
    world: World, hub_server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_someone_else")
    world.model["source"] = "hf://llava-hf/tiny"
    world.fetch()
    assert {request.authorization for request in hub_server.requests} == {None}


def test_commit_stays_that_of_the_first_attempt(world: World, hub_server: HubServer) -> None:
    world.model["source"] = "hf://llava-hf/tiny@v1"
    others = threading.Event()
    late = Fault(silent=others, status=503)
    hub_server.faults["/llava-hf/tiny/resolve/" + COMMIT + "/tokenizer.json"] = [Fault(status=503)] * 2 + [late]
    weights = world.config.volume.download_dir("model") / "model.safetensors"
    threading.Thread(target=lambda: set_when(others, weights.exists), daemon=True).start()
    assert world.failure().reason is Reason.SOURCE_UNAVAILABLE
    hub_server.repositories["models", "llava-hf/tiny"].revisions["v1"] = NEWER
    hub_server.requests.clear()
    found = world.fetch()["model"]
    assert found.origin.endswith(COMMIT)
    assert_same(found.path, MODEL, NEEDED)
    asked = [request.path for request in hub_server.requests]
    assert not [path for path in asked if "/revision/" in path]
    assert not [path for path in asked if path.endswith(hashlib.sha256(WEIGHTS).hexdigest())], "they were there already"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"source": "hf://llava-hf/none"}, "hf://llava-hf/none does not exist as a model repository"),
        ({"source": "hf://me/set"}, "hf://me/set does not exist as a model repository"),
        ({"source": "hf://llava-hf/tiny@v9"}, "hf://llava-hf/tiny has no revision 'v9': name a branch, tag or commit"),
        ({"source": "hf://llava-hf/gated"}, "is gated: accept its terms on the hub and put a token of that account"),
        ({"source": "hf://llava-hf/empty"}, "holds no file of a model"),
        ({"source": "hf://llava-hf/evil"}, "'../evil/config.json', which is no name below a folder"),
    ],
)
def test_what_the_hub_does_not_have(world: World, hub_server: HubServer, change: dict[str, Any], told: str) -> None:
    main = {"main": COMMIT}
    for name, files, gated in (("gated", MODEL, True), ("empty", {"a.txt": b""}, False)):
        hub_server.repositories["models", f"llava-hf/{name}"] = HubRepository(
            commits={COMMIT: files}, revisions=main, gated=gated
        )
    hub_server.repositories["datasets", "llava-hf/evil"] = HubRepository(
        commits={COMMIT: {"images/../../evil": b"x", "../evil/config.json": b"x"}}, revisions=main
    )
    if change["source"].endswith("evil"):
        world.dataset |= {"source": change["source"], "images": ""}
    else:
        world.model |= change
    error = world.failure()
    assert error.reason is Reason.SOURCE_REFUSED
    assert error.message.startswith(("spec.model.source: ", "spec.dataset.source: "))
    assert told in error.message


@pytest.mark.parametrize("name", ["model.safetensors", "added_tokens.json"])
def test_content_that_is_not_what_the_hub_promised(world: World, hub_server: HubServer, name: str) -> None:
    """A file of LFS by its sha256, a small one by git's own hash."""
    repository = hub_server.repositories["models", "llava-hf/tiny"]
    repository.commits[COMMIT] = {**MODEL, "added_tokens.json": b'{"a": 1}'}
    repository.lies_about.add(name)
    world.model["source"] = "hf://llava-hf/tiny"
    error = world.failure()
    assert error.reason is Reason.SOURCE_REFUSED
    assert f"spec.model.source: hf://llava-hf/tiny@{COMMIT}/{name} is not what it should be" in error.message


def test_hub_that_has_trouble_is_tried_again(world: World, hub_server: HubServer) -> None:
    hub_server.faults["/api/models/llava-hf/tiny/revision/main"] = [Fault(status=502)]
    hub_server.faults[f"/api/models/llava-hf/tiny/tree/{COMMIT}"] = [Fault(status=429)]
    world.model["source"] = "hf://llava-hf/tiny@main"
    assert_same(world.fetch()["model"].path, MODEL, NEEDED)
    world.download["hub_endpoint"] = "https://127.0.0.1:1"
    world.model["source"] = "hf://llava-hf/other"
    error = world.failure()
    assert error.reason is Reason.SOURCE_UNAVAILABLE
    assert "spec.model.source: hf://llava-hf/other could not be fetched" in error.message


def test_endpoint_of_the_environment(world: World, hub_server: HubServer) -> None:
    world.environ["HF_ENDPOINT"] = world.download.pop("hub_endpoint")
    world.model["source"] = "hf://llava-hf/tiny"
    assert world.fetch()["model"].origin.endswith(COMMIT)


# --- S3


@pytest.fixture(scope="module")
def s3(authority: Authority) -> Iterator[str]:
    with run_s3(authority) as endpoint, build_client(Network(ca_pem=authority.pem)) as client:
        assert client.put(f"{endpoint}/bucket").status_code == 200
        put = functools.partial(open_bucket(endpoint, authority).put_object, Bucket="bucket")
        for name, content in MODEL.items():
            put(Key=f"a model/{name}", Body=content, ACL="public-read")
        for name, content in DATASET.items():
            put(Key=f"set/{name}", Body=content)
        put(Key="set/", Body=b"")
        put(Key="odd//model.safetensors", Body=b"odd")
        put(Key="odd/config.json", Body=b"{}")
        put(Key="set2/train.json", Body=b"of another folder")
        put(Key="large/config.json", Body=b"{}")
        upload_in_parts(open_bucket(endpoint, authority), "large/model.safetensors", b"12345678" * (1 << 20))
        yield endpoint


@pytest.fixture
def s3_world(world: World, s3: str) -> World:
    for role in ("model", "dataset"):
        world.secret(
            role, endpoint=s3, region="us-east-1", accessKeyId=KEYS["access_key_id"],
            secretAccessKey=KEYS["secret_access_key"], sessionToken="session",
        )  # fmt: skip
    return world


def test_model_and_dataset_of_s3(s3_world: World) -> None:
    s3_world.model["source"] = "s3://bucket/a model/"
    s3_world.dataset["source"] = "s3://bucket/set"
    found = s3_world.fetch()
    assert_same(found["model"].path, MODEL, NEEDED)
    assert_same(found["dataset"].path, DATASET, FETCHED)
    assert found["dataset"].origin == "s3://bucket/set"


def test_key_that_is_no_plain_path_is_put_where_it_leads(s3_world: World) -> None:
    s3_world.model["source"] = "s3://bucket/odd"
    folder = s3_world.fetch()["model"].path
    assert names_in(folder) == ["config.json"]
    s3_world.model["source"] = "s3://bucket/odd/"
    s3_world.dataset |= {"source": "s3://bucket", "file": "odd/model.safetensors", "images": "odd", "validation": {}}
    assert names_in(s3_world.fetch()["dataset"].path) == ["odd/model.safetensors"]


def test_bucket_without_keys_is_asked_anonymously(world: World, s3: str) -> None:
    world.secret("model", endpoint=s3)
    world.model["source"] = "s3://bucket/a model"
    assert_same(world.fetch()["model"].path, MODEL, NEEDED)


def test_object_that_was_uploaded_in_parts_has_no_md5(s3_world: World) -> None:
    s3_world.model["source"] = "s3://bucket/large"
    folder = s3_world.fetch()["model"].path
    assert (folder / "model.safetensors").stat().st_size == 8 << 20


def test_object_that_changes_between_listing_and_fetching(
    s3_world: World, s3: str, authority: Authority, tmp_path: Path
) -> None:
    """Of the same size, and without a digest: uploaded in parts."""
    writer = open_bucket(s3, authority)
    upload_in_parts(writer, "moving/model.safetensors", b"12345678" * (1 << 20))
    credentials = read_credentials(s3_world.secrets / "model", "spec.model.secretRef")
    way_out = build_client(Network(ca_pem=authority.pem))
    folder = tmp_path / "fetched"
    folder.mkdir()
    once = Retrier(what="it", patience=Patience(tries=1), stop=threading.Event())
    bucket = Bucket(BucketAddress(bucket="bucket", prefix="moving"), credentials, way_out, "spec.model.source", once)
    [found] = bucket.list_files()
    listed = bucket.locate(found)
    assert listed.digest is None
    upload_in_parts(writer, "moving/model.safetensors", b"87654321" * (1 << 20))
    with journal.Journal(folder) as fetched, pytest.raises(StageError) as caught:
        Downloader(
            client=way_out, field="spec.model.source", volume=tmp_path, progress=Progress(Recorder(s3_world.config)),
            patience=Patience(tries=1), stop=threading.Event(),
        ).fetch(listed, fetched)  # fmt: skip
    assert caught.value.reason is Reason.SOURCE_UNAVAILABLE
    assert "s3://bucket/moving/model.safetensors has changed since it was listed" in caught.value.message
    assert names_in(folder) == []


def test_signatures_and_keys_stand_in_no_log(s3_world: World, caplog: pytest.LogCaptureFixture) -> None:
    s3_world.model["source"] = "s3://bucket/a model"
    with caplog.at_level(logging.INFO):
        s3_world.fetch()
    assert "fetching 4 files of spec.model.source s3://bucket/a model" in caplog.text
    for secret in ("Signature", "Credential", "secret-key", "key-id", "session"):
        assert secret not in caplog.text


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("s3://nobucket/x", "s3://nobucket/x at https://127.0.0.1"),
        ("s3://bucket/none", "spec.dataset.source: s3://bucket/none does not hold train.json, validation.json"),
        ("s3://bucket/a model", "it holds "),
    ],
)
def test_what_s3_does_not_have(s3_world: World, source: str, told: str) -> None:
    s3_world.dataset |= {"source": source, "images": ""}
    error = s3_world.failure()
    assert error.reason is Reason.SOURCE_REFUSED
    assert told in error.message
    assert "Signature" not in error.message


@pytest.mark.parametrize(
    ("answer", "reason", "told"),
    [
        ((403, "AccessDenied"), Reason.SOURCE_REFUSED, "may not read it"),
        (
            (400, "AuthorizationHeaderMalformed"),
            Reason.SOURCE_REFUSED,
            "is in another region than key region of spec.model.secretRef says",
        ),
        ((503, "SlowDown"), Reason.SOURCE_UNAVAILABLE, "3 times in a row: "),
    ],
)
def test_s3_that_refuses(
    world: World, authority: Authority, answer: tuple[int, str], reason: Reason, told: str
) -> None:
    """A server that has but one answer."""

    class Refusing(FileServer):
        def answer(self, request: Any) -> Any:
            body = f"<Error><Code>{answer[1]}</Code></Error>".encode()
            return Answer(status=answer[0], body=body, headers={"Content-Type": "application/xml"})

    with Refusing().run(authority) as server:
        world.secret("model", endpoint=server.base)
        world.model["source"] = "s3://bucket/model"
        error = world.failure()
    assert error.reason is reason
    assert "spec.model.source: s3://bucket/model" in error.message
    assert told in error.message


def test_s3_with_a_strange_certificate(world: World, s3: str) -> None:
    world.secret("model", endpoint=s3)
    world.model["source"] = "s3://bucket/model"
    world.ca_file = world.root / "none"
    error = world.failure()
    assert error.reason is Reason.SOURCE_UNAVAILABLE
    assert "spec.download.caConfigMap" in error.message


def test_nobody_at_the_s3_endpoint(world: World) -> None:
    world.secret("model", endpoint="https://127.0.0.1:1")
    world.model["source"] = "s3://bucket/model"
    error = world.failure()
    assert error.reason is Reason.SOURCE_UNAVAILABLE
    assert "could not be fetched, 3 times in a row: ConnectError" in error.message


@pytest.mark.parametrize("endpoint", ["minio:9000", "ftp://minio", "https://me:secret@minio"])
def test_endpoint_that_is_no_address(world: World, endpoint: str) -> None:
    world.secret("model", endpoint=endpoint)
    world.model["source"] = "s3://bucket/model"
    message = world.failure().message
    assert "spec.model.secretRef: key endpoint of the Secret must be an address" in message
    assert "secret@" not in message


# --- https


@pytest.fixture
def web(authority: Authority) -> Iterator[FileServer]:
    with FileServer().run(authority) as server:
        for prefix, files in (("/model/", MODEL), ("/set/", DATASET)):
            for name, content in files.items():
                server.add(prefix + name, content)
        yield server


def test_folders_behind_https(world: World, web: FileServer) -> None:
    world.model["source"] = f"{web.base}/model/"
    world.dataset["source"] = f"{web.base}/set/"
    found = world.fetch()
    assert_same(found["model"].path, MODEL, NEEDED)
    assert_same(found["dataset"].path, DATASET, FETCHED)
    assert "/set/images/unnamed.jpg" not in {request.path for request in web.requests}
    web.requests.clear()
    world.fetch()
    missing = {request.path for request in web.requests}
    assert not missing & set(web.files), "only what was missing is asked for again"


def test_files_are_on_the_disk_before_the_journal_ends_and_all_at_once(
    world: World, web: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync for each of half a million images would take hours; without any, a crash would take what was fetched."""
    folder = world.config.volume.download_dir("dataset")
    state = journal.state_of(folder)
    synced: list[list[str]] = []
    fsync = os.fsync

    def note_file(descriptor: int) -> None:
        synced.append([str(Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(state))])
        fsync(descriptor)

    def note_everything(where: Path) -> None:
        assert where == folder
        synced.append(names_in(folder))
        sync_file_system(where)

    monkeypatch.setattr(os, "fsync", note_file)
    monkeypatch.setattr(journal, "sync_file_system", note_everything)
    world.dataset["source"] = f"{web.base}/set/"
    world.fetch()
    assert synced == [FETCHED, [journal.JOURNAL]]


def test_a_failure_is_told_at_once_whatever_has_come_in(
    world: World, web: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(where: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(journal, "sync_file_system", refuse)
    web.faults["/set/images/a.jpg"] = [Fault(status=403)]
    world.dataset["source"] = f"{web.base}/set/"
    assert "HTTP 403" in world.failure().message
    with pytest.raises(OSError, match="No space left"):
        world.fetch()


def test_sharded_model_behind_https(world: World, web: FileServer) -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    del web.files["/model/model.safetensors"]
    places = dict(zip("abc", [*shards, "../outside.bin"], strict=True))
    web.add("/model/model.safetensors.index.json", json.dumps({"weight_map": places}).encode())
    for shard in shards:
        web.add(f"/model/{shard}", shard.encode())
    world.model["source"] = f"{web.base}/model/"
    assert set(shards) < set(names_in(world.fetch()["model"].path))
    assert "/model/pytorch_model.bin" not in {request.path for request in web.requests}


@pytest.mark.parametrize("kept", [["pytorch_model.bin"], ["mm_projector.bin"], []])
def test_pickles_behind_https_where_there_is_nothing_better(world: World, web: FileServer, kept: list[str]) -> None:
    del web.files["/model/model.safetensors"], web.files["/model/pytorch_model.bin"]
    for name in kept:
        web.add(f"/model/{name}", b"a pickle")
    world.model["source"] = f"{web.base}/model/"
    if kept:
        assert set(kept) < set(names_in(world.fetch()["model"].path))
    else:
        error = world.failure()
        assert error.reason is Reason.SOURCE_REFUSED
        assert "holds neither model.safetensors nor pytorch_model.bin nor a part of a model" in error.message


def test_projector_is_one_file(world: World, web: FileServer) -> None:
    content = web.add("/p/mm_projector.bin", b"a pickle")
    world.model["projector"] = f"{web.base}/p/mm_projector.bin#sha256={hashlib.sha256(content).hexdigest()}"
    found = world.fetch()["projector"]
    assert found.path.read_bytes() == content
    assert found.origin == f"{web.base}/p/mm_projector.bin"


@pytest.mark.parametrize(
    ("keys", "header"),
    [
        ({"username": "me", "password": "se cret"}, "Basic bWU6c2UgY3JldA=="),
        ({"bearer": "token"}, "Bearer token"),
    ],
)
def test_credentials_of_https(world: World, web: FileServer, keys: dict[str, str], header: str) -> None:
    web.password = header
    world.dataset["source"] = f"{web.base}/set/"
    assert "HTTP 401" in world.failure().message
    world.secret("dataset", **keys)
    assert_same(world.fetch()["dataset"].path, DATASET, FETCHED)


def make_zip(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def make_tar(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


@pytest.mark.parametrize("name", ["set.zip", "set.tar", "set.tar.gz", "SET.TGZ"])
@pytest.mark.parametrize("top", ["", "set-main/"])
def test_archives(world: World, web: FileServer, name: str, top: str) -> None:
    files = {top + path: content for path, content in DATASET.items()}
    content = make_zip(files) if name == "set.zip" else make_tar(files, "w" if name == "set.tar" else "w:gz")
    web.add(f"/{name}", content)
    world.dataset["source"] = f"{web.base}/{name}?signature=secret#sha256={hashlib.sha256(content).hexdigest()}"
    found = world.fetch()["dataset"]
    assert_same(found.path, DATASET, sorted(DATASET))
    assert found.origin == f"{web.base}/{name}", "without what may be a signature"
    keep = world.config.volume.download_dir("dataset-archive")
    assert names_in(keep) == ["unpacked.json"], "its content is enough"
    web.requests.clear()
    assert world.fetch()["dataset"] == found
    assert web.requests == []


@pytest.mark.parametrize("others", [("__MACOSX/set/._train.json", ".DS_Store"), ("other/train.json",)])
def test_what_else_lies_in_an_archive_hides_the_dataset_only_if_it_is_one(
    world: World, web: FileServer, others: tuple[str, ...]
) -> None:
    """macOS adds to what is packed; of two datasets none is guessed."""
    web.add(
        "/set.zip",
        make_zip({f"set/{path}": content for path, content in DATASET.items()} | dict.fromkeys(others, b"x")),
    )
    world.dataset["source"] = f"{web.base}/set.zip"
    found = world.fetch()["dataset"].path
    assert (found.name == "set") is ("other/train.json" not in others)


def test_archive_that_does_not_match_its_digest(world: World, web: FileServer) -> None:
    web.add("/set.zip", make_zip(DATASET))
    world.dataset["source"] = f"{web.base}/set.zip#sha256={'0' * 64}"
    error = world.failure()
    assert error.reason is Reason.SOURCE_REFUSED
    assert f"instead of {'0' * 64}, fetched" not in error.message
    assert "its sha256 is " in error.message


def test_https_that_lacks_the_dataset(world: World, web: FileServer) -> None:
    del web.files["/set/train.json"]
    world.dataset["source"] = f"{web.base}/set/"
    error = world.failure()
    assert error.reason is Reason.SOURCE_REFUSED
    assert "/set/ does not hold train.json: correct spec.dataset.file or source" in error.message


def lines(*images: str) -> bytes:
    return "\n".join(json.dumps({"image": image, "q": "Q", "a": "A"}) for image in images).encode()


SHARDS = {
    "data/train-0.jsonl": lines("a.jpg"),
    "data/train-1.jsonl": lines("sub/b ü#?.jpg", "data:image/png;base64,UE5H"),
    "data/test-0.jsonl": lines("unnamed.jpg"),
    **IMAGES,
}
SHARDED = {
    "format": "table", "file": "data/train-*.jsonl", "validation": {"fraction": 0.1},
    "table": {"image": "image", "question": "q", "answer": "a"},
}  # fmt: skip


def test_shards_of_the_hub_that_a_pattern_names(world: World, hub_server: HubServer) -> None:
    hub_server.repositories["datasets", "me/set"].commits[COMMIT] = SHARDS
    world.dataset |= {"source": "hf://me/set", **SHARDED}
    fetched = sorted([*IMAGES, "data/train-0.jsonl", "data/train-1.jsonl"])
    assert_same(world.fetch()["dataset"].path, SHARDS, fetched)
    world.dataset["file"] = "data/valid-*.jsonl"
    error = world.failure()
    assert error.reason is Reason.SOURCE_REFUSED
    assert "does not hold data/valid-*.jsonl; it holds " in error.message


def test_shards_in_an_archive_are_found_in_its_folder(world: World, web: FileServer) -> None:
    web.add("/set.zip", make_zip({f"set/{path}": content for path, content in SHARDS.items()}))
    world.dataset |= {"source": f"{web.base}/set.zip", **SHARDED}
    assert world.fetch()["dataset"].path.name == "set"


def test_shards_of_a_server_that_lists_nothing_are_refused(world: World, web: FileServer) -> None:
    world.dataset |= {"source": f"{web.base}/set/", **SHARDED}
    error = world.failure()
    assert error.reason is Reason.SOURCE_REFUSED
    assert "does not tell which files it holds, so that data/train-*.jsonl cannot be matched: name one" in error.message


# --- what is sent to whom


TOKEN = "hf_secret"
SESSION = "session-token-of-sts"


def keys_of(server: FileServer) -> dict[str, str]:
    return {
        "endpoint": server.base, "accessKeyId": "AKIDEXAMPLE", "secretAccessKey": "SECRETKEY", "sessionToken": SESSION,
    }  # fmt: skip


def assert_nothing_secret(server: FileServer) -> None:
    for request in server.requests:
        sent = " ".join([request.path, request.query, *request.headers.values()])
        for secret in (TOKEN, SESSION, "AKIDEXAMPLE", "SECRETKEY"):
            assert secret not in sent


def test_token_does_not_follow_a_listing_to_another_address(
    world: World, hub_server: HubServer, authority: Authority
) -> None:
    """A page may say that the next one is anywhere."""
    hub_server.repositories["models", "llava-hf/tiny"].token = TOKEN
    hub_server.page_size = 3
    world.secret("model", token=TOKEN)
    world.model["source"] = "hf://llava-hf/tiny"
    with FileServer().run(authority) as other:
        hub_server.pages_at = other.base
        error = world.failure()
        assert_nothing_secret(other)
    assert error.reason is Reason.SOURCE_REFUSED
    assert "spec.model.source: hf://llava-hf/tiny: the hub at 127.0.0.1 sends on to 127.0.0.1:" in error.message
    assert "set spec.download.hubEndpoint to it" in error.message


def test_token_does_not_follow_a_redirect_of_the_hub_to_another_address(
    world: World, hub_server: HubServer, authority: Authority
) -> None:
    world.secret("model", token=TOKEN)
    world.model["source"] = "hf://llava-hf/tiny"
    with FileServer().run(authority) as other:
        path = "/api/models/llava-hf/tiny"
        hub_server.faults[path] = [Fault(status=302, headers={"Location": f"{other.base}{path}"})]
        assert "HTTP 404" in world.failure().message
        assert [request.path for request in other.requests] == [path]
        assert_nothing_secret(other)


def test_listing_of_several_pages_goes_on_where_it_broke_off(world: World, hub_server: HubServer) -> None:
    hub_server.page_size = 3
    path = f"/api/models/llava-hf/tiny/tree/{COMMIT}"
    hub_server.faults[path] = [Fault(), Fault(break_after=5), Fault(status=503), Fault()]
    world.model["source"] = "hf://llava-hf/tiny"
    assert_same(world.fetch()["model"].path, MODEL, NEEDED)
    asked = [parse_qs(request.query).get("cursor", ["0"])[0] for request in hub_server.requests if request.path == path]
    assert asked == ["0", "3", "3", "3", "6", "9"]


@pytest.mark.parametrize("name", ["model.safetensors", "generation_config.json"])
def test_listed_file_that_is_gone_is_not_done_without(world: World, hub_server: HubServer, name: str) -> None:
    """A model came without its preprocessor_config.json."""
    hub_server.faults[f"/llava-hf/tiny/resolve/{COMMIT}/{name}"] = [Fault(status=404)]
    world.model["source"] = "hf://llava-hf/tiny"
    error = world.failure()
    assert error.reason is Reason.SOURCE_UNAVAILABLE
    assert f"hf://llava-hf/tiny@{COMMIT}/{name} is listed, but the server does not have it any more" in error.message
    assert_same(world.fetch()["model"].path, MODEL, NEEDED)


def test_hub_says_how_long_to_wait_for_a_listing(
    world: World, hub_server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float | None] = []
    monkeypatch.setattr(Patience, "wait_s", lambda self, failures, asked_s=None: waits.append(asked_s) or 0)
    hub_server.faults["/api/models/llava-hf/tiny"] = [Fault(status=429, headers={"Retry-After": "7"})]
    hub_server.faults[f"/api/models/llava-hf/tiny/tree/{COMMIT}"] = [
        Fault(status=429, headers={"RateLimit": '"api";r=0;t=55'})
    ]
    world.model["source"] = "hf://llava-hf/tiny"
    world.fetch()
    assert waits == [7.0, 55.0]


def test_renamed_repository_is_followed_on_its_hub(world: World, hub_server: HubServer) -> None:
    hub_server.renamed["llava-hf/old"] = "llava-hf/tiny"
    hub_server.repositories["models", "llava-hf/tiny"].token = TOKEN
    world.secret("model", token=TOKEN)
    world.model["source"] = "hf://llava-hf/old"
    found = world.fetch()["model"]
    assert found.origin == f"hf://llava-hf/old@{COMMIT}"
    assert_same(found.path, MODEL, NEEDED)


@pytest.mark.parametrize(
    "body", [b"<html>a portal</html>", b"[]", b'{"sha": 5}', b"[[" * 50_000, b'[{"type": "file"}]', b'{"id": null}']
)
def test_server_that_is_no_hub(world: World, authority: Authority, body: bytes) -> None:
    class Portal(FileServer):
        def answer(self, request: Any) -> Any:
            return Answer(status=200, body=body)

    with Portal().run(authority) as server:
        world.download["hub_endpoint"] = server.base
        world.model["source"] = "hf://llava-hf/tiny"
        error = world.failure()
    assert error.reason in (Reason.SOURCE_UNAVAILABLE, Reason.SOURCE_REFUSED)
    assert "spec.model.source: " in error.message
    assert "hf://llava-hf/tiny" in error.message
    assert "portal" not in error.message


@pytest.mark.parametrize("endpoint", ["hub.example", "ftp://hub", "https://me:hunter2@hub"])
def test_hub_endpoint_that_is_no_address(world: World, endpoint: str) -> None:
    world.download["hub_endpoint"] = endpoint
    world.model["source"] = "hf://llava-hf/tiny"
    message = world.failure().message
    assert "spec.download.hubEndpoint must be an address like https://hub.example" in message
    assert "hunter2" not in message


@pytest.mark.parametrize("status", [301, 302, 307])
def test_keys_of_s3_do_not_follow_a_listing_to_another_address(world: World, authority: Authority, status: int) -> None:
    with FileServer().run(authority) as server, FileServer().run(authority) as other:
        answer = Fault(status=status, headers={"Location": f"{other.base}/bucket", "x-amz-bucket-region": "eu-west-1"})
        server.faults["/bucket"] = [answer] * 9
        world.secret("model", **keys_of(server))
        world.model["source"] = "s3://bucket/model"
        error = world.failure()
        assert server.requests[0].headers["x-amz-security-token"] == SESSION
        assert other.requests == []
    assert error.reason is Reason.SOURCE_REFUSED
    assert "spec.model.source: s3://bucket/model" in error.message


def test_address_that_boto3_would_go_to_by_itself_is_refused(world: World, authority: Authority) -> None:
    """Whatever decides on another address, the signed request does not leave."""
    with FileServer().run(authority) as server, FileServer().run(authority) as other, build_client(Network()) as client:
        world.secret("model", **keys_of(server))
        bucket = Bucket(
            BucketAddress(bucket="bucket", prefix=""), read_credentials(world.secrets / "model", "s"), client,
            "spec.model.source", Retrier(what="it", patience=Patience(tries=1), stop=threading.Event()),
        )  # fmt: skip
        events = bucket._server.client.meta.events
        events.register_first("before-send.s3", lambda request, **_: setattr(request, "url", other.base))
        with pytest.raises(StageError, match="where the keys are not sent"):
            list(bucket.list_files())
        assert server.requests + other.requests == []


LISTING = (
    """<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{}</ListBucketResult>"""
)


def page_of(names: list[str], following: str | None) -> bytes:
    more = f"<IsTruncated>{'true' if following else 'false'}</IsTruncated>"
    more += f"<NextContinuationToken>{following}</NextContinuationToken>" if following else ""
    return LISTING.format(more + "".join(f"<Contents><Key>{n}</Key><Size>2</Size></Contents>" for n in names)).encode()


class Pages(FileServer):
    """A bucket whose listing has several pages."""

    pages: ClassVar = {"": page_of(["m/config.json"], "2"), "2": page_of(["m/model.safetensors"], "3"),
                       "3": page_of(["m/tokenizer.json"], None)}  # fmt: skip

    def answer(self, request: Any) -> Any:
        if request.path == "/bucket":
            token = parse_qs(request.query).get("continuation-token", [""])[0]
            return Answer(status=200, body=self.pages[token], headers={"Content-Type": "application/xml"})
        return Answer(status=200, body=b"{}")


def test_listing_of_a_bucket_goes_on_where_it_broke_off(
    world: World, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float | None] = []
    monkeypatch.setattr(Patience, "wait_s", lambda self, failures, asked_s=None: waits.append(asked_s) or 0)
    with Pages().run(authority) as server:
        slow_down = Fault(status=503, headers={"Retry-After": "9"})
        server.faults["/bucket"] = [Fault(), Fault(), Fault(break_after=20), slow_down, Fault()]
        world.secret("model", **keys_of(server))
        world.model["source"] = "s3://bucket/m"
        names = names_in(world.fetch()["model"].path)
        queries = [parse_qs(request.query) for request in server.requests if request.path == "/bucket"]
    assert names == ["config.json", "model.safetensors", "tokenizer.json"]
    assert [query.get("continuation-token", ["1"])[0] for query in queries] == ["1", "2", "3", "3", "3"]
    assert waits == [None, 9.0]


@pytest.mark.parametrize(
    "pages",
    [
        {"": page_of([], "2"), "2": page_of([], "2")},
        {"": page_of(["m/config.json"], "2").replace(b"<NextContinuationToken>2</NextContinuationToken>", b"")},
    ],
    ids=["the same again", "none named"],
)
def test_listing_of_a_bucket_whose_pages_do_not_go_on(
    world: World, authority: Authority, pages: dict[str, bytes]
) -> None:
    class Ring(Pages):
        pass

    Ring.pages = pages
    with Ring().run(authority) as server:
        world.secret("model", **keys_of(server))
        world.model["source"] = "s3://bucket/m"
        assert "lists without end" in world.failure().message


def test_server_that_is_no_s3(world: World, authority: Authority) -> None:
    class Portal(Pages):
        pages: ClassVar = {"": b"<html>a portal"}

    with Portal().run(authority) as server:
        world.secret("model", **keys_of(server))
        world.model["source"] = "s3://bucket/m"
        error = world.failure()
    assert error.reason is Reason.SOURCE_UNAVAILABLE
    assert error.message.startswith(f"spec.model.source: s3://bucket/m: {server.base} does not answer as S3 does (")
    assert "portal" not in error.message
    assert "look at key endpoint (or region) of spec.model.secretRef" in error.message


@pytest.mark.parametrize("where", ["listing", "file"])
@pytest.mark.parametrize(
    ("status", "code", "reason", "told"),
    [
        (400, "ExpiredToken", Reason.SOURCE_REFUSED, "the session token in spec.model.secretRef has expired"),
        (403, "InvalidAccessKeyId", Reason.SOURCE_REFUSED, "the keys in spec.model.secretRef are wrong"),
        (403, "SignatureDoesNotMatch", Reason.SOURCE_REFUSED, "the keys in spec.model.secretRef are wrong"),
        (403, "RequestTimeTooSkewed", Reason.SOURCE_UNAVAILABLE, "the node's clock is not the server's"),
        (403, "AccessDenied", Reason.SOURCE_REFUSED, "the credentials in spec.model.secretRef may not read it"),
        (400, "RequestTimeout", Reason.SOURCE_UNAVAILABLE, "3 times in a row: HTTP 400 (RequestTimeout)"),
    ],
)
def test_what_s3_says_is_told_apart(
    world: World, authority: Authority, where: str, status: int, code: str, reason: Reason, told: str
) -> None:
    class Failing(Pages):
        def answer(self, request: Any) -> Any:
            if (request.path == "/bucket") == (where == "listing"):
                return Answer(status=status, body=f"<Error><Code>{code}</Code></Error>".encode())
            return super().answer(request)

    with Failing().run(authority) as server:
        world.secret("model", **keys_of(server))
        world.model["source"] = "s3://bucket/m"
        error = world.failure()
    assert error.reason is reason
    assert error.message.startswith("spec.model.source: s3://bucket/m")
    assert told in error.message


def test_nothing_of_the_machine_s_own_s3_is_used(
    world: World, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither keys nor addresses of the environment, and no file of AWS's tools."""
    (tmp_path / "config").write_text("[default]\naws_access_key_id = OTHERS\naws_secret_access_key = OTHERS\n")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "config"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "OTHERS")
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_PROFILE", "none")
    monkeypatch.setenv("AWS_CA_BUNDLE", "/none")
    monkeypatch.setenv("AWS_USE_FIPS_ENDPOINT", "true")
    with Pages().run(authority) as server:
        world.secret("model", endpoint=server.base)
        world.model["source"] = "s3://bucket/m"
        world.fetch()
        assert [request for request in server.requests if request.authorization or "OTHERS" in str(request)] == []


def test_credential_comes_back_to_its_own_address_only(world: World, web: FileServer, authority: Authority) -> None:
    """Sent on to another port of the host and back, on a path of several servers."""
    web.password = "Bearer token"
    world.secret("dataset", bearer="token")
    world.dataset["source"] = f"{web.base}/set/"
    with FileServer().run(authority) as other:
        there, back = f"{other.base}/there", f"{web.base}/set/validation.json"
        web.faults["/set/train.json"] = [Fault(status=302, headers={"Location": there})]
        other.faults["/there"] = [Fault(status=302, headers={"Location": back.replace("https://", "https://u:p@")})]
        world.fetch()
        assert [request.authorization for request in other.requests] == [None]
    assert {request.authorization for request in web.requests} == {"Bearer token"}


# --- the way there


@pytest.mark.parametrize("way", ["spec", "secret", "environment", "not for this host"])
def test_proxy_for_every_protocol(
    world: World, s3: str, hub_server: HubServer, web: FileServer, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy("me:pass").run() as proxy:
        address = proxy.url.replace("://", "://me:pass@")
        # What libraries may read by themselves changes nothing.
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1" if way != "not for this host" else address)
        if way == "environment":
            world.environ |= {"https_proxy": address}
        elif way == "secret":
            world.secret("download", httpsProxy=address)
        else:
            world.download |= {"https_proxy": address, "no_proxy": "" if way == "spec" else "127.0.0.0/8, localhost"}
        world.secret("model", endpoint=s3)
        world.model |= {
            "source": "s3://bucket/a model", "vision_tower": "s3://bucket/a model",
        }  # fmt: skip
        world.dataset["source"] = "hf://me/set"
        world.alignment = {"dataset": {**world.dataset, "source": f"{web.base}/set/"}}
        world.fetch()
        used = {int(target.rpartition(":")[2]) for target in proxy.targets}
    servers = {httpx.URL(base).port for base in (s3, hub_server.base, web.base)}
    assert used == (set() if way == "not for this host" else servers)


def test_proxy_that_wants_credentials(world: World, web: FileServer) -> None:
    world.dataset["source"] = f"{web.base}/set/"
    with Proxy("me:pass").run() as proxy:
        world.download["https_proxy"] = proxy.url
        error = world.failure()
    assert error.reason is Reason.SOURCE_UNAVAILABLE
    assert "by the proxy, which wants credentials; put its address with them" in error.message
    world.download["https_proxy"] = "http://127.0.0.1:1"
    error = world.failure()
    assert error.reason is Reason.SOURCE_UNAVAILABLE
    assert "3 times in a row" in error.message


@pytest.mark.parametrize("where", ECHOES)
@pytest.mark.parametrize("who", ["web", "hub", "proxy"])
def test_what_comes_back_in_place_of_http_is_not_told(
    who: str, where: str, world: World, authority: Authority, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Logs, statuses and Events of a run are read by more people than its Secrets."""
    caplog.set_level(logging.DEBUG, logger="llava_trainer")
    unpacked: list[httpx.Response] = []
    decoder_of = httpx.Response._get_content_decoder

    def note_packed(self: httpx.Response) -> Any:
        # The hub's library asks for the decoder of what is not packed, too.
        if "Content-Encoding" in self.headers:
            unpacked.append(self)
        return decoder_of(self)

    monkeypatch.setattr(httpx.Response, "_get_content_decoder", note_packed)
    with run_echo(ECHOES[where], None if who == "proxy" else authority) as url:
        if who == "proxy":
            secret = "bWU6aHVudGVyMg=="
            world.download["https_proxy"] = url.replace("://", "://me:hunter2@")
            world.dataset["source"] = "https://files.example/set/"
        else:
            secret = "hf_TOPSECRET"
            world.secret("dataset", **{"bearer" if who == "web" else "token": secret})
            world.download["hub_endpoint"] = url
            world.dataset["source"] = "hf://me/set" if who == "hub" else f"{url}/set/"
        message = world.failure().message
    assert message.startswith("spec.dataset.source: ")
    assert secret.lower() not in (message + caplog.text).lower()
    assert unpacked == []


def test_proxy_that_is_no_address(world: World, web: FileServer) -> None:
    world.dataset["source"] = f"{web.base}/set/"
    world.download["https_proxy"] = "socks9://me:hunter2@x"
    message = world.failure().message
    assert "spec.download.httpsProxy and httpProxy must be addresses" in message
    assert "hunter2" not in message


def test_secret_of_proxies_with_other_keys_only(world: World, web: FileServer) -> None:
    world.dataset["source"] = f"{web.base}/set/"
    # What Kubernetes mounts of a Secret without known keys.
    (world.secrets / "download").mkdir(parents=True)
    world.download["secret_ref"] = {"name": "proxies"}
    error = world.failure()
    assert error.reason is Reason.SOURCE_REFUSED
    assert error.message == (
        "spec.download.secretRef: Secret proxies has neither key httpProxy nor httpsProxy: put the proxy's address "
        "into one of them"
    )
    # The installation's, which the run does not name, may be missing.
    del world.download["secret_ref"]
    assert names_in(world.fetch()["dataset"].path)


def test_authorities_that_are_none(world: World) -> None:
    world.ca_file = world.root / "ca.crt"
    world.ca_file.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    error = world.failure()
    assert error.reason is Reason.SOURCE_REFUSED
    assert "spec.download.caConfigMap: ca.crt must hold certificates in PEM form" in error.message


# --- all together


def test_nothing_of_alignments_dataset_is_held_out(world: World, web: FileServer) -> None:
    world.alignment = {"dataset": {**world.dataset, "source": f"{web.base}/set/", "validation": {"file": "none.json"}}}
    found = world.fetch()["alignment-dataset"]
    assert_same(found.path, DATASET, ["images/a.jpg", "images/sub/b ü#?.jpg", "train.json"])


def test_datasets_of_the_mixture_are_fetched_each_with_its_own_credentials(world: World, web: FileServer) -> None:
    part = {**world.dataset, "source": f"{web.base}/set/", "validation": {"file": "none.json"}}
    world.mixture = [{"dataset": {**part, "source": "pvc://general"}, "share": 0.1}, {"dataset": part, "share": 0.1}]
    (world.root / "claims" / "general").mkdir(parents=True)
    world.secret("mixture-1", username="me", password="hunter2")
    found = world.fetch()
    assert found["mixture-0"].path == world.root / "claims" / "general"
    assert found["mixture-1"].path.name == "mixture-1"
    assert_same(found["mixture-1"].path, DATASET, ["images/a.jpg", "images/sub/b ü#?.jpg", "train.json"])
    assert {request.authorization for request in web.requests} == {"Basic bWU6aHVudGVyMg=="}


def test_memory_is_bounded_by_a_piece(world: World, web: FileServer) -> None:
    content = web.add("/big.bin", bytes(48 << 20))
    world.model["projector"] = f"{web.base}/big.bin"
    tracemalloc.start()
    try:
        world.fetch()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < len(content) // 4


def test_a_million_listed_files_do_not_fill_the_memory() -> None:
    """They took 1.2 GB: an object with its closures, strings and digest for each."""
    many = 100_000
    listed = (Listed(f"images/{index:08x}/{index:032x}.jpg", index, bytes(32)) for index in range(many))

    def locate(one: Listed) -> RemoteFile:
        return RemoteFile(name=one.name, address=one.name, url=lambda: one.name, size=one.size)

    tracemalloc.start()
    try:
        catalogue = make_catalogue("s3://b", listed, locate, "spec.dataset.source")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak / many < 350
    found = catalogue.find(f"images/{7:08x}/{7:032x}.jpg")
    assert found is not None
    assert found.size == 7
    assert catalogue.find("images/none.jpg") is None


@pytest.mark.parametrize("size", [-1, 2**63, 10**30])
def test_listing_of_a_size_that_cannot_be(size: int) -> None:
    with pytest.raises(StageError, match="bytes, which no file has") as caught:
        make_catalogue(
            "s3://b", [Listed("a", size, b"")], lambda one: pytest.fail("never asked"), "spec.dataset.source"
        )
    assert caught.value.reason is Reason.SOURCE_REFUSED


def test_listing_that_has_too_many_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "MAX_FILES", 10)
    endless = (Listed(str(index), 1, b"") for index in itertools.count())
    with pytest.raises(StageError, match="holds more than 10 files: name a folder with fewer"):
        make_catalogue("s3://b", endless, lambda one: pytest.fail("nothing is asked for"), "spec.dataset.source")


def test_a_million_fetched_files_do_not_fill_the_memory(tmp_path: Path) -> None:
    many = 20_000
    names = [f"images/{index:08x}/{index:032x}.jpg" for index in range(many)]
    with journal.Journal(tmp_path / "files") as written:
        for name in names:
            written.add(
                journal.Fetched(name=name, address=f"s3://bucket/{name}", size=9, sha256="0" * 64, version="1" * 32)
            )
    tracemalloc.start()
    try:
        with journal.Journal(tmp_path / "files") as read:
            peak = tracemalloc.get_traced_memory()[1]
            assert read._look_up(names[7]) is not None
    finally:
        tracemalloc.stop()
    assert peak / many < 400


def test_claims_are_read_in_place(world: World) -> None:
    world.model |= {"source": "pvc://models/llava/", "base": "pvc://models/vicuna"}
    world.alignment = {"dataset": {**world.dataset, "source": "pvc://captions"}}
    for name in ("models/vicuna", "captions"):
        (world.root / "claims" / name).mkdir(parents=True)
    found = world.fetch()
    assert {role: one.path for role, one in found.items()} == {
        "model": world.root / "base", "base": world.root / "claims" / "models" / "vicuna",
        "dataset": world.root / "data", "alignment-dataset": world.root / "claims" / "captions",
    }  # fmt: skip
    assert found["model"].origin == "pvc://models/llava/"


def test_a_folder_that_is_not_on_the_claim_is_named_with_what_is(world: World) -> None:
    world.model["base"] = "pvc://models/vicuna/7b"
    (world.root / "claims" / "models" / "vicuna-7b").mkdir(parents=True)
    error = world.failure()
    assert error.reason is Reason.SOURCE_REFUSED
    assert error.message == (
        "spec.model.base: pvc://models/vicuna/7b: there is no vicuna/7b on the claim beside vicuna-7b/; correct the "
        "path in spec.model.base"
    )


def test_claim_s_folder_that_leads_out_of_the_claim_is_refused(world: World, tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "set").mkdir(parents=True)
    claim = tmp_path / "claims" / "models"
    claim.mkdir(parents=True)
    (claim / "link").symlink_to(tmp_path / "elsewhere" / "set")
    (claim / "real").mkdir()
    (claim / "inside").symlink_to("real")
    world.model["base"] = "pvc://models/link"
    error = world.failure()
    assert error.reason is Reason.SOURCE_REFUSED
    told = "it leads out of the claim through a symbolic link: put the file itself there"
    assert error.message == f"spec.model.base: pvc://models/link: {told}"
    world.model["base"] = "pvc://models/inside"
    assert world.fetch()["base"].path == claim / "inside"
    (world.root / "data").rmdir()
    (world.root / "data").symlink_to(tmp_path.parent)
    world.dataset["source"] = "pvc://claim/data"
    assert "spec.dataset.source: pvc://claim/data: it leads out of the claim" in world.failure().message


@pytest.mark.parametrize("part", ["model", "projector"])
def test_files_of_a_model_that_lead_out_of_the_claim_are_refused(world: World, tmp_path: Path, part: str) -> None:
    """As in the hub's own cache they may be links, as long as they stay on the claim."""
    claim = tmp_path / "claims" / "models"
    (claim / "blobs").mkdir(parents=True)
    (claim / "snapshots" / "main").mkdir(parents=True)
    (claim / "blobs" / "1").write_text("{}")
    (claim / "snapshots" / "main" / "config.json").symlink_to("../../blobs/1")
    (tmp_path / "token").write_text("secret of the pod")
    world.model[{"model": "languageModel"}.get(part, part)] = "pvc://models/snapshots/main"
    if part == "model":
        world.model["visionTower"] = "pvc://models/snapshots/main"
    world.fetch()
    (claim / "snapshots" / "main" / "tokenizer.model").symlink_to(tmp_path / "token")
    error = world.failure()
    assert error.reason is Reason.SOURCE_REFUSED
    assert "its tokenizer.model leads out of the claim through a symbolic link" in error.message
    (claim / "snapshots" / "main" / "tokenizer.model").unlink()
    os.mkfifo(claim / "snapshots" / "main" / "tokenizer.json")
    assert "its tokenizer.json is neither a file nor a folder: remove it" in world.failure().message


def test_space_is_checked_before_anything_is_fetched(
    world: World, hub_server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.model["source"] = "hf://llava-hf/tiny"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1 << 40, free=64 << 20))
    error = world.failure()
    assert error.reason is Reason.STORAGE_FULL
    assert error.message.startswith(f"spec.model.source hf://llava-hf/tiny@{COMMIT} needs 0.00 GB more")
    assert not [request for request in hub_server.requests if "/resolve/" in request.path]


def test_first_failure_stops_the_other_files(world: World, web: FileServer) -> None:
    web.faults["/set/images/a.jpg"] = [Fault(status=403)]
    world.dataset["source"] = f"{web.base}/set/"
    error = world.failure()
    assert error.reason is Reason.SOURCE_REFUSED
    assert "/set/images/a.jpg was refused with HTTP 403" in error.message
    assert "spec.dataset.secretRef" in error.message


def test_pod_that_is_asked_to_stop_ends_soon(world: World, web: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the server says nothing; what has come in is there for the next attempt."""
    monkeypatch.setattr(network, "READ_TIMEOUT_S", 0.3)
    silent = threading.Event()
    web.faults["/set/train.json"] = [Fault(silent=silent)]
    world.dataset["source"] = f"{web.base}/set/"

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    other = world.config.volume.download_dir("dataset") / "validation.json"

    def stop() -> None:
        while not (other.exists() and web.asked("/set/train.json")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        threading.Thread(target=stop, daemon=True).start()
        with pytest.raises(Interrupted):
            world.fetch()
    finally:
        signal.signal(signal.SIGTERM, previous)
        silent.set()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fetch")]
    assert names_in(world.config.volume.download_dir("dataset")) == ["validation.json"]
    assert_same(world.fetch()["dataset"].path, DATASET, FETCHED)


def test_hub_of_ones_own_is_the_only_one_asked(
    world: World, hub_server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library's first request of a process goes to its maker's host, if it may."""
    monkeypatch.setattr(_detect_agent, "_registry", None)
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(world.root / "none"))
    world.model["source"] = "hf://llava-hf/tiny"
    with Proxy().run() as proxy:
        world.download["https_proxy"] = proxy.url
        world.fetch()
    assert {target.rpartition(":")[0] for target in proxy.targets} == {"127.0.0.1", "localhost"}
