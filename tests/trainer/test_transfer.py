"""One file from a real TLS server that breaks off, refuses and lies: it arrives whole or with a reason, never twice."""

import hashlib
import json
import os
import random
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, Literal
from urllib.parse import quote

import httpx
import pytest

from llava_api.failures import Reason
from llava_trainer.errors import StageError
from llava_trainer.retrying import Patience, StoppedError
from llava_trainer.sources import journal, network, transfer
from llava_trainer.sources.fetched import JOURNAL, state_of
from llava_trainer.sources.journal import Journal
from llava_trainer.sources.network import Network, build_client
from llava_trainer.sources.partial_file import PartialFile
from llava_trainer.sources.progress import Progress
from llava_trainer.sources.refusals import MissingError
from llava_trainer.sources.remote import Digest, RemoteFile, check_name
from llava_trainer.sources.transfer import Downloader
from tests.trainer.runs import Recorder, run_config
from tests.trainer.servers.authority import Authority
from tests.trainer.servers.files import Fault, FileServer

CONTENT = random.Random(0).randbytes(9 << 20)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = Patience(tries=3, first_s=0.01, most_s=0.02)
HALF = 5 << 20


@pytest.fixture
def server(authority: Authority) -> Iterator[FileServer]:
    with FileServer().run(authority) as server:
        server.add("/big.bin", CONTENT)
        yield server


@pytest.fixture(scope="module")
def client(authority: Authority) -> Iterator[httpx.Client]:
    with build_client(Network(ca_pem=authority.pem)) as client:
        yield client


class Fetching:
    """A downloader, and the folder that it fetches into."""

    def __init__(self, client: httpx.Client, server: FileServer, folder: Path) -> None:
        self.folder = folder / "files"
        self.server = server
        self.recorder = Recorder(run_config(folder))
        self.progress = Progress(self.recorder, clock=iter(range(10**6)).__next__)
        self.downloader = Downloader(
            client=client, field="spec.model.source", volume=folder, progress=self.progress, patience=QUICK,
            stop=threading.Event(),
        )  # fmt: skip

    def __call__(self, path: str = "/big.bin", **changes: object) -> Path:
        url = self.server.base + quote(path)
        remote = RemoteFile(**{"name": path[1:], "address": f"https://host{path}", "url": lambda: url, **changes})
        with Journal(self.folder) as journal:
            self.downloader.fetch(remote, journal)
        return self.folder / remote.name

    def failure(self, **changes: object) -> StageError:
        with pytest.raises(StageError) as caught:
            self(**changes)
        return caught.value


@pytest.fixture
def fetch(client: httpx.Client, server: FileServer, tmp_path: Path) -> Fetching:
    return Fetching(client, server, tmp_path)


def left_over(folder: Path) -> list[str]:
    places = (folder, state_of(folder) / "partial")
    return sorted(path.name for place in places for path in place.iterdir())


def leave_partial(fetch: Fetching, content: bytes, version: str = "", synced: int | None = None) -> None:
    """What an attempt before would have left of big.bin."""
    with Journal(fetch.folder) as journal:
        partial = journal.partial_of("big.bin")
    partial.write_bytes(content)
    size = len(content) if synced is None else synced
    partial.with_suffix(".json").write_text(json.dumps({"version": version, "size": size}))


def test_file_arrives_and_everyone_may_read_it(fetch: Fetching) -> None:
    previous = os.umask(0o077)
    try:
        path = fetch()
    finally:
        os.umask(previous)
    assert path.read_bytes() == CONTENT
    assert path.stat().st_mode & 0o777 == 0o644
    assert left_over(fetch.folder) == ["big.bin"]


def test_longest_name_has_room_for_what_it_is_called_meanwhile(fetch: Fetching) -> None:
    name = "ü" * 115
    fetch.server.add(f"/{name}", CONTENT)
    fetch.server.faults[f"/{name}"] = [Fault(break_after=HALF)]
    assert fetch(f"/{name}", name=check_name(name, "spec.model.source", "s3://b")).read_bytes() == CONTENT


def test_what_broke_off_is_continued(fetch: Fetching) -> None:
    fetch.server.faults["/big.bin"] = [Fault(break_after=HALF)]
    assert fetch().read_bytes() == CONTENT
    assert fetch.server.asked("/big.bin") == [None, f"bytes={HALF - 1}-"]


def test_another_attempt_continues_what_the_first_had_to_leave(fetch: Fetching) -> None:
    fetch.server.faults["/big.bin"] = [Fault(break_after=HALF), Fault(status=503), Fault(status=503)]
    error = fetch.failure()
    assert error.reason is Reason.SOURCE_UNAVAILABLE
    assert "spec.model.source: https://host/big.bin could not be fetched, 3 times in a row: HTTP 503" in error.message
    fetch.server.requests.clear()
    assert fetch().read_bytes() == CONTENT
    assert fetch.server.asked("/big.bin") == [f"bytes={HALF - 1}-"]


def test_what_is_whole_is_verified_and_not_fetched_again(fetch: Fetching) -> None:
    path = fetch()
    fetch.server.requests.clear()
    fetch()
    assert fetch.server.requests == []
    damaged = bytearray(CONTENT)
    damaged[100] ^= 1
    path.write_bytes(damaged)
    assert fetch().read_bytes() == CONTENT
    assert len(fetch.server.requests) == 1


def test_another_version_is_fetched_anew(fetch: Fetching) -> None:
    fetch(version="1")
    fetch(version="2")
    fetch(version="2")
    assert len(fetch.server.requests) == 2


def test_journal_that_a_crash_cut_off_is_read_as_far_as_it_goes(fetch: Fetching) -> None:
    fetch()
    journal = state_of(fetch.folder) / JOURNAL
    journal.write_text(journal.read_text() + '{"name": "other.bin", "addr')
    fetch.server.add("/small.bin", b"small")
    fetch("/small.bin")
    fetch.server.requests.clear()
    fetch()
    fetch("/small.bin")
    assert fetch.server.requests == []


def test_only_what_was_on_the_disk_for_sure_is_continued(fetch: Fetching) -> None:
    """After a crash of the node the rest of the partial file may be anything."""
    tag = f'"{hashlib.sha1(CONTENT).hexdigest()}"'
    leave_partial(fetch, CONTENT[:HALF] + bytes(1 << 20), tag, synced=HALF)
    assert fetch().read_bytes() == CONTENT
    assert fetch.server.asked("/big.bin") == [f"bytes={HALF - 1}-"]


@pytest.mark.parametrize("left", [HALF - 1, 0])
def test_partial_file_that_lost_what_was_noted_is_begun_anew(fetch: Fetching, left: int) -> None:
    tag = f'"{hashlib.sha1(CONTENT).hexdigest()}"'
    leave_partial(fetch, CONTENT[:left], tag, synced=HALF)
    assert fetch().read_bytes() == CONTENT
    assert fetch.server.asked("/big.bin") == [None]


def test_partial_file_that_shrinks_before_it_is_read_again_is_not_continued(
    fetch: Fetching, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What follows would be written in the wrong place, and without a digest nothing would tell."""
    tag = f'"{hashlib.sha1(CONTENT).hexdigest()}"'
    leave_partial(fetch, CONTENT[:HALF], tag)
    find = PartialFile.find
    found = [(HALF + 1000, tag)]
    monkeypatch.setattr(PartialFile, "find", lambda self, **how: found.pop() if found else find(self, **how))
    assert fetch().read_bytes() == CONTENT
    assert fetch.server.asked("/big.bin") == [f"bytes={HALF + 1000}-", f"bytes={HALF - 1}-"]


def test_crash_after_the_file_is_cut_leaves_no_old_bytes_under_the_new_version(
    fetch: Fetching, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version was noted before the old bytes were cut off, and nothing told which of them were on the disk."""
    leave_partial(fetch, CONTENT[::-1][:HALF], '"old"')
    seen: list[tuple[bool, int]] = []
    write = transfer._Transfer._write

    def watch(self: transfer._Transfer, *args: Any) -> None:
        with Journal(fetch.folder) as journal:
            partial = journal.partial_of("big.bin")
        seen.append((partial.with_suffix(".json").exists(), partial.stat().st_size))
        write(self, *args)

    monkeypatch.setattr(transfer._Transfer, "_write", watch)
    assert fetch().read_bytes() == CONTENT
    assert seen == [(False, 0)]


def test_long_file_is_synced_and_noted_while_it_comes(fetch: Fetching, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[int] = []
    keep = PartialFile.keep

    def note(self: PartialFile, stream: BinaryIO, version: str, size: int) -> None:
        noted.append(size)
        keep(self, stream, version, size)

    monkeypatch.setattr(PartialFile, "keep", note)
    monkeypatch.setattr(transfer, "_SYNC_BYTES", 2 << 20)
    fetch()
    assert len(noted) >= 3
    assert noted == sorted(noted)


@pytest.mark.parametrize(
    "name", [".fetched.jsonl", "fetched.jsonl", ".commit.json", ".big.bin.partial", "big.bin.json"]
)
def test_file_of_any_name_replaces_nothing_of_ours(fetch: Fetching, name: str) -> None:
    fetch.server.add(f"/{name}", b"{}")
    fetch.server.faults["/big.bin"] = [Fault(break_after=HALF), Fault(status=503), Fault(status=503)]
    fetch.failure()
    assert fetch(f"/{name}").read_bytes() == b"{}"
    fetch.server.requests.clear()
    assert fetch().read_bytes() == CONTENT
    assert fetch(f"/{name}").read_bytes() == b"{}"
    assert [(request.path, request.range) for request in fetch.server.requests] == [("/big.bin", f"bytes={HALF - 1}-")]


def test_file_that_changed_in_between_is_begun_anew(fetch: Fetching) -> None:
    fetch.server.faults["/big.bin"] = [Fault(break_after=HALF), Fault(status=503), Fault(status=503)]
    fetch.failure()
    changed = fetch.server.add("/big.bin", CONTENT[::-1])
    assert fetch().read_bytes() == changed


@pytest.mark.parametrize("told", ['"listed"', 'W/"listed"'])
def test_what_is_still_called_what_it_was_listed_as_is_fetched(fetch: Fetching, told: str) -> None:
    fetch.server.faults["/big.bin"] = [Fault(headers={"ETag": told})]
    assert fetch(etag="listed").read_bytes() == CONTENT


def test_what_is_called_otherwise_than_it_was_listed_is_refused_and_not_kept(fetch: Fetching) -> None:
    fetch.server.faults["/big.bin"] = [Fault(headers={"ETag": 'W/"other"'})]
    error = fetch.failure(etag="listed")
    assert error.reason is Reason.SOURCE_UNAVAILABLE
    assert "has changed since it was listed (ETag other instead of listed)" in error.message
    assert left_over(fetch.folder) == []


def test_server_that_knows_no_if_range_cannot_mix_two_versions(fetch: Fetching) -> None:
    """It sends the rest of another version; its ETag tells."""
    fetch.server.faults["/big.bin"] = [Fault(break_after=HALF), Fault(headers={"ETag": '"other"'})]
    assert fetch().read_bytes() == CONTENT
    assert fetch.server.asked("/big.bin") == [None, f"bytes={HALF - 1}-", None]


def test_server_without_ranges_is_asked_for_everything_again(fetch: Fetching) -> None:
    fetch.server.faults["/big.bin"] = [Fault(break_after=HALF), Fault(ignore_range=True)]
    assert fetch().read_bytes() == CONTENT


def test_without_version_and_digest_nothing_is_continued(fetch: Fetching) -> None:
    fetch.server.has_tags = False
    fetch.server.faults["/big.bin"] = [Fault(break_after=HALF)]
    assert fetch().read_bytes() == CONTENT
    assert fetch.server.asked("/big.bin") == [None, None]


def test_digest_makes_up_for_a_version(fetch: Fetching) -> None:
    fetch.server.has_tags = False
    fetch.server.faults["/big.bin"] = [Fault(break_after=HALF)]
    assert fetch(digest=Digest(algorithm="sha256", hex=SHA256)).read_bytes() == CONTENT
    assert fetch.server.asked("/big.bin") == [None, f"bytes={HALF - 1}-"]


def test_partial_file_longer_than_the_file_is_thrown_away(fetch: Fetching) -> None:
    leave_partial(fetch, CONTENT + b"more")
    assert fetch(digest=Digest(algorithm="sha256", hex=SHA256)).read_bytes() == CONTENT


def test_partial_file_that_was_whole_needs_one_more_byte(fetch: Fetching) -> None:
    leave_partial(fetch, CONTENT)
    assert fetch(digest=Digest(algorithm="sha256", hex=SHA256)).read_bytes() == CONTENT
    assert fetch.server.asked("/big.bin") == [f"bytes={len(CONTENT) - 1}-"]


def test_piece_of_the_rest_is_not_the_rest(fetch: Fetching) -> None:
    """Some servers answer a range with a piece of it: what is missing is asked for at once, without a failed try."""
    fetch.server.faults["/big.bin"] = [Fault(break_after=HALF), Fault(piece=3 << 20)]
    assert fetch().read_bytes() == CONTENT
    assert fetch.server.asked("/big.bin") == [None, f"bytes={HALF - 1}-", f"bytes={HALF + (3 << 20) - 2}-"]


def test_piece_that_breaks_off_is_continued(fetch: Fetching) -> None:
    fetch.server.faults["/big.bin"] = [Fault(break_after=HALF), Fault(piece=3 << 20, break_after=2 << 20)]
    assert fetch().read_bytes() == CONTENT


def test_pieces_without_end_are_a_failure(fetch: Fetching) -> None:
    """A byte at a time would take years."""
    fetch.server.faults["/big.bin"] = [Fault(break_after=HALF), *[Fault(piece=10)] * 5]
    assert "only 10 bytes of the rest at a time" in fetch.failure().message
    assert not (fetch.folder / "big.bin").exists()


@pytest.mark.parametrize(
    "told",
    [
        f"bytes {HALF}-{len(CONTENT) - 1}/{len(CONTENT)}",
        f"bytes {HALF - 1}-{len(CONTENT)}/{len(CONTENT)}",
        f"bytes {HALF - 1}-{HALF - 2}/{len(CONTENT)}",
        f"bytes {HALF - 1}-{HALF + 10}/{len(CONTENT)}",
        "bytes */5",
        "",
    ],
    ids=["not where asked", "beyond the end", "nothing", "not its length", "none", "nothing told"],
)
def test_range_that_contradicts_itself_is_begun_anew(fetch: Fetching, told: str) -> None:
    fetch.server.faults["/big.bin"] = [Fault(break_after=HALF), Fault(headers={"Content-Range": told})]
    assert fetch().read_bytes() == CONTENT
    assert fetch.server.asked("/big.bin") == [None, f"bytes={HALF - 1}-", None]


def test_range_of_a_file_whose_size_is_not_told(fetch: Fetching) -> None:
    """``bytes 5-9/*``: nobody knows whether that is the end, unless the listing does."""
    told = f"bytes {HALF - 1}-{len(CONTENT) - 1}/*"
    fetch.server.faults["/big.bin"] = [Fault(break_after=HALF), Fault(headers={"Content-Range": told})]
    assert fetch(size=len(CONTENT)).read_bytes() == CONTENT
    fetch.server.files["/other.bin"] = CONTENT
    fetch.server.faults["/other.bin"] = [Fault(break_after=HALF), Fault(headers={"Content-Range": told})]
    assert fetch("/other.bin").read_bytes() == CONTENT
    assert fetch.server.asked("/other.bin") == [None, f"bytes={HALF - 1}-", None]


def test_whole_that_is_sent_as_a_range_of_nothing_asked_for(fetch: Fetching) -> None:
    fetch.server.faults["/big.bin"] = [Fault(status=206, headers={"Content-Range": "bytes 0-0/1"})] * 3
    assert fetch.failure().reason is Reason.SOURCE_REFUSED


def test_body_that_ends_with_the_connection_is_whole_only_if_something_tells_so(fetch: Fetching) -> None:
    fetch.server.faults["/big.bin"] = [Fault(framing="close", break_after=HALF), Fault(framing="close")]
    assert fetch(size=len(CONTENT)).read_bytes() == CONTENT
    fetch.server.files["/b.bin"] = CONTENT
    fetch.server.faults["/b.bin"] = [Fault(framing="close", break_after=HALF), Fault(framing="close")]
    assert fetch("/b.bin", digest=Digest(algorithm="sha256", hex=SHA256)).read_bytes() == CONTENT
    fetch.server.files["/c.bin"] = CONTENT
    fetch.server.faults["/c.bin"] = [Fault(framing="close", break_after=HALF)]
    error = fetch.failure(path="/c.bin")
    assert error.reason is Reason.SOURCE_REFUSED
    assert "https://host/c.bin: the server tells neither how long the file is nor where it ends" in error.message
    assert not (fetch.folder / "c.bin").exists()


def test_chunks_tell_their_end(fetch: Fetching) -> None:
    fetch.server.faults["/big.bin"] = [Fault(framing="chunked", break_after=HALF), Fault(framing="chunked")]
    assert fetch().read_bytes() == CONTENT


@pytest.mark.parametrize("framing", ["chunked", "close"])
def test_more_than_was_listed_is_not_written(
    fetch: Fetching, framing: Literal["chunked", "close"], monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 0
    write = transfer.Progress.add

    def watch(self: Progress, num_bytes: int, name: str) -> None:
        nonlocal most
        most = max([most, *(path.stat().st_size for path in fetch.folder.rglob("*") if path.is_file())])
        write(self, num_bytes, name)

    fetch.server.faults["/big.bin"] = [Fault(framing=framing)] * 2
    monkeypatch.setattr(transfer.Progress, "add", watch)
    error = fetch.failure(size=100)
    assert error.reason is Reason.SOURCE_REFUSED
    assert "is not what it should be, fetched twice: more than 100 bytes" in error.message
    assert most <= 100
    assert left_over(fetch.folder) == []


def test_volume_fills_up_while_a_file_of_unknown_length_comes(fetch: Fetching, monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([80 << 20, 66 << 20])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1 << 40, free=next(free, 63 << 20)))
    monkeypatch.setattr(transfer, "_SPACE_BYTES", 1 << 20)
    fetch.server.faults["/big.bin"] = [Fault(framing="chunked")]
    assert fetch.failure().reason is Reason.STORAGE_FULL


@pytest.mark.parametrize("encoding", ["gzip", "br", "gzip, identity"])
def test_encoding_that_was_not_asked_for_is_refused(fetch: Fetching, encoding: str) -> None:
    fetch.server.faults["/big.bin"] = [Fault(headers={"Content-Encoding": encoding})]
    error = fetch.failure()
    assert error.reason is Reason.SOURCE_REFUSED
    assert f"comes with Content-Encoding {encoding}" in error.message
    assert left_over(fetch.folder) == []


@pytest.mark.parametrize("encoding", ["identity", "aws-chunked"])
def test_encodings_that_are_none(fetch: Fetching, encoding: str) -> None:
    """S3 keeps the word by which some clients upload; what it sends is the plain object."""
    fetch.server.faults["/big.bin"] = [Fault(headers={"Content-Encoding": encoding})]
    assert fetch().read_bytes() == CONTENT


@pytest.mark.parametrize("size", [0, 5000])
def test_server_that_dribbles_is_left(
    fetch: Fetching, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Each byte comes long before the read timeout; in the headers as well as in the content."""
    monkeypatch.setattr(network, "WINDOW_S", 0.2)
    fetch.server.add("/slow", bytes(size))
    fetch.server.faults["/slow"] = [Fault(pause_s=0.01)] * 3
    with build_client(Network(ca_pem=authority.pem)) as client:
        error = Fetching(client, fetch.server, tmp_path).failure(path="/slow")
    assert error.reason is Reason.SOURCE_UNAVAILABLE
    assert "slower than" in error.message


@pytest.mark.parametrize(
    ("algorithm", "right"),
    [
        ("sha256", SHA256),
        ("md5", hashlib.md5(CONTENT).hexdigest()),
        ("git", hashlib.sha1(f"blob {len(CONTENT)}\0".encode() + CONTENT).hexdigest()),
    ],
)
def test_digests(fetch: Fetching, algorithm: str, right: str) -> None:
    wrong = right[::-1]
    error = fetch.failure(size=len(CONTENT), digest=Digest(algorithm=algorithm, hex=wrong))
    assert error.reason is Reason.SOURCE_REFUSED
    assert "spec.model.source: https://host/big.bin is not what it should be, fetched twice" in error.message
    assert f"is {right} instead of {wrong}" in error.message
    assert left_over(fetch.folder) == []
    assert fetch(size=len(CONTENT), digest=Digest(algorithm=algorithm, hex=right)).exists()


def test_content_that_comes_right_at_the_second_time(fetch: Fetching) -> None:
    fetch.server.faults["/big.bin"] = [Fault(break_after=HALF)]
    leave_partial(fetch, bytes(HALF))
    assert fetch(digest=Digest(algorithm="sha256", hex=SHA256)).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "header", [("x-amz-server-side-encryption", "aws:kms"), ("x-amz-server-side-encryption-customer-algorithm", "AES")]
)
def test_s3_tag_of_an_encrypted_object_is_no_md5(fetch: Fetching, header: tuple[str, str]) -> None:
    fetch.server.faults["/big.bin"] = [Fault(headers=dict([header]))]
    fetch(digest=Digest(algorithm="md5", hex="0" * 32))


def test_other_size_than_the_listing_said(fetch: Fetching) -> None:
    error = fetch.failure(size=5)
    assert error.reason is Reason.SOURCE_UNAVAILABLE
    assert f"{len(CONTENT):,} bytes are offered instead of 5" in error.message


@pytest.mark.parametrize(
    ("status", "reason", "told"),
    [
        (401, Reason.SOURCE_REFUSED, "credentials are missing or wrong; set spec.model.secretRef"),
        (403, Reason.SOURCE_REFUSED, "the credentials in spec.model.secretRef may not read it"),
        (404, Reason.SOURCE_REFUSED, "it does not exist; correct spec.model.source"),
        (410, Reason.SOURCE_REFUSED, "it does not exist; correct spec.model.source"),
        (400, Reason.SOURCE_REFUSED, "HTTP 400; correct spec.model.source"),
    ],
)
def test_refusals_are_not_tried_again(fetch: Fetching, status: int, reason: Reason, told: str) -> None:
    fetch.server.faults["/big.bin"] = [Fault(status=status)] * 3
    error = fetch.failure()
    assert error.reason is reason
    assert f"spec.model.source: https://host/big.bin was refused with HTTP {status}" in error.message
    assert told in error.message
    assert len(fetch.server.requests) == 1


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(fetch: Fetching, status: int) -> None:
    fetch.server.faults["/big.bin"] = [Fault(status=status, headers={"Retry-After": "0"})] * 2
    assert fetch().exists()
    assert len(fetch.server.requests) == 3


@pytest.mark.parametrize(
    ("headers", "asked_s"),
    [
        ({"Retry-After": "7"}, 7),
        ({"RateLimit": '"resolvers";r=0;t=123'}, 123),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"Retry-After": "in an hour"}, 300),
    ],
)
def test_server_says_how_long_to_wait(fetch: Fetching, headers: dict[str, str], asked_s: float) -> None:
    if headers.get("Retry-After") == "in an hour":
        # Said when the test runs: the whole suite may take longer than an hour from its collection.
        headers = {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)}
    waits: list[float] = []

    class Watched(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            waits.append(timeout)
            return False

    fetch.downloader = replace(fetch.downloader, stop=Watched())
    fetch.server.faults["/big.bin"] = [Fault(status=429, headers=headers)]
    assert fetch().exists()
    assert asked_s <= waits[0] <= max(2 * asked_s, QUICK.most_s)


def test_file_that_may_be_missing(fetch: Fetching) -> None:
    error = fetch.failure(path="/none.jpg")
    assert isinstance(error, MissingError)
    assert error.reason is Reason.SOURCE_REFUSED


def test_nobody_there(fetch: Fetching) -> None:
    error = fetch.failure(url=lambda: "https://127.0.0.1:1/x")
    assert error.reason is Reason.SOURCE_UNAVAILABLE
    assert "3 times in a row: ConnectError" in error.message


def test_certificate_that_nobody_vouches_for(fetch: Fetching, tmp_path: Path) -> None:
    with build_client(Network()) as stranger:
        error = Fetching(stranger, fetch.server, tmp_path).failure()
    assert error.reason is Reason.SOURCE_UNAVAILABLE
    assert "spec.download.caConfigMap" in error.message
    assert fetch.server.requests == []


def test_redirect_is_followed_but_not_out_of_tls(fetch: Fetching) -> None:
    fetch.server.faults["/moved"] = [Fault(status=302, headers={"Location": "/big.bin"})]
    assert fetch("/moved").read_bytes() == CONTENT
    with FileServer().run(None) as plain:
        plain.add("/big.bin", CONTENT)
        fetch.server.faults["/out"] = [Fault(status=302, headers={"Location": f"{plain.base}/big.bin"})] * 3
        assert "from https to another protocol" in fetch.failure(path="/out").message
        assert plain.requests == []


def test_endless_redirects_end(fetch: Fetching) -> None:
    fetch.server.faults["/ring"] = [Fault(status=302, headers={"Location": "/ring"})] * 30
    assert "more than 5 times" in fetch.failure(path="/ring").message


def test_credentials_stay_with_their_host(fetch: Fetching, authority: Authority) -> None:
    with FileServer().run(authority) as other:
        other.add("/big.bin", CONTENT)
        fetch.server.faults["/moved"] = [Fault(status=302, headers={"Location": f"{other.base}/big.bin"})]
        fetch("/moved", credential={"Authorization": "Bearer secret"})
        assert [request.authorization for request in fetch.server.requests] == ["Bearer secret"]
        assert [request.authorization for request in other.requests] == [None]


def test_volume_that_is_too_small(fetch: Fetching, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1 << 40, free=70 << 20))
    error = fetch.failure()
    assert error.reason is Reason.STORAGE_FULL
    assert "needs 0.01 GB more, but the run's volume has 0.07 GB free: raise spec.storage.size" in error.message
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1 << 40, free=80 << 20))
    assert fetch().exists()


def test_volume_that_does_not_tell_its_size(fetch: Fetching, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=0, free=0))
    assert fetch().exists()


def test_stopping_ends_a_download_and_a_wait(fetch: Fetching) -> None:
    fetch.downloader.stop.set()
    with pytest.raises(StoppedError):
        fetch()
    fetch.server.faults["/big.bin"] = [Fault(status=503)]
    with pytest.raises(StoppedError):
        fetch()


def test_name_that_is_file_and_folder(fetch: Fetching) -> None:
    fetch.server.add("/a", b"file")
    fetch.server.add("/a/b", b"file in folder")
    fetch.server.add("/c/d", b"file in folder")
    fetch("/a")
    assert "needs a folder where the source has a file" in fetch.failure(path="/a/b").message
    fetch("/c/d")
    fetch.server.add("/c", b"file")
    assert "is a file where the source has a folder too" in fetch.failure(path="/c").message


def test_names_that_differ_in_capitals_only(fetch: Fetching, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files, as long as the volume tells them apart; the first would be replaced on one that does not."""
    for name in ("A.jpg", "a.jpg", "B.jpg", "b.jpg", "stra\u00dfe.jpg", "STRASSE.jpg"):
        fetch.server.add(f"/{name}", name.encode())
    assert (fetch("/A.jpg").read_bytes(), fetch("/a.jpg").read_bytes()) == (b"A.jpg", b"a.jpg")
    monkeypatch.setattr(journal, "_is_caseless", lambda folder: True)
    assert fetch("/B.jpg").read_bytes() == b"B.jpg"
    error = fetch.failure(path="/b.jpg")
    assert error.reason is Reason.SOURCE_REFUSED
    assert "https://host/b.jpg and B.jpg are one file on the run's volume" in error.message
    assert (fetch.folder / "B.jpg").read_bytes() == b"B.jpg"
    fetch("/stra\u00dfe.jpg")
    assert "are one file on the run's volume" in fetch.failure(path="/STRASSE.jpg").message


def test_progress_counts_each_byte_once(fetch: Fetching) -> None:
    fetch.server.faults["/big.bin"] = [Fault(break_after=HALF)]
    fetch.progress.begin("spec.model.source https://host", len(CONTENT))
    fetch()
    assert fetch.recorder.steps[0] == (0, len(CONTENT))
    assert fetch.recorder.steps[-1] == (len(CONTENT), len(CONTENT))


def test_long_download_over_a_bad_line_gets_through(fetch: Fetching, monkeypatch: pytest.MonkeyPatch) -> None:
    """A try that got far enough begins the count anew: more breaks than tries."""
    monkeypatch.setattr(transfer, "_GAIN_BYTES", 1 << 20)
    fetch.server.faults["/big.bin"] = [Fault(break_after=2 << 20)] * 4
    assert fetch().read_bytes() == CONTENT
    assert len(fetch.server.requests) == 5
