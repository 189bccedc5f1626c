"""Whatever happens while a model is published, a reader finds nothing or the whole, and the next attempt completes it.

Each fault is caused at each request in turn. What comes of it stands in docs/publishing.md, row by row.
"""

import hashlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.publishing.content import Content
from tests.trainer.fault_table import NOTHING, WHOLE, check_row, describe_visible
from tests.trainer.killing import Victim
from tests.trainer.places import make_content
from tests.trainer.publications import FILES, publish, publish_and_exit, write_s3_secret
from tests.trainer.servers.authority import Authority
from tests.trainer.servers.relay import Fault, Relay
from tests.trainer.servers.versity import BUCKET, open_client, run_versity

NUM_REQUESTS = 20
"""A listing, and one of uploads for each file; three uploads begun and four parts sent; then each is looked for,
completed, and looked at."""


class Bucket:
    """The bucket as its readers see it; what they have seen half of is in ``half``."""

    def __init__(self, endpoint: str, content: Content) -> None:
        self._client = open_client(endpoint)
        self._content = content
        self._folder = ""
        self._stop = threading.Event()
        self.half: list[str] = []

    def look(self, folder: str) -> str:
        """What of the model loads: a model without config.json does not, and with it all the rest has to be there."""
        listed = self._client.list_objects_v2(Bucket=BUCKET, Prefix=f"{folder}/").get("Contents", [])
        names = {entry["Key"].removeprefix(f"{folder}/") for entry in listed}
        if "config.json" not in names:
            return NOTHING
        for item in self._content.items[:-1]:
            if item.name not in names:
                return f"without {item.name}"
            body = self._client.get_object(Bucket=BUCKET, Key=f"{folder}/{item.name}")["Body"].read()
            if hashlib.sha256(body).hexdigest() != item.sha256:
                return f"another {item.name}"
        return WHOLE

    def watch(self, folder: str) -> None:
        """Look at this one from now on."""
        self._folder = folder

    def read_on(self) -> None:
        """Look the whole time, until ``stop``."""
        whole = ""
        while not self._stop.wait(0.02):
            folder = self._folder
            if folder and folder != whole:
                seen = self.look(folder)
                whole = folder if seen == WHOLE else ""
                if seen not in (NOTHING, WHOLE):
                    self.half.append(f"{folder}: {seen}")

    def stop(self) -> None:
        self._stop.set()


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Content:
    return make_content(tmp_path_factory.mktemp("content"), FILES)


@pytest.fixture(scope="module")
def relay(versitygw: Path, authority: Authority) -> Iterator[Relay]:
    with run_versity(versitygw) as endpoint, Relay(endpoint).run(authority) as relay:
        yield relay


@pytest.fixture
def bucket(relay: Relay, content: Content) -> Iterator[Bucket]:
    bucket = Bucket(relay.upstream.geturl(), content)
    reader = threading.Thread(target=bucket.read_on)
    reader.start()
    try:
        yield bucket
    finally:
        bucket.stop()
        reader.join()


@pytest.fixture(scope="module")
def victim() -> Victim:
    return Victim(["__main__", "tests.trainer.publications"])


def answer(status: int, code: str) -> Fault:
    return Fault(status=status, body=f"<Error><Code>{code}</Code></Error>".encode())


FAULTS: dict[str, tuple[Callable[[Victim], Fault], Reason | None]] = {
    "the connection is cut within each request": (lambda victim: Fault(cut_after=150), Reason.DESTINATION_UNAVAILABLE),
    "the answer to each request is lost": (lambda victim: Fault(loses_answer=True), Reason.DESTINATION_UNAVAILABLE),
    "HTTP 500 to each request": (lambda victim: answer(500, "InternalError"), Reason.DESTINATION_UNAVAILABLE),
    "HTTP 403 to each request": (lambda victim: answer(403, "AccessDenied"), Reason.DESTINATION_REFUSED),
    "SIGKILL before each request gets through": (lambda victim: Fault(before=victim.kill), None),
    "SIGKILL before each answer comes": (lambda victim: Fault(after=victim.kill), None),
}
USUAL = ("the connection is cut within each request", "SIGKILL before each answer comes")
"""Whose every request is tried each time; the others' when there is time."""


@pytest.mark.parametrize(
    "name", [name if name in USUAL else pytest.param(name, marks=pytest.mark.long) for name in FAULTS]
)
def test_bucket_shows_nothing_or_the_whole(
    name: str, relay: Relay, bucket: Bucket, content: Content, tmp_path: Path, authority: Authority, victim: Victim
) -> None:
    make_fault, reason = FAULTS[name]
    write_s3_secret(tmp_path, relay.base)
    more = {"ca_pem": authority.pem}
    seen: list[str] = []
    for number in range(NUM_REQUESTS):
        folder = f"{name.replace(' ', '-')}-{number}"
        address = f"s3://{BUCKET}/{folder}"
        bucket.watch(folder)
        relay.begin({number: make_fault(victim)})
        if reason is None:
            assert victim.run(publish_and_exit, content, address, tmp_path, None, more) == -signal.SIGKILL
        else:
            with pytest.raises(StageError) as raised:
                publish(content, address, tmp_path, **more)
            assert raised.value.reason is reason
        arrived = sum(one.size for one in relay.requests[: number + ("answer" in name)] if one.method == "PUT")
        seen.append(bucket.look(folder))
        relay.begin()
        assert publish(content, address, tmp_path, **more).sent_bytes == content.size - arrived
        assert bucket.look(folder) == WHOLE
    relay.begin()
    assert publish(content, address, tmp_path, **more).sent_bytes == 0
    assert {request.method for request in relay.requests} == {"GET", "HEAD"}, "a repeat changes nothing"
    assert bucket.half == []
    check_row(
        "s3", f"{name}, {len(seen)} in turn", describe_visible(seen), "completes it, and sends only what was missing"
    )


@pytest.mark.mounts
def test_server_whose_disk_is_full(versitygw: Path, content: Content, tmp_path: Path, authority: Authority) -> None:
    mount = ["unshare", "--mount", "sh", "-ec", 'mount -t tmpfs -o size=14m none {folder}/objects; exec "$@"', "sh"]
    with run_versity(versitygw, before=mount) as endpoint, Relay(endpoint).run(authority) as relay:
        write_s3_secret(tmp_path, relay.base)
        client, address = open_client(endpoint), f"s3://{BUCKET}/trays"
        client.put_object(Bucket=BUCKET, Key="other", Body=bytes(11 << 20))
        with pytest.raises(StageError) as raised:
            publish(content, address, tmp_path, ca_pem=authority.pem)
        assert raised.value.reason is Reason.DESTINATION_REFUSED
        assert "has no room left (HTTP 507): make room there" in raised.value.message
        seen = Bucket(endpoint, content).look("trays")
        client.delete_object(Bucket=BUCKET, Key="other")
        publish(content, address, tmp_path, ca_pem=authority.pem)
        assert Bucket(endpoint, content).look("trays") == WHOLE
    check_row(
        "s3",
        "the server's disk is full (a real one), once",
        describe_visible([seen]),
        "completes it when there is room",
    )


def test_number_of_requests(relay: Relay, content: Content, tmp_path: Path, authority: Authority) -> None:
    write_s3_secret(tmp_path, relay.base)
    relay.begin()
    assert publish(content, f"s3://{BUCKET}/plain", tmp_path, ca_pem=authority.pem).sent_bytes == content.size
    assert len(relay.requests) == NUM_REQUESTS
