"""Whatever happens while a model is published, a reader finds nothing or the whole, and the next attempt completes it.

Each fault is caused at each request in turn. What comes of it stands in docs/publishing.md, row by row.
"""

import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.publishing.content import Content
from tests.trainer.fault_table import check_row, describe_visible
from tests.trainer.publications import make_content, publish, publish_in_process, write_s3_secret
from tests.trainer.servers.authority import Authority
from tests.trainer.servers.relay import Fault, Relay, Relayed
from tests.trainer.servers.versity import BUCKET, open_client, run_versity

NUM_REQUESTS = 18
"""Two listings; three uploads begun and four parts sent; then each is looked for, completed, and looked at."""
NOTHING, WHOLE = "nothing that loads", "the whole model"


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
    return make_content(tmp_path_factory.mktemp("content"))


@pytest.fixture(scope="module")
def relay(authority: Authority) -> Iterator[Relay]:
    with run_versity() as endpoint, Relay(endpoint).run(authority) as relay:
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


def answer(status: int, code: str) -> Fault:
    return Fault(status=status, body=f"<Error><Code>{code}</Code></Error>".encode())


FAULTS: dict[str, tuple[Callable[[BaseProcess | None], Fault], Reason | None]] = {
    "the connection is cut within each request": (lambda process: Fault(cut_after=150), Reason.DESTINATION_UNAVAILABLE),
    "the answer to each request is lost": (lambda process: Fault(loses_answer=True), Reason.DESTINATION_UNAVAILABLE),
    "HTTP 500 to each request": (lambda process: answer(500, "InternalError"), Reason.DESTINATION_UNAVAILABLE),
    "HTTP 403 to each request": (lambda process: answer(403, "AccessDenied"), Reason.DESTINATION_REFUSED),
    "SIGKILL before each request gets through": (lambda process: Fault(before=lambda: kill(process)), None),
    "SIGKILL before each answer comes": (lambda process: Fault(after=lambda: kill(process)), None),
}


def kill(process: BaseProcess | None) -> None:
    assert process is not None
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("name", FAULTS)
def test_bucket_shows_nothing_or_the_whole(
    name: str, relay: Relay, bucket: Bucket, content: Content, tmp_path: Path, authority: Authority
) -> None:
    make_fault, reason = FAULTS[name]
    given: dict[str, Any] = {"secrets": write_s3_secret(tmp_path / "secret", relay.base), "ca_pem": authority.pem}
    seen, number = [], 0
    while True:
        folder = f"{name.replace(' ', '-')}-{number}"
        address = f"s3://{BUCKET}/{folder}"
        bucket.watch(folder)
        if not fail_at(number, relay, make_fault, reason, content, address, given):
            break
        arrived = [request for request in relay.requests[: number + reaches(name)] if is_part(request)]
        seen.append(bucket.look(folder))
        relay.begin()
        assert publish(content, address, **given).sent_bytes == content.size - sum(part.size for part in arrived)
        assert bucket.look(folder) == WHOLE
        number += 1
    relay.begin()
    assert publish(content, address, **given).sent_bytes == 0
    assert {request.method for request in relay.requests} == {"GET", "HEAD"}, "a repeat changes nothing"
    assert number == NUM_REQUESTS
    assert bucket.half == []
    check_row(
        "s3", f"{name}, {number} in turn", describe_visible(seen), "completes it, and sends only what was missing"
    )


def fail_at(
    number: int, relay: Relay, make_fault: Callable[[BaseProcess | None], Fault], reason: Reason | None,
    content: Content, address: str, given: dict[str, Any],
) -> bool:  # fmt: skip
    """Publish with a fault at one request; False if there are fewer."""
    if reason is None:
        relay.begin()
        # The process is known when it has begun, and a request comes a good while after.
        begun = threading.Event()
        processes: list[BaseProcess] = []

        def choose(request: Relayed) -> Fault | None:
            begun.wait(30)
            return make_fault(processes[0]) if len(relay.requests) == number + 1 else None

        relay.choose = choose
        processes.append(publish_in_process(content, address, **given))
        begun.set()
        processes[0].join(30)
        assert processes[0].exitcode in (0, -signal.SIGKILL)
        return processes[0].exitcode != 0
    relay.begin({number: make_fault(None)})
    try:
        publish(content, address, **given)
    except StageError as error:
        assert error.reason is reason
        return True
    return len(relay.requests) > number


def is_part(request: Relayed) -> bool:
    return request.method == "PUT"


def reaches(name: str) -> int:
    """Whether the server gets the request itself: 1 or 0."""
    return 1 if "answer" in name else 0
