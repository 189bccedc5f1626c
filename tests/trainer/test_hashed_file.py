"""Files that are hashed while they are written."""

import errno
from pathlib import Path

import pytest

from llava_trainer.files import sha256_file
from llava_trainer.tensors.hashed_file import HashedFile


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    pieces = [b"", b"head", bytes(range(256)) * 40_000, b"tail"]
    with HashedFile(tmp_path / "file") as file:
        for piece in pieces:
            file.write(memoryview(piece))
        digest = file.finish()
    assert (tmp_path / "file").read_bytes() == b"".join(pieces)
    assert digest == sha256_file(tmp_path / "file")


def test_a_full_disk_is_told_by_what_comes_next() -> None:
    with HashedFile(Path("/dev/full")) as file:
        file.write(memoryview(b"something"))
        with pytest.raises(OSError, match="No space left") as caught:
            file.write(memoryview(b"more"))
    assert caught.value.errno == errno.ENOSPC
    with HashedFile(Path("/dev/full")) as file:
        file.write(memoryview(b"something"))
        with pytest.raises(OSError, match="No space left"):
            file.finish()


def test_what_was_given_is_written_though_nobody_waits_for_it(tmp_path: Path) -> None:
    with HashedFile(tmp_path / "file") as file:
        file.write(memoryview(b"something"))
    assert (tmp_path / "file").read_bytes() == b"something"
