"""Whatever happens while a model is written to a claim, a reader finds nothing or the whole; what a full one says."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llava_trainer.files import sha256_file
from llava_trainer.publishing.content import Content
from tests.trainer.fault_table import NOTHING, WHOLE, check_row, describe_visible
from tests.trainer.killing import Victim
from tests.trainer.places import make_content
from tests.trainer.publications import FILES, publish, publish_and_exit

ADDRESS = "pvc://shelf/models/trays"


@pytest.fixture
def content(tmp_path: Path) -> Content:
    return make_content(tmp_path / "content", {**FILES, "sub/tokenizer.json": b"{}" * 100, "empty.txt": b""})


@pytest.fixture
def claim(tmp_path: Path) -> Path:
    claim = tmp_path / "claims" / "shelf"
    claim.mkdir(parents=True)
    return claim


@pytest.fixture(scope="module")
def victim() -> Victim:
    return Victim(["__main__", "tests.trainer.publications"])


def look(folder: Path, content: Content) -> str:
    """What is there of the model; of a folder that is there all of it has to be."""
    if not folder.exists():
        return NOTHING
    for item in content.items:
        if not (folder / item.name).is_file() or sha256_file(folder / item.name) != f"sha256:{item.sha256}":
            return f"no {item.name}"
    return WHOLE


@contextmanager
def reading(folder: Path, content: Content) -> Iterator[list[str]]:
    """Look the whole time; what of a model was seen by half."""
    half: list[str] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.wait(0.002):
            if folder.exists() and (seen := look(folder, content)) != WHOLE:
                half.append(seen)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield half
    finally:
        stop.set()
        reader.join()


def test_claim_shows_nothing_or_the_whole(tmp_path: Path, content: Content, claim: Path, victim: Victim) -> None:
    folder = claim / "models" / "trays"
    seen: list[str] = []
    for number in range(100):
        shutil.rmtree(claim / "models", ignore_errors=True)
        with reading(folder, content) as half:
            if victim.run(publish_and_exit, content, ADDRESS, tmp_path, number, {}) == 0:
                break
            seen.append(look(folder, content))
            written = sum(one.stat().st_size for one in claim.rglob("*") if is_whole(one))
            assert publish(content, ADDRESS, tmp_path).sent_bytes == content.size - written
        assert half == []
        assert look(folder, content) == WHOLE
        assert [one.name for one in folder.parent.iterdir()] == ["trays"], "nothing is left over"
        assert publish(content, ADDRESS, tmp_path).sent_bytes == 0
    assert 20 < number < 60
    check_row(
        "pvc", f"SIGKILL before each change of the disk, {number} in turn", describe_visible(seen),
        "completes it, and writes only what was missing",
    )  # fmt: skip


def is_whole(path: Path) -> bool:
    return path.is_file() and not path.name.endswith(".partial")


@pytest.mark.mounts
def test_claim_that_is_full(tmp_path: Path, content: Content, claim: Path) -> None:
    # The rest of the room goes while the model is written, and comes back.
    script = f"""
import os, pathlib, shutil, sys
from llava_trainer.errors import StageError
from tests.trainer.places import make_content
from tests.trainer.publications import FILES, publish
root, claim = pathlib.Path({str(tmp_path)!r}), pathlib.Path({str(claim)!r})
content = make_content(root / "content", {{**FILES, "sub/tokenizer.json": b"{{}}" * 100, "empty.txt": b""}})

def tell(fill):
    try:
        publish(content, {ADDRESS!r}, root, on_bytes=lambda done: fill(done))
    except StageError as error:
        print(error)

def fill(done):
    if done == 0:
        (claim / "other").write_bytes(bytes(4 << 20))

tell(fill)
print(sorted(str(one.relative_to(claim)) for one in claim.rglob("*")))
tell(lambda done: None)
(claim / "other").unlink()
print(publish(content, {ADDRESS!r}, root).sent_bytes == content.size)
"""
    command = 'mount -t tmpfs -o size=7m none "$1"; shift; exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", command, "sh", str(claim), sys.executable, "-c", script],
        capture_output=True, text=True, timeout=120, check=False, cwd=Path(__file__).parents[2],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, left, second, repeat = done.stdout.splitlines()
    told = f"DestinationRefused: spec.publish.destinations[0].address: {ADDRESS}: the claim is full ("
    assert first.startswith(f"{told}No space left on device): make room there, and raise spec.retry")
    assert left == "['models', 'other']", "nothing takes others' room"
    assert second.startswith(f"{told}5,245,")
    assert repeat == "True"
    check_row("pvc", "the claim is full, at once and on the way", NOTHING, "completes it when there is room")


def test_kill_is_no_exit(victim: Victim, tmp_path: Path, content: Content, claim: Path) -> None:
    assert victim.run(publish_and_exit, content, ADDRESS, tmp_path, 3, {}) == -signal.SIGKILL
