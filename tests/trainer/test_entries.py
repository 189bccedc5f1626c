"""Exports are read entry by entry: the same values and the same complaints as parsing the whole, in bounded memory."""

import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from llava_trainer.data import entries
from llava_trainer.data.entries import ReadingPosition, read_entries
from llava_trainer.data.json_file import JsonFileError


def read(path: Path, content: bytes | str) -> list[Any]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [entry.value for entry in read_entries(path, ReadingPosition())]


def complaint(path: Path, content: bytes | str) -> str:
    with pytest.raises(JsonFileError) as caught:
        read(path, content)
    return str(caught.value)


def random_value(rng: random.Random, depth: int = 0) -> Any:
    kinds: list[Any] = [
        None, True, -12, 3.5e-7, 10**30, "", 'quo"te\\ and \n', "漢字 Größe 🙂", "\ud83d", float("inf"),
    ]  # fmt: skip
    if depth < 3 and rng.random() < 0.6:
        if rng.random() < 0.5:
            return [random_value(rng, depth + 1) for _ in range(rng.randrange(5))]
        return {f"k{index}é": random_value(rng, depth + 1) for index in range(rng.randrange(5))}
    return rng.choice(kinds)


def parse_whole(text: str) -> tuple[Any, json.JSONDecodeError | None]:
    try:
        return json.loads(text), None
    except json.JSONDecodeError as error:
        return None, error


@pytest.mark.parametrize("chunk", [1, 7, 64, 4096])
def test_reading_piece_by_piece_gives_what_parsing_the_whole_gives(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(entries, "_CHUNK_BYTES", chunk)
    for seed in range(40):
        rng = random.Random(seed)
        values = [random_value(rng) for _ in range(rng.randrange(6))]
        text = json.dumps(values, ensure_ascii=seed % 2 == 0, indent=rng.choice([None, 1])).encode(errors="replace")
        text = rng.choice([b"", b"\xef\xbb\xbf", b" \n"]) + text + rng.choice([b"", b"\n", b" \r\n "])
        found = read(tmp_path / "e.json", text)
        assert json.dumps(found) == json.dumps(json.loads(text.decode("utf-8-sig")))


@pytest.mark.parametrize("chunk", [3, 4096])
def test_a_broken_list_is_told_with_the_place_that_the_parser_names(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(entries, "_CHUNK_BYTES", chunk)
    told = 0
    for seed in range(120):
        rng = random.Random(seed)
        whole = json.dumps([random_value(rng) for _ in range(4)], indent=rng.choice([None, 1]))
        cut = rng.randrange(1, len(whole))
        text = whole[:cut] + rng.choice(["", "}", "x", ",,", '"']) + rng.choice(["", whole[cut:]])
        parsed, error = parse_whole(text)
        if error is None:
            assert json.dumps(read(tmp_path / "e.json", text)) == json.dumps(parsed)
        else:
            told += 1
            place = f"{error.msg} at line {error.lineno}, column {error.colno}"
            assert complaint(tmp_path / "e.json", text).endswith(place), text
    assert told > 60


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is not JSON: Expecting value at line 1, column 1"),
    "cut off": (
        b'[\n {"id": 1,\n', "is not JSON: Expecting property name enclosed in double quotes at line 3, column 1"),
    "trailing comma": (b"[1,\n]", "is not JSON: Expecting value at line 2, column 1"),
    "no comma": (b"[1\n 2]", "is not JSON: Expecting ',' delimiter at line 2, column 2"),
    "something after the list": (b"[1]\n[2]", "is not JSON: Extra data at line 2, column 1"),
    "not UTF-8": (b'["\xff"]', "is not UTF-8: byte 2 cannot be read"),
    "UTF-8 cut off": (b'["\xe6', "is not UTF-8: byte 2 cannot be read"),
    "nested without end": (b"[" * 100_000, "nested too deeply"),
    "an absurd number": (b"[" + b"9" * 5000 + b"]", "cannot be read: Exceeds the limit"),
    "a text": (b'"x"', "must be a JSON list or JSON lines, not str"),
    "an object over several lines": (b'{\n "a": 1}', "is neither a JSON list nor JSON lines: it begins with an object"),
    "a table": (b"Total\tB-TOTAL\n", "is not JSON: Expecting value at line 1, column 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_cannot_be_read_says_where(name: str, tmp_path: Path):
    content, message = BAD_FILES[name]
    assert message in complaint(tmp_path / "e.json", content)


def test_a_missing_file_is_told(tmp_path: Path):
    with pytest.raises(JsonFileError, match="cannot be read"):
        list(read_entries(tmp_path / "none.json", ReadingPosition()))


def test_lines_are_entries_and_a_broken_one_is_told_where_it_stands(tmp_path: Path):
    first, broken, last = read(tmp_path / "e.jsonl", '{"a": 1}\n\n{"a": \r\n {"a": "é"} \n')
    assert (first, last) == ({"a": 1}, {"a": "é"})
    assert str(broken) == "line 3 is not JSON: Expecting value at column 8"


def test_an_entry_beyond_the_limit_is_refused_and_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(entries, "_CHUNK_BYTES", 10_000)
    for content in (b'["' + b"x" * 20_000_000 + b'"]', b'{"a": "' + b"x" * 20_000_000 + b'"}'):
        (tmp_path / "e.json").write_bytes(content)
        tracemalloc.start()
        with pytest.raises(JsonFileError, match="holds an entry of more than 100,000 characters"):
            list(read_entries(tmp_path / "e.json", ReadingPosition(), max_characters=100_000))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2_000_000


def test_the_position_reaches_the_file_s_size(tmp_path: Path):
    position = ReadingPosition()
    (tmp_path / "e.json").write_text("[1, 2]\n")
    assert [entry.value for entry in read_entries(tmp_path / "e.json", position)] == [1, 2]
    assert position.read_bytes == position.total_bytes == 7
