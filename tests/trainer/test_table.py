"""Tables: the forms that people have them in, what is said of those that are wrong, and what a row group may take."""

import json
import os
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llava_api.spec import Table
from llava_trainer.data.dialogue import EntryError
from llava_trainer.data.entries import MAX_EMBEDDING_CHARACTERS, ReadingPosition
from llava_trainer.data.findings import Finding, Kind
from llava_trainer.data.parquet import read_parquet
from llava_trainer.data.rows import TableError
from llava_trainer.data.samples import Sample, Source, Turn
from llava_trainer.data.shards import MAX_SHARDS, find_shards, fits, match_shards
from llava_trainer.data.table import _Cells, read_table
from llava_trainer.host_memory import find_free_bytes

SETTINGS = {"image": "image", "question": "question", "answer": "answer"}
ALL = {**SETTINGS, "references": "others", "questionType": "kind", "group": "patient", "id": "key"}
TURNS = {"image": "images", "turns": "texts"}
Rows = list[dict[str, Any]]


def keep(content: bytes) -> str:
    return f"kept:{content!r}"


def read(path: Path, **settings: str) -> list[Sample | Finding]:
    table = Table.model_validate(settings or SETTINGS)
    return list(read_table(path, "t", table, keep, ReadingPosition()))


def write_csv(path: Path, rows: Rows, delimiter: str = ",", prefix: str = "") -> Path:
    def quote(value: Any) -> str:
        text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
        return '"' + text.replace('"', '""') + '"'

    lines = [delimiter.join(rows[0]), *(delimiter.join(map(quote, row.values())) for row in rows)]
    path.write_text(prefix + "\r\n".join(lines) + "\r\n", encoding="utf-8")
    return path


def write_tsv(path: Path, rows: Rows) -> Path:
    return write_csv(path, rows, "\t")


def write_excel_csv(path: Path, rows: Rows) -> Path:
    return write_csv(path, rows, ";", "\ufeff")


def write_lines(path: Path, rows: Rows) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def write_list(path: Path, rows: Rows) -> Path:
    path.write_text(json.dumps(rows))
    return path


def write_parquet(path: Path, rows: Rows, **settings: Any) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path, **settings)
    return path


WRITERS: dict[str, Callable[[Path, Rows], Path]] = {
    "csv": write_csv, "tsv": write_tsv, "excel": write_excel_csv, "jsonl": write_lines, "json": write_list,
    "parquet": write_parquet,
}  # fmt: skip
ROW = {
    "image": "a.png", "question": 'How "much"?\n', "answer": "9.00", "others": ["9", "9.0"], "kind": "amount",
    "patient": "7", "key": "k1", "unused": "x, y",
}  # fmt: skip


@pytest.mark.parametrize("form", WRITERS)
def test_a_row_becomes_a_sample(form: str, tmp_path: Path):
    assert read(WRITERS[form](tmp_path / "t", [ROW]), **ALL) == [
        Sample(
            id="k1", images=("a.png",), image_turns=(0,), source=Source(file="t", index=0),
            turns=(Turn(role="user", text='How "much"?'), Turn(role="assistant", text="9.00")),
            references=("9", "9.0"), question_type="amount", group="7",
        )
    ]  # fmt: skip


@pytest.mark.parametrize("form", WRITERS)
def test_a_row_may_be_a_conversation(form: str, tmp_path: Path):
    texts = [{"user": "How much?", "assistant": "9.00"}, {"user": "When?", "assistant": "Today."}]
    rows = [{"images": ["a.png", "b.png"], "texts": texts}] * 2
    first, second = read(WRITERS[form](tmp_path / "t", rows), **TURNS)
    assert isinstance(first, Sample)
    assert isinstance(second, Sample)
    assert (first.images, first.image_turns, second.source.index) == (("a.png", "b.png"), (0, 0), 1)
    assert [turn.text for turn in first.turns] == ["How much?", "9.00", "When?", "Today."]


@pytest.mark.parametrize("form", WRITERS)
def test_empty_cells_are_nothing(form: str, tmp_path: Path):
    row = {**ROW, "image": None, "others": None, "kind": None, "patient": None, "key": None}
    (sample,) = read(WRITERS[form](tmp_path / "t", [row]), **ALL)
    assert isinstance(sample, Sample)
    assert (sample.id, sample.images, sample.references, sample.group) == ("t[0]", (), (), "")


HELD = [
    ("bytes", lambda: pa.array([b"PNG"])),
    ("the Hub's struct", lambda: pa.array([{"bytes": b"PNG", "path": "a.png"}])),
    ("a list of structs", lambda: pa.array([[{"bytes": b"PNG", "path": None}]])),
    ("large binary", lambda: pa.array([b"PNG"], type=pa.large_binary())),
    ("a dictionary", lambda: pa.array([b"PNG"]).dictionary_encode()),
]


@pytest.mark.parametrize(("form", "make"), HELD, ids=[form for form, _ in HELD])
def test_images_may_be_held_in_many_ways(form: str, make: Callable[[], pa.Array], tmp_path: Path):
    table = pa.table({"image": make(), "question": ["<image>Q"], "answer": ["A"]})
    pq.write_table(table, tmp_path / "t")
    (sample,) = read(tmp_path / "t")
    assert isinstance(sample, Sample)
    assert sample.images == (keep(b"PNG"),)


def test_a_struct_without_bytes_names_a_file(tmp_path: Path):
    image = pa.array([{"bytes": None, "path": "a.png"}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table({"image": image, "question": ["Q"], "answer": ["A"]}), tmp_path / "t")
    (sample,) = read(tmp_path / "t")
    assert isinstance(sample, Sample)
    assert sample.images == ("a.png",)


def test_the_first_of_several_answers_is_learned_and_all_are_right(tmp_path: Path):
    (sample,) = read(write_lines(tmp_path / "t", [{"image": "a.png", "question": "Q", "answer": ["9.00", "9"]}]))
    assert isinstance(sample, Sample)
    assert (sample.turns[1].text, sample.references) == ("9.00", ("9.00", "9"))


def test_rows_of_json_may_leave_out_what_is_empty(tmp_path: Path):
    rows = [{"question": "Q", "answer": "A"}, {"image": "a.png", "question": "Q", "answer": "A", "patient": 7}]
    first, second = read(write_lines(tmp_path / "t", rows), **SETTINGS, group="patient")
    assert isinstance(first, Sample)
    assert isinstance(second, Sample)
    assert (first.images, first.group, second.images, second.group) == ((), "", ("a.png",), "7")
    *_, found = read(write_lines(tmp_path / "t", rows), **SETTINGS, group="patiant")
    assert isinstance(found, Finding)
    assert (found.where, found.message) == (
        "t", "has no row with a field 'patiant': correct dataset.table.group; the first row has answer, question"
    )  # fmt: skip


def test_a_whole_number_may_have_become_a_float(tmp_path: Path):
    rows = [{**ROW, "patient": value} for value in (7.0, float("nan"), 7.5)]
    first, second, third = read(write_parquet(tmp_path / "t", rows), **ALL)
    assert isinstance(first, Sample)
    assert isinstance(second, Sample)
    assert isinstance(third, Finding)
    assert (first.group, second.group) == ("7", "")
    assert third.message == "patient must be a string or a whole number (is 7.5)"


BAD_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "an answer that is a number": ({"answer": 9.0}, "answer must be a text (is 9.0): write numbers as texts"),
    "a truth value": ({"answer": True}, "answer must be a text (is True)"),
    "an object for a question": ({"question": {}}, "question must be a text (is {})"),
    "a number in a list of answers": ({"answer": ["9", 9.5]}, "answer must be a text (is 9.5)"),
    "a picture that is a number": ({"image": 5}, "image[0] must be a path, a data: URL or bytes (is 5)"),
    "an address": ({"image": "s3://x/a.png"}, "image[0] is 's3://x/a.png': pictures are not fetched by such"),
    "a marker for nothing": ({"image": None, "question": "<image>Q"}, "stands 1 times for 0 pictures in image"),
    "two markers": ({"question": "<image><image>Q"}, "stands 2 times for 1 pictures in image"),
    "a marker in the answer": ({"answer": "<image>"}, "<image> stands in an answer"),
    "no question and no picture": ({"image": None, "question": None}, "question 1 is empty"),
    "a missing field": ({}, "has no field 'answer': correct dataset.table.answer; its fields are image, question"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_wrong_row_is_named_with_what_is_wrong(name: str, tmp_path: Path):
    changes, message = BAD_ROWS[name]
    good: dict[str, Any] = {"image": "a.png", "question": "Q", "answer": "A"}
    bad = {**good, **changes} if changes else {"image": "a.png", "question": "Q"}
    first, found, last = read(write_lines(tmp_path / "t", [good, bad, good]))
    assert isinstance(found, Finding)
    assert (found.kind, found.where) == (Kind.REFUSED, "t[1]")
    assert message in found.message
    assert isinstance(first, Sample)
    assert isinstance(last, Sample)


def test_turns_that_are_none_are_refused(tmp_path: Path):
    for texts, message in (
        ("Hello", "texts must be a list of turns (is 'Hello')"),
        (["x"], "texts[0] must be an object"),
    ):
        (found,) = read(write_lines(tmp_path / "t", [{"images": None, "texts": texts}]), **TURNS)
        assert isinstance(found, Finding)
        assert message in found.message


def test_a_table_whose_columns_nobody_names_is_refused(tmp_path: Path):
    (found,) = read(write_lines(tmp_path / "t", [ROW]), question="question")
    assert isinstance(found, Finding)
    assert found.message == "dataset.table must name the columns question and answer, or turns"


def test_a_picture_in_place_of_a_text_is_not_written_out(tmp_path: Path):
    path = write_parquet(tmp_path / "t", [{"image": None, "question": b"x" * 20_000_000, "answer": "A"}])
    (row,) = read_parquet(path, {"image": "", "question": "", "answer": ""}, ReadingPosition(), 10**9)
    assert not isinstance(row.values, TableError)
    tracemalloc.start()
    with pytest.raises(EntryError, match=r"question must be a text \(is b'xxx"):
        _Cells(row.values).text("question")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "another header": (b"picture,question,answer\na,b,c\n", "has no column 'image': correct dataset.table.image; its"),
    "two of a column": (b"image,question,question,answer\n", "has 2 columns 'question', which dataset.table.question"),
    "nothing": (b"", "has no column 'image'"),
    "an open quote": (b'image,question,answer\na,"b,c\nd,e,f\n', "cannot be read: unexpected end of data"),
    "a quote within": (b'image,question,answer\na,"b"c,d\n', "line 2 cannot be read: ',' expected after '\"'"),
    "Latin-1": (b"image,question,answer\na,b\xe9,c\n", "line 2 is not UTF-8 (invalid continuation byte): save the t"),
    "UTF-16": ("image,question,answer".encode("utf-16"), "line 1 is not UTF-8"),
    "a cell too large": (
        b"image,question,answer\na," + b"x" * MAX_EMBEDDING_CHARACTERS, "belongs to a row of more than 33,554,432 b"),
    "a row that never ends": (
        b"image,question,answer\n" + b'a,"' + b"x" * 2**20 * 20 + b'\n","' + b"y" * 2**20 * 20,
        "belongs to a row of more than 33,554,432 b"),
    "not Parquet": (b"PAR1" + bytes(100), "is a Parquet file that cannot be read: "),
    "cut off": (b"PAR1", "is a Parquet file that cannot be read: "),
    "broken JSON": (b'{"image": "a"', "is neither a JSON list nor JSON lines"),
    "deep JSON": (b"[" * 100_000, "is nested too deeply to be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_no_table_is_told(name: str, tmp_path: Path):
    content, message = BAD_FILES[name]
    (tmp_path / "t").write_bytes(content)
    *_, found = read(tmp_path / "t")
    assert isinstance(found, Finding)
    assert found.where == "t"
    assert message in found.message


def test_conversations_in_a_table_of_json_are_told(tmp_path: Path):
    (found,) = read(write_lines(tmp_path / "t", [{"conversations": []}]))
    assert isinstance(found, Finding)
    assert "has no field 'question'" in found.message
    assert found.message.endswith("it looks like LLaVA's: set dataset.format to llava")


def test_a_ragged_row_is_named_and_the_others_are_read(tmp_path: Path):
    (tmp_path / "t").write_bytes(b"image,question,answer\na,b,c\n\na,b, and c,d\ne,f,g\n")
    first, found, last = read(tmp_path / "t")
    assert isinstance(found, Finding)
    assert (found.where, found.message) == (
        "t[1]", "line 4 has 4 cells, the header 3: quote what holds a ',' or a line break"
    )  # fmt: skip
    assert isinstance(first, Sample)
    assert isinstance(last, Sample)
    assert last.source.index == 2


def test_what_a_cell_of_text_holds_stays_text(tmp_path: Path):
    (tmp_path / "t").write_bytes(b'image,question,answer\n[1].png,[Q],"{""a"": 1}\0"\n')
    (sample,) = read(tmp_path / "t")
    assert isinstance(sample, Sample)
    assert (sample.images, [turn.text for turn in sample.turns]) == (("[1].png",), ["[Q]", '{"a": 1}\0'])


def nested(depth: int) -> pa.DataType:
    kind: pa.DataType = pa.string()
    for _ in range(depth):
        kind = pa.list_(kind)
    return kind


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (pa.map_(pa.string(), pa.string()), "column 'question' (dataset.table.question) holds map<string, string"),
        (pa.timestamp("s"), "holds timestamp[ms]: only texts, bytes and whole numbers"),
        (nested(6), "column 'question' (dataset.table.question) is nested more than 4 times: flatten it"),
    ],
)
def test_columns_of_other_types_are_refused(kind: pa.DataType, message: str, tmp_path: Path):
    columns = {"image": pa.nulls(1, pa.string()), "question": pa.nulls(1, kind), "answer": pa.nulls(1, pa.string())}
    pq.write_table(pa.table(columns), tmp_path / "t")
    (found,) = read(tmp_path / "t")
    assert isinstance(found, Finding)
    assert message in found.message


def test_a_text_that_is_not_utf8_is_named_and_the_other_rows_are_read(tmp_path: Path):
    texts = pa.Array.from_buffers(
        pa.string(),
        3,
        [None, pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 1, 2, 3))), pa.py_buffer(b"a\xffb")],
    )
    table = pa.table({"image": pa.nulls(3, pa.string()), "question": texts, "answer": ["A"] * 3})
    pq.write_table(table, tmp_path / "t")
    first, found, last = read(tmp_path / "t")
    assert isinstance(found, Finding)
    assert (found.where, found.message[:49]) == ("t[1]", "column 'question' holds a text that is not UTF-8 ")
    assert isinstance(first, Sample)
    assert isinstance(last, Sample)


def test_damaged_pages_are_told_after_what_stands_before(tmp_path: Path):
    rows = [{"image": None, "question": os.urandom(200).hex(), "answer": "A"} for _ in range(100)]
    path = write_parquet(tmp_path / "t", rows, row_group_size=50, compression="zstd")
    damaged = bytearray(path.read_bytes())
    inside = pq.ParquetFile(path).metadata.row_group(1).column(1).dictionary_page_offset + 100
    damaged[inside : inside + 500] = bytes(500)
    path.write_bytes(damaged)
    *before, found = read(path)
    assert len(before) == 50
    assert isinstance(found, Finding)
    assert "is a Parquet file that cannot be read: " in found.message


def test_a_row_group_that_does_not_fit_is_refused_with_one_that_does(tmp_path: Path):
    rows = [{"image": os.urandom(10_000), "question": "Q", "answer": "A"} for _ in range(100)]
    whole = write_parquet(tmp_path / "whole", rows, row_group_size=100)
    wanted = {"image": "i", "question": "q", "answer": "a"}
    with pytest.raises(TableError) as caught:
        next(read_parquet(whole, wanted, ReadingPosition(), free_bytes=1_000_000))
    told = str(caught.value)
    assert told.startswith(
        "row group 0 has 100 rows with 1 MB in the columns to read, which takes 3 MB of memory, more "
    )
    fitting = int(told.split("row_group_size=")[1].split(",")[0])
    assert 1 <= fitting < 50
    divided = write_parquet(tmp_path / "divided", rows, row_group_size=fitting)
    assert len(list(read_parquet(divided, wanted, ReadingPosition(), free_bytes=1_000_000))) == 100
    # What is not read takes nothing.
    without = {"question": "q", "answer": "a"}
    assert len(list(read_parquet(whole, without, ReadingPosition(), free_bytes=1_000_000))) == 100


@pytest.mark.parametrize("compression", ["snappy", "none"])
def test_whatever_bytes_a_parquet_file_holds_it_is_read_or_said_why_not(compression: str, tmp_path: Path):
    rows = [{"image": [{"bytes": b"x" * 300, "path": "a"}], "question": f"Q{n}", "answer": ["A"]} for n in range(60)]
    whole = write_parquet(tmp_path / "t", rows, row_group_size=20, compression=compression).read_bytes()
    complained = 0
    for seed in range(150):
        rng = random.Random(seed)
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 2, 8))):
            # Most of it where names, types and sizes stand.
            first = len(damaged) - 1200 if rng.random() < 0.6 else 4
            damaged[rng.randrange(first, len(damaged) - 8)] = rng.randrange(256)
        (tmp_path / "t").write_bytes(damaged)
        complained += any(isinstance(found, Finding) for found in read(tmp_path / "t"))
    assert 20 < complained < 150


def test_one_row_group_of_everything_takes_what_is_told_beforehand(tmp_path: Path):
    rows = [{"image": os.urandom(160_000)} for _ in range(500)]
    # Everything in one page, too, which is the worst that a writer can do.
    path = write_parquet(tmp_path / "t", rows, row_group_size=500, write_batch_size=500, compression="none")
    program = (
        "import sys, pyarrow\n"
        "from pathlib import Path\n"
        "from llava_trainer.data.entries import ReadingPosition\n"
        "from llava_trainer.data.parquet import read_parquet\n"
        "rows = read_parquet(Path(sys.argv[1]), {'image': ''}, ReadingPosition(), 10**9)\n"
        "assert sum(len(row.values['image']) for row in rows) == 80_000_000\n"
        "print(pyarrow.default_memory_pool().max_memory())\n"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert 80_000_000 < int(done.stdout) < 2.5 * 80_000_000


def test_one_picture_with_many_questions_is_in_memory_once(tmp_path: Path):
    """A file holds it once, whose sizes tell of no more; a copy for each row would take 1,000 times as much."""
    picture = {"bytes": os.urandom(1_000_000), "path": None}
    rows = [{"image": picture, "question": f"What is {number}?", "answer": "x"} for number in range(1000)]
    path = write_parquet(tmp_path / "t", rows)
    assert path.stat().st_size < 2_000_000
    program = (
        "import sys, pyarrow\n"
        "from pathlib import Path\n"
        "from llava_trainer.data.entries import ReadingPosition\n"
        "from llava_trainer.data.parquet import read_parquet\n"
        "columns = {'image': '', 'question': '', 'answer': ''}\n"
        "rows = read_parquet(Path(sys.argv[1]), columns, ReadingPosition(), 10**9)\n"
        "assert sum(len(row.values['image']['bytes']) for row in rows) == 10**9\n"
        "print(pyarrow.default_memory_pool().max_memory())\n"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 30_000_000


def test_free_memory_is_what_node_and_container_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n")
    monkeypatch.setattr("llava_trainer.host_memory._MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr("llava_trainer.host_memory._LIMITS", (tmp_path / "none", tmp_path / "max"))
    for limit, expected in (("max", 8_192_000_000), ("99000000000", 8_192_000_000), ("1000", 0)):
        (tmp_path / "max").write_text(f"{limit}\n")
        assert find_free_bytes() == expected


def test_a_pattern_names_shards_in_their_order(tmp_path: Path):
    for name in ("data/train-1.parquet", "data/train-0.parquet", "data/test-0.parquet", "data/sub/train-2.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "data" / "train-x.parquet").mkdir()
    expected = ["data/train-0.parquet", "data/train-1.parquet"]
    assert find_shards(tmp_path, "data/train-*.parquet") == expected
    assert find_shards(tmp_path, "*/train-*.parquet") == expected
    assert match_shards(["data/train-1.parquet", "data/train-0.parquet", "x"], "data/train-*.parquet") == expected
    assert find_shards(tmp_path, "plain [1].csv") == ["plain [1].csv"]
    assert find_shards(tmp_path, "none/*.parquet") == []
    assert fits("a[1]?.csv", "a[1]?*")
    assert not fits("a1.csv", "a[1]*")


def test_a_pattern_leads_nowhere_else(tmp_path: Path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a.csv").touch()
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "link").symlink_to(tmp_path / "outside")
    for pattern in ("../outside/*.csv", "link/*.csv", "*/*.csv", f"{tmp_path}/outside/*.csv"):
        assert find_shards(tmp_path / "dataset", pattern) == []


def test_a_shard_whose_name_no_file_of_samples_can_hold_is_refused(tmp_path: Path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.csv")).touch()
    with pytest.raises(ValueError, match="fits a file whose name is not UTF-8: rename it"):
        find_shards(tmp_path, "*.csv")


def test_too_many_shards_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("llava_trainer.data.shards.MAX_SHARDS", 2)
    for index in range(3):
        (tmp_path / f"{index}.csv").touch()
    with pytest.raises(ValueError, match="fits more than 2 files"):
        find_shards(tmp_path, "*.csv")
    assert MAX_SHARDS == 10_000
