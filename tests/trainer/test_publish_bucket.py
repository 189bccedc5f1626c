"""What a bucket may hold and answer while a model is published to it: a real server, and answers put in its place."""

import hashlib
import logging
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.publishing import parts as parts_module
from llava_trainer.publishing.content import CHUNK_BYTES, Content
from llava_trainer.publishing.destination import Sent
from llava_trainer.publishing.parts import digest_parts, etag_of, read_part
from llava_trainer.sources import network
from tests.trainer.places import FIELD, QUICK, make_content, texts_behind, write_secret
from tests.trainer.publications import FILES, PART_BYTES, publish, write_s3_secret
from tests.trainer.servers.authority import Authority
from tests.trainer.servers.echo import ECHOES, run_echo
from tests.trainer.servers.relay import Fault, Relay, Relayed
from tests.trainer.servers.s3 import open_bucket, run_s3
from tests.trainer.servers.sts import TokenService
from tests.trainer.servers.versity import BUCKET, KEYS, open_client, run_versity

WEIGHTS = "model.safetensors"
SECRET_FIELD = "spec.publish.destinations[0].secretRef"


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Content:
    return make_content(tmp_path_factory.mktemp("content"), FILES)


@pytest.fixture(scope="module")
def relay(versitygw: Path, authority: Authority) -> Iterator[Relay]:
    with run_versity(versitygw) as endpoint, Relay(endpoint).run(authority) as relay:
        yield relay


class Folder:
    """A folder of the bucket, publishing to it, and looking at it directly."""

    def __init__(self, name: str, root: Path, relay: Relay, authority: Authority) -> None:
        self.address = f"s3://{BUCKET}/{name}"
        self.client = open_client(relay.upstream.geturl())
        self.relay = relay
        self.root = root
        self._name = name
        self.authority = authority

    def publish(self, content: Content, **more: Any) -> int:
        return publish(content, self.address, self.root, ca_pem=self.authority.pem, **more).sent_bytes

    def fail(self, content: Content, reason: Reason = Reason.DESTINATION_REFUSED, **more: Any) -> str:
        with pytest.raises(StageError) as raised:
            self.publish(content, **more)
        assert raised.value.reason is reason, raised.value
        assert raised.value.message.startswith(f"{FIELD}: {self.address}")
        for secret in KEYS.values():
            assert secret not in raised.value.message
        return raised.value.message

    def key(self, name: str) -> str:
        return f"{self._name}/{name}"

    def put(self, name: str, body: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=self.key(name), Body=body)

    def begin_upload(self, name: str, *bodies: bytes) -> str:
        where = {"Bucket": BUCKET, "Key": self.key(name)}
        upload_id = str(self.client.create_multipart_upload(**where)["UploadId"])
        for number, body in enumerate(bodies, start=1):
            self.client.upload_part(**where, UploadId=upload_id, PartNumber=number, Body=body)
        return upload_id

    def uploads(self) -> list[str]:
        listed = self.client.list_multipart_uploads(Bucket=BUCKET, Prefix=self.key("")).get("Uploads", [])
        return [entry["Key"] for entry in listed]

    def standing(self) -> dict[str, bytes]:
        listed = self.client.list_objects_v2(Bucket=BUCKET, Prefix=self.key("")).get("Contents", [])
        keys = [entry["Key"] for entry in listed]
        return {
            key.removeprefix(self.key("")): self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            for key in keys
        }


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path, relay: Relay, authority: Authority) -> Folder:
    write_s3_secret(tmp_path, relay.base)
    relay.begin()
    return Folder(hashlib.sha256(request.node.name.encode()).hexdigest()[:12], tmp_path, relay, authority)


def files_of(content: Content) -> dict[str, bytes]:
    return {item.name: item.path.read_bytes() for item in content.items}


def test_progress_tells_of_all_bytes(folder: Folder, content: Content) -> None:
    told: list[int] = []
    assert folder.publish(content, on_bytes=told.append) == content.size
    assert told == sorted(told)
    assert told[0] == PART_BYTES
    assert told[-1] == content.size
    assert folder.standing() == files_of(content)
    written = folder.client.head_object(Bucket=BUCKET, Key=folder.key(WEIGHTS))
    assert written["Metadata"]["sha256"] == content.items[0].sha256


@pytest.mark.parametrize(
    ("name", "told"),
    [("notes.txt", "holds notes.txt, which is no part of this publication"), ("config.json", "another config.json")],
)
def test_folder_with_something_else_is_left_alone(name: str, told: str, folder: Folder, content: Content) -> None:
    folder.put(name, b"mine")
    message = folder.fail(content)
    assert told in message
    assert "name another folder, or empty this one" in message
    assert folder.standing() == {name: b"mine"}


def test_folder_next_to_one_with_the_same_beginning(folder: Folder, content: Content) -> None:
    folder.client.put_object(Bucket=BUCKET, Key=folder.key("").rstrip("/") + "-other/notes.txt", Body=b"mine")
    assert folder.publish(content) == content.size


def test_mark_of_a_folder_is_nothing(folder: Folder, content: Content) -> None:
    folder.client.put_object(Bucket=BUCKET, Key=folder.key(""), Body=b"")
    assert folder.publish(content) == content.size


def test_both_lie_in_each_other(folder: Folder, content: Content, tmp_path: Path) -> None:
    adapter = make_content(tmp_path / "adapter", {"adapter_model.safetensors": b"1234"}, what="adapter")
    upload = folder.begin_upload("adapter/adapter_model.safetensors", b"1234")
    assert upload
    for sent in (1, 0):
        assert folder.publish(content, beside="adapter") == sent * content.size
        assert folder.publish(adapter, folder="adapter") == sent * (adapter.size - 4), "the upload is gone on with"
    assert {name for name in folder.standing() if name.startswith("adapter/")} == {
        f"adapter/{item.name}" for item in adapter.items
    }


def test_leftover_uploads_are_gone_on_with_or_aborted(
    folder: Folder, content: Content, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    weights = FILES[WEIGHTS]
    folder.begin_upload(WEIGHTS, bytes(PART_BYTES))
    folder.begin_upload(WEIGHTS, weights[:PART_BYTES])
    folder.begin_upload("config.json", b"another")
    others = ["backup.tar", f"{WEIGHTS}.bak"]
    for name in others:
        folder.begin_upload(name, b"of somebody who is at it")
    assert folder.publish(content) == content.size - PART_BYTES
    assert folder.uploads() == [folder.key(name) for name in others]
    assert folder.standing() == files_of(content)
    aborted = [record.message for record in caplog.records if "left behind is aborted" in record.message]
    assert len(aborted) == 2


def test_upload_of_another_run_is_not_written_to(folder: Folder, content: Content) -> None:
    upload_id = folder.begin_upload(WEIGHTS, FILES[WEIGHTS][:PART_BYTES], b"x" * 2000)
    folder.relay.choose = lambda request: (
        refusal(403, "AccessDenied") if request.method == "POST" and request.size else None
    )
    folder.fail(content)
    listed = folder.client.list_parts(Bucket=BUCKET, Key=folder.key(WEIGHTS), UploadId=upload_id)["Parts"]
    assert [part["Size"] for part in listed] == [PART_BYTES, 2000]


def test_server_that_lists_uploads_by_whole_keys_alone(folder: Folder, content: Content) -> None:
    """As MinIO does: https://github.com/minio/minio/issues/20989."""
    none = b"<ListMultipartUploadsResult><Bucket>models</Bucket></ListMultipartUploadsResult>"

    def choose(request: Relayed) -> Fault | None:
        asked = parse_qs(urlsplit(request.path).query, keep_blank_values=True)
        is_by_folder = "uploads" in asked and asked.get("prefix", [""])[0].endswith("/")
        return Fault(status=200, body=none) if is_by_folder else None

    folder.begin_upload(WEIGHTS, FILES[WEIGHTS][:PART_BYTES])
    folder.relay.choose = choose
    assert folder.publish(content) == content.size - PART_BYTES
    assert folder.uploads() == []


def test_what_nobody_could_see_was_not_there(folder: Folder, content: Content, authority: Authority) -> None:
    def go_on() -> Sent:
        return publish(content, folder.address, folder.root, ca_pem=authority.pem)

    folder.relay.choose = lambda request: (
        refusal(403, "AccessDenied") if request.method == "POST" and request.size else None
    )
    folder.fail(content)
    folder.relay.begin()
    assert go_on() == Sent(sent_bytes=0)
    assert go_on() == Sent(sent_bytes=0, was_there=True)


def test_cut_connections_are_tried_again_in_the_same_attempt(folder: Folder, content: Content) -> None:
    folder.relay.begin({5: Fault(cut_after=100), 6: Fault(status=503), 14: Fault(loses_answer=True)})
    assert folder.publish(content, patience=QUICK) == content.size
    assert folder.standing() == files_of(content)


def test_lost_answer_to_a_completion_is_no_failure(folder: Folder, content: Content) -> None:
    lost: list[str] = []

    def choose(request: Relayed) -> Fault | None:
        if request.method == "POST" and request.size and not lost:
            lost.append(request.path)
            return Fault(loses_answer=True)
        return None

    folder.relay.choose = choose
    assert folder.publish(content, patience=QUICK) == content.size
    assert lost
    assert folder.standing() == files_of(content)


def test_completion_may_take_its_time(folder: Folder, content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "READ_TIMEOUT_S", 1.0)
    on_completion(folder, lambda request: time.sleep(1.5))
    assert folder.publish(content) == content.size


def test_error_behind_a_status_of_success_is_tried_again(folder: Folder, content: Content) -> None:
    body = (
        b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>InternalError</Code><Message>VERSITY</Message></Error>'
    )
    given: list[str] = []

    def choose(request: Relayed) -> Fault | None:
        if request.method == "POST" and request.size and len(given) < 2:
            given.append(request.path)
            return Fault(status=200, body=body)
        return None

    folder.relay.choose = choose
    assert folder.publish(content, patience=QUICK) == content.size
    assert folder.standing() == files_of(content)


def on_completion(folder: Folder, act: Callable[[Relayed], Fault | None]) -> None:
    """Have something happen when the first upload is about to be completed."""
    done: list[str] = []

    def choose(request: Relayed) -> Fault | None:
        if request.method == "POST" and request.size and not done:
            done.append(request.path)
            return act(request)
        return None

    folder.relay.choose = choose


def test_what_is_put_there_meanwhile_is_not_overwritten(folder: Folder, content: Content) -> None:
    on_completion(folder, lambda request: folder.put(WEIGHTS, b"mine"))
    assert f"another {WEIGHTS}" in folder.fail(content)
    assert folder.standing() == {WEIGHTS: b"mine"}


def test_nothing_is_completed_over_what_is_seen_there(folder: Folder, content: Content) -> None:
    """Not every server that takes a condition heeds it."""

    def choose(request: Relayed) -> Fault | None:
        if "partNumber=1" in request.path and "config.json" in request.path:
            folder.put(WEIGHTS, b"mine")
        return None

    folder.relay.choose = choose
    assert f"another {WEIGHTS}" in folder.fail(content)
    assert [request.path for request in folder.relay.requests if request.method == "POST" and request.size] == []


def test_server_without_conditions_is_asked_without(
    folder: Folder, content: Content, caplog: pytest.LogCaptureFixture
) -> None:
    def choose(request: Relayed) -> Fault | None:
        has_condition = request.method == "POST" and "if-none-match" in request.headers
        return Fault(status=501, body=b"<Error><Code>NotImplemented</Code></Error>") if has_condition else None

    folder.relay.choose = choose
    assert folder.publish(content) == content.size
    assert folder.standing() == files_of(content)
    assert "the server does not know If-None-Match" in caplog.text


def abort_all(folder: Folder) -> None:
    for entry in folder.client.list_multipart_uploads(Bucket=BUCKET, Prefix=folder.key(""))["Uploads"]:
        folder.client.abort_multipart_upload(Bucket=BUCKET, Key=entry["Key"], UploadId=entry["UploadId"])


def test_upload_that_somebody_aborts(folder: Folder, content: Content) -> None:
    on_completion(folder, lambda request: abort_all(folder))
    message = folder.fail(content, Reason.DESTINATION_UNAVAILABLE)
    assert f"the upload of {WEIGHTS} is gone: somebody has aborted it" in message
    assert folder.standing() == {}
    assert folder.publish(content) == content.size


def test_upload_that_is_aborted_while_its_parts_are_sent(folder: Folder, content: Content) -> None:
    def choose(request: Relayed) -> None:
        if "partNumber=2" in request.path:
            abort_all(folder)

    folder.relay.choose = choose
    message = folder.fail(content, Reason.DESTINATION_UNAVAILABLE)
    assert f"the upload of {WEIGHTS} is gone: somebody has aborted it" in message


def test_object_that_somebody_deletes(folder: Folder, content: Content) -> None:
    def choose(request: Relayed) -> Fault | None:
        is_last_look = request.method == "HEAD" and folder.relay.requests[-2].method == "POST"
        return Fault(status=404) if is_last_look else None

    folder.relay.choose = choose
    assert "was there and is gone" in folder.fail(content, Reason.DESTINATION_UNAVAILABLE)


def refusal(status: int, code: str) -> Fault:
    return Fault(status=status, body=f"<Error><Code>{code}</Code><Message>VERSITYSECRETKEY</Message></Error>".encode())


@pytest.mark.parametrize(
    ("fault", "reason", "told"),
    [
        (refusal(403, "AccessDenied"), Reason.DESTINATION_REFUSED, f"credentials in {SECRET_FIELD} may not write it"),
        (refusal(403, "SignatureDoesNotMatch"), Reason.DESTINATION_REFUSED, f"the keys in {SECRET_FIELD} are wrong"),
        (refusal(400, "ExpiredToken"), Reason.DESTINATION_REFUSED, "as long as publishing takes, and raise spec.retry"),
        (refusal(404, "NoSuchBucket"), Reason.DESTINATION_REFUSED, f"it does not exist; correct {FIELD}"),
        (refusal(409, "OperationAborted"), Reason.DESTINATION_UNAVAILABLE, "HTTP 409 (OperationAborted)"),
        (refusal(409, "BucketNotEmpty"), Reason.DESTINATION_REFUSED, "refused with HTTP 409"),
        (refusal(507, "XMinioStorageFull"), Reason.DESTINATION_REFUSED, "has no room left"),
        (refusal(400, "QuotaExceeded"), Reason.DESTINATION_REFUSED, "make room there, and raise spec.retry"),
        (refusal(503, "SlowDown"), Reason.DESTINATION_UNAVAILABLE, "could not be published to, 3 times in a row"),
        (refusal(500, "InternalError"), Reason.DESTINATION_UNAVAILABLE, "HTTP 500 (InternalError)"),
        (Fault(status=301, headers=(("Location", "https://elsewhere/"),)), Reason.DESTINATION_REFUSED, "HTTP 301"),
        (Fault(status=200, body=b"<html>VERSITYSECRETKEY</html>"), Reason.DESTINATION_UNAVAILABLE,
         "does not answer as S3 does"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["PUT", "POST", "GET"])
def test_refusal_names_field_and_fix(
    method: str, fault: Fault, reason: Reason, told: str, folder: Folder, content: Content
) -> None:
    folder.relay.choose = lambda request: fault if request.method == method else None
    assert told in folder.fail(content, reason, patience=QUICK)
    assert folder.standing() == {}


@pytest.mark.parametrize(
    "body",
    [
        "<ListBucketResult><Name>models</Name><IsTruncated>true</IsTruncated></ListBucketResult>",
        "<ListBucketResult><Name>models</Name><IsTruncated>true</IsTruncated><NextContinuationToken>a</NextContinuationToken>"
        "</ListBucketResult>",
    ],
)
def test_listing_without_an_end(body: str, folder: Folder, content: Content) -> None:
    folder.relay.choose = lambda request: Fault(status=200, body=body.encode()) if request.method == "GET" else None
    assert "lists without end" in folder.fail(content, Reason.DESTINATION_UNAVAILABLE)


def test_listing_with_half_an_entry(folder: Folder, content: Content) -> None:
    body = b"<ListBucketResult><Name>models</Name><Contents><Size>1</Size></Contents></ListBucketResult>"
    folder.relay.choose = lambda request: Fault(status=200, body=body) if request.method == "GET" else None
    assert "does not answer as S3 does" in folder.fail(content, Reason.DESTINATION_UNAVAILABLE)


def test_listing_of_ever_more(folder: Folder, content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_trainer.publishing.bucket_client._MOST_ENTRIES", 5)
    entry = f"<Contents><Key>{folder.key('config.json')}</Key><Size>1</Size></Contents>"

    def choose(request: Relayed) -> Fault:
        token = f"<NextContinuationToken>{len(folder.relay.requests)}</NextContinuationToken>"
        body = (
            f"<ListBucketResult><Name>models</Name><IsTruncated>true</IsTruncated>{token}{entry * 2}</ListBucketResult>"
        )
        return Fault(status=200, body=body.encode())

    folder.relay.choose = choose
    assert "more than 5 entries" in folder.fail(content, Reason.DESTINATION_UNAVAILABLE)


def test_nobody_is_asked_without_keys_of_a_pair(folder: Folder, content: Content, tmp_path: Path) -> None:
    (tmp_path / "secret" / "secretAccessKey").unlink()
    with pytest.raises(StageError, match="must hold both accessKeyId and secretAccessKey") as raised:
        folder.publish(content)
    assert raised.value.reason is Reason.DESTINATION_REFUSED
    assert folder.relay.requests == []


def test_endpoint_with_credentials_is_none(folder: Folder, content: Content, tmp_path: Path) -> None:
    write_secret(tmp_path, endpoint="https://user:VERSITYSECRETKEY@127.0.0.1")
    with pytest.raises(StageError, match="key endpoint of the Secret must be an address") as raised:
        folder.publish(content)
    assert "VERSITYSECRETKEY" not in str(raised.value)
    assert raised.value.reason is Reason.DESTINATION_REFUSED


@pytest.mark.parametrize("where", ECHOES)
def test_server_that_repeats_what_it_was_sent(
    where: str, authority: Authority, content: Content, tmp_path: Path
) -> None:
    with run_echo(ECHOES[where], authority) as url:
        write_s3_secret(tmp_path, url)
        with pytest.raises(StageError) as raised:
            publish(content, f"s3://{BUCKET}/trays", tmp_path, ca_pem=authority.pem)
    texts = [raised.value.message, *texts_behind(raised.value)]
    assert not [text for text in texts if "signature=" in text.lower() or KEYS["access_key_id"] in text]


def test_bucket_without_a_secret_is_asked_anonymously(folder: Folder, content: Content, tmp_path: Path) -> None:
    write_secret(tmp_path, endpoint=folder.relay.base)
    for key in ("accessKeyId", "secretAccessKey"):
        (tmp_path / "secret" / key).unlink()
    assert "was refused with HTTP 403" in folder.fail(content)
    assert {request.authorization for request in folder.relay.requests} == {None}


def test_superseded_attempt_publishes_nothing(folder: Folder, content: Content) -> None:
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise StageError(Reason.SUPERSEDED, "a later attempt does the work")

    with pytest.raises(StageError, match="Superseded"):
        folder.publish(content, check_attempt=check)
    assert folder.standing() == {}
    assert len(folder.uploads()) == 3, "a later attempt goes on with them"


def test_file_that_changes_is_not_published(folder: Folder, tmp_path: Path) -> None:
    content = make_content(tmp_path / "content", FILES)
    weights = tmp_path / "content" / WEIGHTS

    def spoil(done: int) -> None:
        weights.write_bytes(bytes(len(FILES[WEIGHTS])))

    with pytest.raises(StageError, match="changes while it is published") as raised:
        folder.publish(content, on_bytes=spoil)
    assert raised.value.reason is Reason.RESULT_DAMAGED
    with pytest.raises(StageError, match="was made with"):
        folder.publish(content)
    assert folder.standing() == {}


def test_server_with_etags_of_its_own(versitygw: Path, authority: Authority, content: Content, tmp_path: Path) -> None:
    with run_versity(versitygw, "--data-integrity-etag") as endpoint, Relay(endpoint).run(authority) as relay:
        write_s3_secret(tmp_path, relay.base)
        folder = Folder("trays", tmp_path, relay, authority)
        for leftover in (b"of another run, which has told what its own file hashes to", b""):
            folder.begin_upload(WEIGHTS, *([leftover] if leftover else []))
        assert folder.publish(content) == content.size
        assert folder.publish(content) == 0
        folder.client.delete_object(Bucket=BUCKET, Key=folder.key("config.json"))
        folder.put("config.json", FILES["config.json"])
        assert "another config.json" in folder.fail(content), "nobody says what it hashes to"


def test_bucket_without_a_secret_is_written_as_the_pods_role(
    authority: Authority, content: Content, tmp_path: Path
) -> None:
    service = TokenService()
    (tmp_path / "token").write_text("token-1")
    with service.run(authority) as sts, run_s3(authority, guard=service.guard) as endpoint:
        open_bucket(endpoint, authority).create_bucket(Bucket="private")
        role = "arn:aws:iam::123456789012:role/invoices"
        environ = {
            "AWS_ROLE_ARN": role, "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"), "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_STS": sts, "AWS_ENDPOINT_URL_S3": endpoint,
        }  # fmt: skip
        address = "s3://private/models/trays"
        for sent in (content.size, 0):
            done = publish(content, address, tmp_path, ca_pem=authority.pem, environ=environ)
            assert done.sent_bytes == sent
        assert set(service.used) == {"key-1", "key-2"}
        service.refuse(403, "AccessDenied", "list-type=", times=9)
        with pytest.raises(StageError, match=r"may not write it: allow it s3:ListBucket and") as raised:
            publish(content, address, tmp_path, ca_pem=authority.pem, environ=environ)
        assert f"role {role}" in raised.value.message
        assert raised.value.reason is Reason.DESTINATION_REFUSED


def test_server_that_takes_its_time_is_left(
    versitygw: Path, authority: Authority, content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes some bytes long before the timeout, each time."""
    monkeypatch.setattr(network, "WINDOW_S", 0.2)
    monkeypatch.setattr(network, "MIN_BYTES_PER_S", 100 << 20)
    with run_versity(versitygw) as endpoint, Relay(endpoint).run(authority) as relay:
        write_s3_secret(tmp_path, relay.base)
        relay.choose = lambda request: time.sleep(0.5) if request.size > PART_BYTES // 2 else None
        message = Folder("trays", tmp_path, relay, authority).fail(content, Reason.DESTINATION_UNAVAILABLE)
    assert "WriteTimeout: slower than 104,857,600 bytes a second" in message


def test_memory_follows_from_a_part(folder: Folder, tmp_path: Path) -> None:
    """The clients' copies included, whatever a file's size."""
    large = make_content(tmp_path / "large", {WEIGHTS: FILES[WEIGHTS] * 12})
    tracemalloc.start()
    try:
        assert folder.publish(large) == large.size
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5 * PART_BYTES


def test_parts_of_a_file(content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = content.items[0]
    found = digest_parts(weights, PART_BYTES)
    assert [(part.number, part.offset, part.size) for part in found] == [(1, 0, PART_BYTES), (2, PART_BYTES, 1000)]
    with weights.path.open("rb") as stream:
        assert b"".join(read_part(stream, weights, part) for part in reversed(found)) == (
            FILES[WEIGHTS][PART_BYTES:] + FILES[WEIGHTS][:PART_BYTES]
        )
    monkeypatch.setattr(parts_module, "_MAX_PARTS", 2)
    assert [part.size for part in digest_parts(weights, CHUNK_BYTES)] == [3 * CHUNK_BYTES, 2 * CHUNK_BYTES + 1000]


def test_etag_is_what_s3_says(folder: Folder, content: Content) -> None:
    folder.publish(content)
    for item in content.items:
        said = folder.client.head_object(Bucket=BUCKET, Key=folder.key(item.name))["ETag"]
        assert said == f'"{etag_of(digest_parts(item, PART_BYTES))}"'
