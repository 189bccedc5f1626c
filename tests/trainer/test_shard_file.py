"""Files of rows: what a pod that was killed has left, what damage does to them, that nothing hostile is believed."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llava_trainer.evaluation.rows import Row
from llava_trainer.evaluation.shard_file import (
    ROWS_FILE,
    Repeats,
    ShardFileError,
    ShardWriter,
    read_left_rows,
    read_whole_shard,
)

INPUTS = "0" * 64
MOST = 100


def row(number: int, **changes) -> Row:
    fields = {
        "question_id": f"validation/{number}/1", "set": "validation", "sample": str(number), "number": 1, "group": "g",
        "question": "What?", "references": ("red",), "model": "base", "answer": f"answer {number} — ünï\n\u2028",
    }  # fmt: skip
    return Row.model_validate(fields | changes)


ROWS = [row(number) for number in range(6)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Whole, of three batches."""
    path = tmp_path / "shards" / ROWS_FILE
    path.parent.mkdir()
    with ShardWriter(path, INPUTS) as writer:
        for begin in (0, 2, 4):
            writer.append(ROWS[begin : begin + 2])
        writer.finish({"base": 1.5}, [Repeats(model="base", asked=3, changed=1)])
    return path


def read_left(tmp_path: Path, file: Path, inputs: str = INPUTS, most: int = MOST) -> list[Row]:
    return read_left_rows(tmp_path, file, inputs, most)


def test_what_was_written_is_read(tmp_path: Path, file: Path) -> None:
    whole = read_whole_shard(tmp_path, file)
    assert list(whole.rows) == ROWS == read_left(tmp_path, file)
    assert (whole.inputs, whole.trailer.rows, whole.trailer.seconds) == (INPUTS, 6, {"base": 1.5})
    assert whole.trailer.repeats == (Repeats(model="base", asked=3, changed=1),)
    content = file.read_bytes().splitlines(keepends=True)
    assert whole.trailer.sha256 == hashlib.sha256(b"".join(content[:-1])).hexdigest()


def test_each_batch_is_on_the_disk_before_the_next_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / ROWS_FILE, []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (sync(number), synced.append(path.stat().st_size)))
    with ShardWriter(path, INPUTS) as writer:
        writer.append(ROWS[:2])
        assert synced[-1] == path.stat().st_size
        assert read_left(tmp_path, path) == ROWS[:2]
        writer.append(ROWS[2:3])
        assert synced[-1] == path.stat().st_size
    assert read_left(tmp_path, path) == ROWS[:3]


def test_a_file_may_end_at_any_byte(tmp_path: Path, file: Path) -> None:
    """What is read is always the rows whose lines are whole; the file is only whole as a whole."""
    content, part = file.read_bytes(), tmp_path / "part.jsonl"
    ends = [index for index, byte in enumerate(content) if byte == ord("\n")]
    near = {end + step for end in ends for step in (-1, 0, 1, 2)}
    for length in sorted(near | set(range(0, len(content), 97))):
        if length >= len(content):
            continue
        part.write_bytes(content[:length])
        num_lines = sum(end < length for end in ends)
        assert read_left(tmp_path, part) == ROWS[: min(6, max(0, num_lines - 1))], length
        with pytest.raises(ShardFileError):
            read_whole_shard(tmp_path, part)


def lines_of(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines(keepends=True)


Damage = Callable[[list[bytes]], None]


def flip(lines: list[bytes]) -> None:
    lines[2] = lines[2].replace(b"answer 1", b"answer 7")


def swap(lines: list[bytes]) -> None:
    lines[2], lines[3] = lines[3], lines[2]


def zero(lines: list[bytes]) -> None:
    lines[4] = b"\0" * (len(lines[4]) - 1) + b"\n"


def of_the_wrong_kind(lines: list[bytes]) -> None:
    lines[3] = json.dumps({**json.loads(lines[3]), "model": "other"}).encode() + b"\n"


def not_utf8(lines: list[bytes]) -> None:
    lines[3] = lines[3].replace(b"answer", b"answ\xff\xfe")


def nested(lines: list[bytes]) -> None:
    lines[3] = b'{"question_id": ' + b"[" * 100_000 + b"\n"


@pytest.mark.parametrize(
    ("damage", "message", "kept"),
    [
        (flip, "rows with sha256", 6),
        (swap, "rows with sha256", 6),
        (lambda lines: lines.pop(2), r"has 5 rows .* and 6 with", 5),
        (lambda lines: lines.insert(2, lines[2]), r"has 7 rows .* and 6 with", 7),
        (lambda lines: lines.append(lines[2]), "line 9 stands behind the last one", 6),
        (lambda lines: lines.pop(), "has no last line: it ends after line 7", 6),
        (lambda lines: lines.pop(0), "line 1 is none of its kind", 0),
        (lambda lines: lines.clear(), "line 1 is none of its kind", 0),
        (zero, "line 5 is none of its kind", 3),
        (of_the_wrong_kind, "line 4 is none of its kind", 2),
        (not_utf8, "line 4 is none of its kind", 2),
        (nested, "line 4 is none of its kind", 2),
        (lambda lines: lines.__setitem__(3, b"x" * (9 << 20) + b"\n"), "has no last line: it ends after line 3", 2),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_damage_is_told_at_joining_and_ends_what_is_gone_on_from(
    tmp_path: Path, file: Path, damage: Damage, message: str, kept: int
) -> None:
    lines = lines_of(file)
    damage(lines)
    file.write_bytes(b"".join(lines))
    with pytest.raises(ShardFileError, match=message):
        read_whole_shard(tmp_path, file)
    assert len(read_left(tmp_path, file)) == kept


def test_rows_of_other_inputs_are_not_taken(tmp_path: Path, file: Path) -> None:
    assert read_left(tmp_path, file, inputs="1" * 64) == []


def test_no_more_rows_are_read_than_there_can_be(tmp_path: Path, file: Path) -> None:
    assert read_left(tmp_path, file, most=3) == ROWS[:3]


def test_what_is_no_plain_file_below_the_run_is_not_opened(tmp_path: Path, file: Path) -> None:
    """A pipe would be waited for, and a link may lead anywhere."""
    moved, root = tmp_path / "outside.jsonl", file.parent
    file.rename(moved)
    file.symlink_to(moved)
    (root / "pipe").mkdir()
    os.mkfifo(root / "pipe" / ROWS_FILE)
    (root / "linked").symlink_to(tmp_path)
    (root / "folder" / ROWS_FILE).mkdir(parents=True)
    for path in (
        file,
        root / "pipe" / ROWS_FILE,
        root / "linked" / moved.name,
        root / "folder" / ROWS_FILE,
        root / "x",
    ):
        assert read_left(tmp_path, path) == []
        with pytest.raises(OSError, match=r"rows.jsonl|linked|x"):
            read_whole_shard(tmp_path, path)
