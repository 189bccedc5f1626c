"""Publishing to a registry: Debian's docker-registry, asked through a relay that speaks TLS and fails as it is told.

Whatever happens to whichever request, a tag shows nothing or the whole, and the repeat sends what is missing.
"""

import base64
import dataclasses
import hashlib
import io
import json
import logging
import os
import shutil
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request as WebRequest
from urllib.request import urlopen

import pytest

from llava_api.constants import MODELCAR_SUFFIX
from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.publishing import model_layers
from llava_trainer.publishing.content import Content, Item
from llava_trainer.publishing.destination import Place, Sent
from llava_trainer.publishing.model_layers import (
    ARTIFACT_TYPE,
    CONTENT_ANNOTATION,
    INDEX_TYPE,
    MANIFEST_TYPE,
    make_layer,
    read_layer,
)
from llava_trainer.publishing.refusals import told_of_destinations
from llava_trainer.publishing.registry import RegistryDestination
from llava_trainer.retrying import Patience
from tests.trainer.fault_table import check_row, describe_visible
from tests.trainer.killing import Victim
from tests.trainer.places import FIELD, MERGED, QUICK, make_content, make_place, texts_behind, write_secret
from tests.trainer.servers.authority import Authority
from tests.trainer.servers.echo import ECHOES, run_echo
from tests.trainer.servers.registry import FULL, PASSWORD, USERNAME, TokenService, htpasswd_auth, run_registry
from tests.trainer.servers.relay import Fault, Relay, Relayed

CHUNK = 100_000
ONCE = Patience(tries=1)
SMALL = {"model.safetensors": MERGED["model-00002-of-00002.safetensors"]}
"""Two chunks; with publication.json and three configurations five blobs."""
NUM_BLOBS = 5
PACKED = base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
BASIC = f"Basic {PACKED}"


@dataclass
class Hosted:
    """A registry behind a relay, and what a test publishes there."""

    upstream: str
    relay: Relay
    authority: Authority
    root: Path
    repository: str
    clients: ExitStack
    base: str = ""
    """Of another registry than the relay's."""

    @property
    def address(self) -> str:
        return f"oci://{(self.base or self.relay.base).partition('://')[2]}/{self.repository}:v1"

    def place(self, **more: Any) -> Place:
        place = make_place(self.address, self.root, ca_pem=self.authority.pem, **more)
        self.clients.callback(place.client.close)
        return place

    def publish(self, content: Content, place: Place | None = None) -> Sent:
        with told_of_destinations():
            return RegistryDestination(place or self.place(), CHUNK).publish(content, lambda num_bytes: None)

    def fail(self, content: Content, place: Place | None = None) -> StageError:
        with pytest.raises(StageError) as caught:
            self.publish(content, place)
        assert caught.value.message.startswith(FIELD.rpartition(".")[0])
        return caught.value

    def fail_as_made(self, content: Content) -> Reason:
        with pytest.raises(StageError) as caught:
            self.publish(content)
        return caught.value.reason

    def get(self, path: str, *accept: str) -> bytes | None:
        """What the registry itself has, past the relay."""
        headers = {"Authorization": BASIC, "Accept": ", ".join(accept)}
        try:
            with urlopen(WebRequest(f"{self.upstream}/v2/{self.repository}/{path}", headers=headers)) as response:
                content: bytes = response.read()
                return content
        except HTTPError as error:
            if error.code != 404:
                raise
            return None

    def manifest(self, reference: str) -> dict[str, Any] | None:
        content = self.get(f"manifests/{reference}", MANIFEST_TYPE, INDEX_TYPE)
        return None if content is None else json.loads(content)

    def unpack(self, manifest: dict[str, Any]) -> dict[str, bytes]:
        """The files in the layers of a manifest, each layer being what its digest says."""
        found = {}
        for layer in manifest["layers"]:
            blob = self.get(f"blobs/{layer['digest']}")
            assert blob is not None
            assert layer["digest"] == f"sha256:{hashlib.sha256(blob).hexdigest()}"
            with tarfile.open(fileobj=io.BytesIO(blob)) as archive:
                for entry in archive:
                    if entry.isfile():
                        found[entry.name] = (archive.extractfile(entry) or io.BytesIO()).read()
        return found

    def look(self, content: Content, tag: str = "v1") -> tuple[bool, bool]:
        """Whether the artifact and the image stand there; whatever does has to be whole."""
        whole = {f"models/{item.name}": item.path.read_bytes() for item in content.items}
        artifact, index = self.manifest(tag), self.manifest(tag + MODELCAR_SUFFIX)
        if artifact is not None:
            assert self.unpack(artifact) == whole
        for entry in index["manifests"] if index is not None else ():
            image = self.manifest(entry["digest"])
            assert image is not None
            assert self.unpack(image) == whole
            assert self.get(f"blobs/{image['config']['digest']}") is not None
        return artifact is not None, index is not None

    def blobs(self, *, begun: bool = False) -> list[str]:
        """Uploads that were begun, or finished, since the relay counts."""
        return [
            request.path for request in self.relay.requests
            if (request.method == "POST" if begun else request.method == "PUT") and "/blobs/uploads/" in request.path
        ]  # fmt: skip


@pytest.fixture(scope="module")
def relay(docker_registry: Path, authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    folder = tmp_path_factory.mktemp("registry")
    with run_registry(docker_registry, folder, htpasswd_auth(folder)) as base, Relay(base).run(authority) as relay:
        yield relay


@pytest.fixture
def hosted(relay: Relay, authority: Authority, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Hosted]:
    """A repository that nothing was published to."""
    relay.begin()
    write_secret(tmp_path, username=USERNAME, password=PASSWORD)
    name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]
    with ExitStack() as clients:
        yield Hosted(relay.upstream.geturl(), relay, authority, tmp_path, f"team/{name}", clients)


@pytest.fixture
def content(tmp_path: Path) -> Content:
    return make_content(tmp_path / "model", MERGED)


@pytest.fixture
def small(tmp_path: Path) -> Content:
    return make_content(tmp_path / "small", SMALL)


# --- what stands there


def test_artifact_and_image_are_made_of_the_same_blobs(hosted: Hosted, tmp_path: Path) -> None:
    content = make_content(tmp_path / "model", {**MERGED, "provenance.intoto.jsonl": b"{}"})
    told: list[int] = []
    sent = RegistryDestination(hosted.place(), CHUNK).publish(content, told.append)
    assert hosted.look(content) == (True, True)
    artifact, index = hosted.manifest("v1"), hosted.manifest("v1-modelcar")
    assert artifact is not None
    assert index is not None
    assert told == sorted(told)
    assert told[-1] == content.size
    raw = hosted.get("manifests/v1", MANIFEST_TYPE)
    assert raw is not None
    assert sent.revision == f"sha256:{hashlib.sha256(raw).hexdigest()}"
    assert artifact["artifactType"] == ARTIFACT_TYPE
    assert artifact["annotations"] == index["annotations"] == {CONTENT_ANNOTATION: content.digest}
    assert {layer["annotations"]["org.cncf.model.filepath"]: layer["mediaType"] for layer in artifact["layers"]} == {
        "model-00001-of-00002.safetensors": "application/vnd.cncf.model.weight.v1.tar",
        "model-00002-of-00002.safetensors": "application/vnd.cncf.model.weight.v1.tar",
        "config.json": "application/vnd.cncf.model.weight.config.v1.tar",
        "tokenizer.json": "application/vnd.cncf.model.weight.config.v1.tar",
        "README.md": "application/vnd.cncf.model.doc.v1.tar",
        "provenance.intoto.jsonl": "application/vnd.cncf.model.doc.v1.tar",
        "publication.json": "application/vnd.cncf.model.doc.v1.tar",
    }
    layers = [layer["digest"] for layer in artifact["layers"]]
    model = json.loads(hosted.get(f"blobs/{artifact['config']['digest']}") or b"")
    assert model["modelfs"] == {"type": "layers", "diffIds": layers}
    assert [entry["platform"]["architecture"] for entry in index["manifests"]] == ["amd64", "arm64"]
    for entry in index["manifests"]:
        image = hosted.manifest(entry["digest"])
        assert image is not None
        assert [layer["digest"] for layer in image["layers"]] == layers
        assert {layer["mediaType"] for layer in image["layers"]} == {"application/vnd.oci.image.layer.v1.tar"}
        config = json.loads(hosted.get(f"blobs/{image['config']['digest']}") or b"")
        assert config["architecture"] == entry["platform"]["architecture"]
        assert config["rootfs"] == {"type": "layers", "diff_ids": layers}


def test_layer_of_a_file_that_is_larger_than_tar_has_digits_for() -> None:
    item = Item(name="model.safetensors", path=Path("/nowhere"), size=9 << 30, sha256="0" * 64)
    with tarfile.open(fileobj=io.BytesIO(model_layers.make_header(item)), mode="r:") as archive:
        folder, file = archive.next(), archive.next()
    assert folder is not None
    assert file is not None
    assert (folder.name, file.name, file.size) == ("models", "models/model.safetensors", 9 << 30)


def test_layers_are_the_same_whoever_makes_them(tmp_path: Path) -> None:
    """Long names and folders, too; the folders are in it, since not everybody who unpacks makes them."""
    name = f"folder/{'long' * 30}.json"
    first, second = (make_content(tmp_path / place, {name: b"{}", "empty": b""}) for place in ("one", "other"))
    os.utime(second.items[0].path, (1, 1))
    assert [make_layer(item).digest for item in first.items] == [make_layer(item).digest for item in second.items]
    layer = make_layer(next(item for item in first.items if item.name == name))
    packed = b"".join(read_layer(layer, 0, layer.size))
    assert len(packed) == layer.size
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        assert [(entry.name, entry.mode, entry.uid, entry.mtime) for entry in archive] == [
            ("models", 0o755, 0, 0), ("models/folder", 0o755, 0, 0), (f"models/{name}", 0o644, 0, 0),
        ]  # fmt: skip
    for begin, end in (
        (0, 1),
        (511, 513),
        (len(layer.header) - 1, len(layer.header) + 1),
        (layer.size - 1, layer.size),
    ):
        assert b"".join(read_layer(layer, begin, end)) == packed[begin:end]


def test_the_repeat_changes_nothing_and_reads_no_weights(
    hosted: Hosted, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = hosted.publish(content)
    hosted.relay.begin()
    monkeypatch.setattr(model_layers, "read_chunks", None)
    assert hosted.publish(content) == Sent(revision=first.revision, sent_bytes=0, was_there=True)
    assert {request.method for request in hosted.relay.requests} == {"GET"}


def test_adapter_beside_the_model_has_a_tag_of_its_own(hosted: Hosted, content: Content, tmp_path: Path) -> None:
    adapter = make_content(tmp_path / "adapter", {"adapter_model.safetensors": b"low rank"}, what="adapter")
    hosted.publish(content)
    hosted.publish(adapter, hosted.place(folder="adapter"))
    assert hosted.look(content) == hosted.look(adapter, "v1-adapter") == (True, True)


def test_oras_reads_the_artifact(hosted: Hosted, content: Content, tmp_path: Path) -> None:
    """Its own client, by its own way out, which takes what has a title."""
    from oras.client import OrasClient

    hosted.publish(content)
    host = hosted.upstream.partition("://")[2]
    client = OrasClient(hostname=host, insecure=True, auth_backend="basic")
    client.auth.set_basic_auth(USERNAME, PASSWORD)
    client.pull(target=f"{host}/{hosted.repository}:v1", outdir=str(tmp_path / "pulled"))
    found = {}
    for packed in (tmp_path / "pulled").iterdir():
        with tarfile.open(packed) as archive:
            archive.extractall(tmp_path / "unpacked", filter="data")
    for path in (tmp_path / "unpacked" / "models").iterdir():
        found[path.name] = path.read_bytes()
    assert found == {item.name: item.path.read_bytes() for item in content.items}


@pytest.mark.images
def test_buildah_makes_a_file_system_of_the_image(hosted: Hosted, content: Content, tmp_path: Path) -> None:
    hosted.publish(content)
    shutil.copy(hosted.authority.ca_file, tmp_path)
    host = hosted.relay.base.partition("://")[2]
    storage = ("--root", tmp_path / "storage", "--runroot", tmp_path / "state", "--storage-driver", "vfs")
    access = ("--cert-dir", tmp_path, "--creds", f"{USERNAME}:{PASSWORD}")

    def buildah(*arguments: Any) -> str:
        done = subprocess.run(["buildah", *storage, *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    container = buildah("from", *access, f"docker://{host}/{hosted.repository}:v1-modelcar")
    mounted = Path(buildah("mount", container))
    found = {path.name: path.read_bytes() for path in (mounted / "models").iterdir()}
    buildah("rm", container)
    assert found == {item.name: item.path.read_bytes() for item in content.items}


# --- faults


def _publish_in_a_process(place: dict[str, Any], folder: Path) -> None:
    logging.disable()
    content = make_content(folder, SMALL)
    RegistryDestination(make_place(**place), CHUNK).publish(content, lambda num_bytes: None)


AT_EACH: dict[str, Callable[[Victim, Relayed], tuple[Fault, Fault]]] = {
    "SIGKILL before each request gets through, or before its answer comes by turns": (
        lambda victim, request: (Fault(before=victim.kill), Fault(after=victim.kill))
    ),
    "the connection is cut within each request, or before its answer by turns": (
        lambda victim, request: (Fault(cut_after=request.size // 2), Fault(loses_answer=True))
    ),
}


@pytest.mark.parametrize("name", AT_EACH)
def test_fault_at_each_request(hosted: Hosted, small: Content, name: str) -> None:
    """Nothing or the whole stands there, and the repeat completes it."""
    victim = Victim([__name__])
    faults = Faults(hosted, small)
    for number, request in enumerate(faults.requests):
        fault = AT_EACH[name](victim, request)[number % 2]
        faults.begin(f"{name[:4].lower().strip()}-{number}")
        hosted.relay.begin({number: fault})
        if "SIGKILL" in name:
            place = {"address": hosted.address, "root": hosted.root, "ca_pem": hosted.authority.pem}
            assert victim.run(_publish_in_a_process, place, small.items[0].path.parent) == -9
        else:
            assert hosted.fail(small, hosted.place(patience=ONCE)).reason == Reason.DESTINATION_UNAVAILABLE
        assert len(hosted.relay.requests) == number + 1
        faults.complete()
    faults.check_row(f"{name}, {len(faults.requests)} in turn")


class Faults:
    """Repositories to which the same is published, with one fault each; what stands in each of them afterwards."""

    def __init__(self, hosted: Hosted, content: Content) -> None:
        self._hosted, self._content = hosted, content
        self._base = hosted.repository
        self.begin("whole")
        hosted.publish(content)
        assert hosted.look(content) == (True, True)
        self.requests = hosted.relay.requests
        self._whole = self._digests()
        self._seen: list[str] = []

    def begin(self, label: str) -> None:
        """Go to another repository. The last part of its name is the model's, and the same."""
        self._hosted.repository = f"{self._base}/{label}/invoices"
        self._hosted.relay.begin()

    def complete(self) -> None:
        """See what stands there, and have the repeat send the blobs that are missing, and no other."""
        hosted = self._hosted
        tags = self._digests()
        # The registry takes no manifest whose blobs are not there: with the same digest it is the whole.
        assert all(tag in (None, whole) for tag, whole in zip(tags, self._whole, strict=True)), "half of it is visible"
        assert tags != (self._whole[0], None), "the tag comes last"
        self._seen.append("nothing that loads" if tags == (None, None) else "the whole model")
        finished = {path.partition("?")[0] for path in hosted.blobs()}
        hosted.relay.begin()
        hosted.publish(self._content)
        assert self._digests() == self._whole
        begun = len(hosted.blobs(begun=True))
        # Of an upload that was being finished when it broke off, nobody knows whether it was.
        assert NUM_BLOBS - len(finished) <= begun <= NUM_BLOBS - len(finished) + 1

    def _digests(self) -> tuple[str | None, str | None]:
        raw = [self._hosted.get(f"manifests/{tag}", MANIFEST_TYPE, INDEX_TYPE) for tag in ("v1", "v1-modelcar")]
        artifact, image = (content and hashlib.sha256(content).hexdigest() for content in raw)
        return artifact or None, image or None  # type: ignore[return-value]

    def check_row(self, fault: str) -> None:
        """Hold it against docs/publishing.md."""
        check_row(
            "oci", fault, describe_visible(self._seen), "completes it, and sends only the blobs that were missing"
        )


KINDS: dict[str, Callable[[Relayed], bool]] = {
    "tag is looked at": lambda request: request.method == "GET" and "/manifests/" in request.path,
    "blob is looked for": lambda request: request.method == "HEAD",
    "upload is begun": lambda request: request.method == "POST",
    "chunk": lambda request: request.method == "PATCH",
    "upload is finished": lambda request: request.method == "PUT" and "digest=" in request.path,
    "manifest of the image": lambda request: request.method == "PUT" and "/manifests/sha256" in request.path,
    "tag of the image": lambda request: request.method == "PUT" and request.path.endswith("/manifests/v1-modelcar"),
    "tag": lambda request: request.method == "PUT" and request.path.endswith("/manifests/v1"),
}
ANSWERS = {
    "500": (Fault(status=500), Reason.DESTINATION_UNAVAILABLE, "could not be published to, 3 times in a row: HTTP 500"),
    "403": (
        Fault(status=403, body=b'{"errors":[{"code":"DENIED","message":"no"}]}'), Reason.DESTINATION_REFUSED,
        "was refused with HTTP 403: the credentials in spec.publish.destinations[0].secretRef may not write it",
    ),
    "507": (Fault(status=507), Reason.DESTINATION_REFUSED, "507"),
}  # fmt: skip


@pytest.mark.parametrize("answer", ANSWERS)
def test_answers_to_each_kind_of_request(hosted: Hosted, small: Content, answer: str) -> None:
    fault, reason, told = ANSWERS[answer]
    faults = Faults(hosted, small)
    for index, (kind, is_meant) in enumerate(KINDS.items()):
        faults.begin(f"{answer}-{index}")
        hosted.relay.choose = lambda request, is_meant=is_meant: fault if is_meant(request) else None  # type: ignore[misc]
        error = hosted.fail(small)
        assert error.reason == reason, kind
        assert told in error.message
        faults.complete()
    faults.check_row(f"HTTP {answer} to each kind of request, {len(KINDS)} in turn")


def test_trouble_that_passes_is_ridden_out(hosted: Hosted, small: Content) -> None:
    """Each kind of request fails once; a chunk that has not come through is sent again where its upload stands."""
    failed: set[str] = set()

    def choose(request: Relayed) -> Fault | None:
        for kind, is_meant in KINDS.items():
            if is_meant(request) and kind not in failed:
                failed.add(kind)
                return Fault(status=503)
        return None

    hosted.relay.choose = choose
    hosted.publish(small, hosted.place(patience=dataclasses.replace(QUICK, tries=5)))
    assert failed == set(KINDS)
    assert hosted.look(small) == (True, True)
    # One POST was answered by 503, and none came of the chunk.
    assert len(hosted.blobs(begun=True)) == NUM_BLOBS + 1


def test_chunk_that_broke_off_begins_the_blob_anew_where_the_registry_wants_it(hosted: Hosted, small: Content) -> None:
    """This registry gives up an upload with a piece of a chunk; others tell where it stands (see below)."""
    patched: list[str] = []

    def choose(request: Relayed) -> Fault | None:
        if request.method == "PATCH":
            patched.append(request.path)
        return Fault(cut_after=10_000) if request.method == "PATCH" and len(patched) == 2 else None

    hosted.relay.choose = choose
    hosted.publish(small)
    assert hosted.look(small) == (True, True)
    assert len(hosted.blobs(begun=True)) == NUM_BLOBS + 1


def test_full_disk_of_the_registry(docker_registry: Path, authority: Authority, small: Content, tmp_path: Path) -> None:
    """A real one, of a file system with room for 100 kB."""
    (tmp_path / "full").mkdir()
    with (
        run_registry(docker_registry, tmp_path / "full", max_bytes=100 << 10) as base,
        Relay(base).run(authority) as relay,
        ExitStack() as clients,
    ):
        hosted = Hosted(base, relay, authority, tmp_path, "team/full", clients)
        error = hosted.fail(small)
        assert error.reason == Reason.DESTINATION_UNAVAILABLE
        assert "HTTP 500 (UNKNOWN)" in error.message
        assert hosted.look(small) == (False, False)
        (tmp_path / "full" / FULL).unlink()
        hosted.publish(small, hosted.place(patience=Patience(tries=20, first_s=0.1, most_s=0.1)))
        assert hosted.look(small) == (True, True)
    row = ("oci", "the registry's disk is full (a real one), once", describe_visible(["nothing that loads"]))
    check_row(*row, "completes it where there is room again")


# --- other registries


def test_a_chunk_goes_on_where_the_registry_says(hosted: Hosted, small: Content) -> None:
    """As the specification has it: the answer's Range tells what came through, here a half of the second chunk."""
    layer = make_layer(small.items[0])
    asked: list[Relayed] = []

    def choose(request: Relayed) -> Fault | None:
        if "/blobs/uploads/" not in request.path or len(asked) >= 4:
            return None
        asked.append(request)
        location = (("Location", "/v2/x/blobs/uploads/1"),)
        if request.method == "PATCH" and len(asked) == 3:
            return Fault(status=502)
        if request.method == "GET":
            return Fault(status=204, headers=(*location, ("Range", f"0-{CHUNK + 5_000 - 1}")))
        return Fault(status=202, headers=location)

    hosted.relay.choose = choose
    # What follows goes to the real registry, which knows no such upload: the blob begins anew, and comes through.
    hosted.publish(small)
    assert [request.method for request in asked] == ["POST", "PATCH", "PATCH", "GET"]
    following = hosted.relay.requests[hosted.relay.requests.index(asked[-1]) + 1]
    assert following.method == "PATCH"
    assert following.headers["content-range"] == f"{CHUNK + 5_000}-{layer.size - 1}"
    assert hosted.look(small) == (True, True)


@pytest.mark.parametrize("range_", ["0-0", "", "bytes=0-5", "0-999999999", "5-9", "0-99999999999999999999"])
def test_a_place_that_cannot_be_begins_the_blob_anew(hosted: Hosted, small: Content, range_: str) -> None:
    faults = [Fault(status=502), Fault(status=204, headers=(("Location", "/v2/x"), ("Range", range_)))]
    seen: list[int] = []

    def choose(request: Relayed) -> Fault | None:
        if request.method == "PATCH":
            seen.append(request.size)
        is_meant = (request.method == "PATCH" and len(seen) == 2) or (
            request.method == "GET" and "uploads" in request.path
        )
        return faults.pop(0) if is_meant and faults else None

    hosted.relay.choose = choose
    hosted.publish(small)
    assert not faults
    assert len(hosted.blobs(begun=True)) == NUM_BLOBS + 1


def test_registry_without_chunks_gets_the_blob_in_one_piece(hosted: Hosted, small: Content) -> None:
    hosted.relay.choose = lambda request: Fault(status=405) if request.method == "PATCH" else None
    hosted.publish(small)
    assert hosted.look(small) == (True, True)
    assert max(request.size for request in hosted.relay.requests if request.method == "PUT") > CHUNK


def test_least_size_of_chunks_is_kept_to(hosted: Hosted, small: Content) -> None:
    """OCI-Chunk-Min-Length: both chunks of the layer become one request."""
    answers: list[Relayed] = []

    def choose(request: Relayed) -> Fault | None:
        if request.method != "POST" or answers:
            return None
        answers.append(request)
        return Fault(status=202, headers=(("Location", "/v2/x/blobs/uploads/1"), ("OCI-Chunk-Min-Length", "200000")))

    hosted.relay.choose = choose
    hosted.publish(small)
    following = hosted.relay.requests[hosted.relay.requests.index(answers[0]) + 1]
    assert (following.method, following.size) == ("PUT", make_layer(small.items[0]).size)
    assert hosted.look(small) == (True, True)


def test_blobs_that_the_registry_keeps_elsewhere_are_there(hosted: Hosted, small: Content) -> None:
    hosted.publish(small)
    hosted.relay.begin()
    hosted.relay.choose = lambda request: (
        Fault(status=307, headers=(("Location", "https://elsewhere.invalid/blob"),)) if request.method == "HEAD"
        else Fault(status=404) if request.method == "GET" else None
    )  # fmt: skip
    assert hosted.publish(small).sent_bytes == 0
    assert not hosted.blobs()


ODD: dict[str, tuple[Callable[[Relayed], Fault | None], Reason, str]] = {
    "upload elsewhere": (
        lambda request: Fault(status=202, headers=(("Location", "https://elsewhere.invalid/upload?secret=1"),))
        if request.method == "POST" else None,
        Reason.DESTINATION_REFUSED, "wants uploads at https://elsewhere.invalid:443, where nothing is sent",
    ),
    "upload without TLS": (
        lambda request: Fault(status=202, headers=(("Location", f"http://{request.headers['host']}/v2/x"),))
        if request.method == "POST" else None,
        Reason.DESTINATION_REFUSED, "(behind a proxy, by X-Forwarded-Proto and Host)",
    ),
    "upload at what it was sent": (
        lambda request: Fault(status=202, headers=(("Location", f"https://{PACKED}.invalid/upload"),))
        if request.method == "POST" else None,
        Reason.DESTINATION_REFUSED, "wants uploads at https://...:443, where nothing is sent",
    ),
    "upload at no address": (
        lambda request: Fault(status=202, headers=(("Location", "https://[secret=1"),))
        if request.method == "POST" else None,
        Reason.DESTINATION_REFUSED, "wants uploads at what is no address",
    ),
    "upload at an address that cannot be": (
        lambda request: Fault(status=202, headers=(("Location", "/secret=1/" + "a" * 66_000),))
        if request.method == "POST" else None,
        Reason.DESTINATION_REFUSED, "wants uploads at what is no address",
    ),
    "upload nowhere": (
        lambda request: Fault(status=202) if request.method == "POST" else None,
        Reason.DESTINATION_UNAVAILABLE, "HTTP 202 without Location",
    ),
    "another manifest": (
        lambda request: Fault(status=201, headers=(("Docker-Content-Digest", "sha256:other"),))
        if request.method == "PUT" and "/manifests/" in request.path else None,
        Reason.DESTINATION_UNAVAILABLE, "with another digest than sha256:",
    ),
    "blobs that are gone": (
        lambda request: Fault(status=400, body=b'{"errors": [{"code": "MANIFEST_BLOB_UNKNOWN"}]}')
        if request.method == "PUT" and "/manifests/" in request.path else None,
        Reason.DESTINATION_UNAVAILABLE, "HTTP 400 (MANIFEST_BLOB_UNKNOWN)",
    ),
    "no such repository": (
        lambda request: Fault(status=404, body=b'{"errors": [{"code": "NAME_UNKNOWN"}]}')
        if request.method == "POST" else None,
        Reason.DESTINATION_REFUSED, "create it in the registry, or correct the address",
    ),
    "small bodies": (
        lambda request: Fault(status=413) if request.method == "PATCH" else None,
        Reason.DESTINATION_REFUSED, "raise its limit (client_max_body_size of nginx)",
    ),
    "sent on": (
        lambda request: Fault(status=307, headers=(("Location", "https://elsewhere.invalid/"),)),
        Reason.DESTINATION_REFUSED, "was refused with HTTP 307",
    ),
    "always at its beginning": (
        lambda request: Fault(status=416) if request.method == "PATCH" else None,
        Reason.DESTINATION_UNAVAILABLE, "3 times in a row: HTTP 416",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_registries_that_are_none(hosted: Hosted, small: Content, case: str) -> None:
    hosted.relay.choose, reason, told = ODD[case]
    error = hosted.fail(small)
    assert error.reason == reason
    assert told in error.message
    assert "secret=1" not in error.message
    assert hosted.look(small)[0] is False


# --- what else stands there


def test_tag_of_an_earlier_publication_is_moved(hosted: Hosted, small: Content, tmp_path: Path) -> None:
    """The earlier one stays under its digest."""
    first = hosted.publish(small)
    other = make_content(tmp_path / "other", {"model.safetensors": b"better"})
    assert hosted.publish(other).revision != first.revision
    assert hosted.look(other) == (True, True)
    earlier = hosted.manifest(first.revision)
    assert earlier is not None
    assert "models/model.safetensors" in hosted.unpack(earlier)
    assert hosted.publish(small) == Sent(revision=first.revision, sent_bytes=0), "moved back: that is a change"
    assert hosted.look(small) == (True, True)


@pytest.mark.parametrize("tag", ["v1", "v1-modelcar"])
@pytest.mark.parametrize("manifest", [
    {"annotations": None}, {"annotations": {"org.opencontainers.image.title": "an image"}},
    {"annotations": {CONTENT_ANNOTATION: 1}}, [], "text", None,
])  # fmt: skip
def test_tag_of_something_else_is_refused(hosted: Hosted, small: Content, tag: str, manifest: Any) -> None:
    hosted.relay.choose = lambda request: (
        Fault(status=200, body=json.dumps(manifest).encode()) if request.path.endswith(f"/manifests/{tag}") else None
    )
    error = hosted.fail(small)
    assert error.reason == Reason.DESTINATION_REFUSED
    assert f"tag {tag} is taken by something that this project has not published" in error.message
    assert not hosted.blobs(begun=True)


def test_tag_of_something_that_is_too_large_is_refused_at_once(hosted: Hosted, small: Content) -> None:
    hosted.relay.choose = lambda request: (
        Fault(status=200, body=b" " * (5 << 20)) if request.path.endswith("/manifests/v1") else None
    )
    error = hosted.fail(small)
    assert error.reason == Reason.DESTINATION_REFUSED
    assert "v1 is taken by something of more than 4,194,304 bytes" in error.message
    assert len(hosted.relay.requests) == 1


@pytest.mark.parametrize("tag", ["v1", "v1-modelcar"])
def test_tag_that_somebody_sets_meanwhile_is_left_alone(hosted: Hosted, small: Content, tag: str) -> None:
    looked: list[str] = []

    def choose(request: Relayed) -> Fault | None:
        if request.method == "GET" and request.path.endswith(f"/manifests/{tag}"):
            looked.append(request.path)
        # The first is answered by 401.
        return Fault(status=200, body=b"{}") if len(looked) == (3 if tag == "v1" else 2) else None

    hosted.relay.choose = choose
    assert hosted.fail(small).reason == Reason.DESTINATION_REFUSED
    assert hosted.manifest(tag) is None


def test_attempt_that_is_over_sets_no_tag(hosted: Hosted, small: Content) -> None:
    def end() -> None:
        raise StageError(Reason.SUPERSEDED, "a later attempt does the work")

    with pytest.raises(StageError, match="later attempt"):
        hosted.publish(small, hosted.place(check_attempt=end))
    assert hosted.look(small) == (False, False)


# --- what is sent


def test_file_that_has_changed_is_not_published(hosted: Hosted, small: Content) -> None:
    path = small.items[0].path
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert hosted.fail_as_made(small) == Reason.RESULT_DAMAGED
    assert not hosted.blobs(begun=True)


@pytest.mark.parametrize("change", [lambda content: content[:-1] + b"x", lambda content: content[:-70_000]])
def test_file_that_changes_while_it_is_sent(hosted: Hosted, small: Content, change: Callable[[bytes], bytes]) -> None:
    path = small.items[0].path
    whole = path.read_bytes()

    def choose(request: Relayed) -> Fault | None:
        if request.method == "POST":
            path.write_bytes(change(whole))
        return None

    hosted.relay.choose = choose
    assert hosted.fail_as_made(small) == Reason.RESULT_DAMAGED
    assert hosted.manifest("v1") is None


def test_memory_does_not_grow_with_a_file(hosted: Hosted, tmp_path: Path) -> None:
    content = make_content(tmp_path / "large", {"model.safetensors": b"w" * (48 << 20)})
    destination = RegistryDestination(hosted.place(), 16 << 20)
    tracemalloc.start()
    try:
        destination.publish(content, lambda num_bytes: None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 << 20


# --- who asks


def test_credentials_are_told_nowhere(hosted: Hosted, small: Content, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    hosted.publish(small)
    assert {request.authorization for request in hosted.relay.requests} == {None, BASIC}
    place = hosted.place()
    wrong = "an0ther-secret-of-a-test"
    write_secret(hosted.root, password=wrong)
    error = hosted.fail(small, hosted.place())
    assert error.reason == Reason.DESTINATION_REFUSED
    assert "HTTP 401: credentials are missing or wrong; set spec.publish.destinations[0].secretRef" in error.message
    texts = [caplog.text, str(error), repr(error), repr(place), *texts_behind(error)]
    for secret in (PASSWORD, wrong, BASIC.removeprefix("Basic ")):
        assert not [text for text in texts if secret in text]


def test_nobody_is_told_what_is_missing(hosted: Hosted, small: Content) -> None:
    shutil.rmtree(hosted.root / "secret")
    error = hosted.fail(small, hosted.place())
    assert error.reason == Reason.DESTINATION_REFUSED
    assert "set spec.publish.destinations[0].secretRef to a Secret with username and password" in error.message


def _docker_config(auths: Any) -> str:
    return json.dumps({"auths": auths}, indent=2)


@pytest.mark.parametrize("make", [
    lambda host: {host: {"auth": PACKED}},
    lambda host: {f"https://{host}/v2/": {"username": USERNAME, "password": PASSWORD}},
    lambda host: {host: {"auth": "d3JvbmcK"}, f"{host}/team": {"auth": PACKED}, f"{host}/tea": {}, f"{host}/t/x": {}},
    lambda host: {"other.example": {"auth": "d3JvbmcK"}, host: {"auth": PACKED}},
])  # fmt: skip
def test_docker_configuration(hosted: Hosted, small: Content, make: Callable[[str], Any]) -> None:
    shutil.rmtree(hosted.root / "secret")
    host = hosted.relay.base.partition("://")[2]
    write_secret(hosted.root, **{".dockerconfigjson": _docker_config(make(host))})
    hosted.publish(small)
    assert hosted.look(small) == (True, True)


@pytest.mark.parametrize(("keys", "told"), [
    ({"token": "a"}, "the Secret must hold username and password, or .dockerconfigjson"),
    ({"username": "a"}, "must hold both username and password, or neither"),
    ({".dockerconfigjson": "{"}, "must be a Docker configuration with auths"),
    ({".dockerconfigjson": "[]"}, "must be a Docker configuration with auths"),
    ({".dockerconfigjson": '{"auths": []}'}, "must be a Docker configuration with auths"),
    ({".dockerconfigjson": " " * 70_000}, "must be a Docker configuration with auths"),
    ({".dockerconfigjson": '{"auths": {"other.example": {"auth": "YTpi"}}}'}, "has no entry for 127.0.0.1:"),
    ({".dockerconfigjson": '{"auths": {"HOST": {"auth": "secret*"}}}'}, "must hold auth, which is"),
    ({".dockerconfigjson": '{"auths": {"HOST": {"auth": "YTo="}}}'}, "must hold auth, which is"),
    ({".dockerconfigjson": '{"auths": {"HOST": {"username": "secret*"}}}'}, "must hold auth, which is"),
    ({".dockerconfigjson": '{"auths": {"HOST": "secret*"}}'}, "must hold auth, which is"),
    ({".dockerconfigjson": '{"auths": {"HOST": {"identitytoken": "secret*"}}}'}, "must hold auth, which is"),
])  # fmt: skip
def test_secrets_without_a_login(hosted: Hosted, small: Content, keys: dict[str, str], told: str) -> None:
    shutil.rmtree(hosted.root / "secret")
    host = hosted.relay.base.partition("://")[2]
    write_secret(hosted.root, **{key: value.replace("HOST", host) for key, value in keys.items()})
    error = hosted.fail(small, hosted.place())
    assert error.reason == Reason.DESTINATION_REFUSED
    assert told in error.message
    assert "secret*" not in error.message
    assert not hosted.relay.requests


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "docker.io", "registry-1.docker.io"])
def test_docker_hub_has_several_names(tmp_path: Path, key: str) -> None:
    from llava_trainer.publishing.registry_access import read_login

    write_secret(tmp_path, **{".dockerconfigjson": _docker_config({key: {"auth": PACKED}})})
    login = read_login(make_place("oci://docker.io/team/model:v1", tmp_path), "docker.io", "team/model")
    assert login is not None
    assert login.basic == BASIC
    assert PASSWORD not in repr(login)


@pytest.mark.parametrize("address", [
    "oci://host/model", "oci://host:5000", "oci://:v1", "oci:///model:v1", "s3://host/model:v1", "oci://user@host/model:v1",
    "oci://host:99999/model:v1",
])  # fmt: skip
def test_addresses_that_are_none(tmp_path: Path, address: str) -> None:
    with pytest.raises(StageError, match="must be oci://REGISTRY/REPOSITORY:TAG"):
        RegistryDestination(make_place(address, tmp_path))


def test_plain_http_takes_no_password(docker_registry: Path, tmp_path: Path, small: Content) -> None:
    with run_registry(docker_registry, tmp_path) as base:
        host = base.partition("://")[2]
        place = make_place(f"oci://{host}/team/model:v1", tmp_path, plain_http=True)
        with place.client:
            RegistryDestination(place).publish(small, lambda num_bytes: None)
        assert urlopen(f"{base}/v2/team/model/tags/list").read()
        write_secret(tmp_path, username=USERNAME, password=PASSWORD)
        with pytest.raises(StageError, match=r"is reached by plain HTTP \(plainHttp\), where no password is sent"):
            RegistryDestination(place)


CHALLENGE = "HTTP/1.1 401 No\r\nWWW-Authenticate: {}\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize("where", ECHOES)
@pytest.mark.parametrize("who", ["registry", "token service"])
def test_whoever_repeats_what_it_was_sent(
    hosted: Hosted, small: Content, where: str, who: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="llava_trainer")
    challenge = CHALLENGE.format('Basic realm="tests"')
    with run_echo(lambda said: ECHOES[where](said) if said else challenge, hosted.authority) as url:
        if who == "registry":
            hosted.base = url
        else:
            headers = (("WWW-Authenticate", f'Bearer realm="{url}/token"'),)
            hosted.relay.choose = lambda request: Fault(status=401, headers=headers)
        error = hosted.fail(small)
    texts = [caplog.text, error.message, *texts_behind(error)]
    assert not [text for text in texts for secret in (PACKED, PASSWORD) if secret.lower() in text.lower()]


@pytest.fixture(scope="module")
def guarded(
    docker_registry: Path, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Relay, TokenService]]:
    """A registry that believes a token service."""
    folder = tmp_path_factory.mktemp("guarded")
    with (
        TokenService(folder).run(authority) as service,
        run_registry(docker_registry, folder, service.auth()) as base,
        Relay(base).run(authority) as relay,
    ):
        yield relay, service


@pytest.fixture
def tokens(guarded: tuple[Relay, TokenService], hosted: Hosted) -> tuple[Hosted, TokenService]:
    relay, service = guarded
    relay.begin()
    service.given.clear()
    service.requests.clear()
    service.faults.clear()
    return dataclasses.replace(hosted, upstream=relay.upstream.geturl(), relay=relay), service


def test_token_service(tokens: tuple[Hosted, TokenService], small: Content, caplog: pytest.LogCaptureFixture) -> None:
    """The password goes to the service, the token to the registry; a token that has expired is renewed."""
    caplog.set_level(logging.DEBUG)
    hosted, service = tokens
    challenge = f'Bearer realm="{service.base}/token",service="registry of tests",scope="repository:x:pull"'
    hosted.relay.faults = {8: Fault(status=401, headers=(("WWW-Authenticate", challenge),))}
    sent = hosted.publish(small)
    assert hosted.publish(small) == Sent(revision=sent.revision, sent_bytes=0, was_there=True)
    assert len(service.given) == 3
    assert {request.authorization for request in service.requests} == {BASIC}
    assert "pull,push" in service.requests[0].query.replace("%2C", ",")
    assert {request.authorization for request in hosted.relay.requests} == {
        None, *(f"Bearer {token}" for token in service.given),
    }  # fmt: skip
    assert not [token for token in service.given if token in caplog.text]


@pytest.mark.parametrize(("challenge", "reason", "told"), [
    ('Bearer realm="http://elsewhere.invalid/token"', Reason.DESTINATION_REFUSED, "at elsewhere.invalid has no TLS"),
    ('Bearer realm="https://user:secret1@elsewhere.invalid/"', Reason.DESTINATION_UNAVAILABLE, "names no address of a"),
    (f'Bearer realm="https://elsewhere.invalid/secret1{"a" * 66_000}"', Reason.DESTINATION_UNAVAILABLE, "no address"),
    ("Bearer", Reason.DESTINATION_UNAVAILABLE, "names no address of a token service"),
    ("Negotiate", Reason.DESTINATION_REFUSED, "asks neither for Basic nor for a Bearer token"),
    ('Bearer realm="SERVICE/gone"', Reason.DESTINATION_REFUSED, "credentials are missing or wrong"),
    ('Bearer realm="SERVICE/text"', Reason.DESTINATION_UNAVAILABLE, "gives no token"),
    ('Bearer realm="SERVICE/list"', Reason.DESTINATION_UNAVAILABLE, "gives no token"),
    ('Bearer realm="SERVICE/lines"', Reason.DESTINATION_UNAVAILABLE, "gives no token"),
    ('Bearer realm="SERVICE/trouble"', Reason.DESTINATION_UNAVAILABLE, "3 times in a row: HTTP 503"),
    ('Bearer realm="SERVICE/cut"', Reason.DESTINATION_UNAVAILABLE, "3 times in a row: RemoteProtocolError"),
])  # fmt: skip
def test_challenges_that_are_none(
    hosted: Hosted, authority: Authority, small: Content, challenge: str, reason: Reason, told: str
) -> None:
    from tests.trainer.servers import files

    with files.FileServer().run(authority) as service:
        service.add("/text", b"secret1")
        service.add("/list", b'["secret1"]')
        service.add("/lines", b'{"token": "secret1\\r\\nX: y"}')
        service.faults = {
            "/gone": [files.Fault(status=401)],
            "/trouble": [files.Fault(status=503)] * 3,
            "/cut": [files.Fault(break_after=0, headers={"Content-Length": "9"})] * 3,
        }
        service.add("/cut", b"secret1--")
        headers = (("WWW-Authenticate", challenge.replace("SERVICE", service.base)),)
        hosted.relay.choose = lambda request: Fault(status=401, headers=headers)
        error = hosted.fail(small)
        assert error.reason == reason
        assert told in error.message
        texts = [error.message, *texts_behind(error)]
        assert not [text for text in texts if "secret1" in text or PASSWORD in text]
