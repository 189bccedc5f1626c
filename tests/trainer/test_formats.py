"""Every format ends in the same samples: the same data in all forms through prepare, and what the wrong one is told."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llava_api.constants import StageName
from llava_trainer.data.encode import encode
from llava_trainer.data.image_folder import training_images
from llava_trainer.data.images import check_image
from llava_trainer.data.processor import Processor
from llava_trainer.data.questions import ask_samples
from llava_trainer.data.samples import Sample, read_samples
from llava_trainer.data.template import SYSTEM
from llava_trainer.model.answering import encode_question
from llava_trainer.training.phase import phase_of
from tests.trainer.exports import chat, conversation, data_url, document, draw_image, prepare_config, write_json
from tests.trainer.test_prepare import receipts, refusal, report_of, run


def write_receipts(root: Path) -> list[dict[str, Any]]:
    """Images of receipts in ``root``/dataset/images, and LLaVA's conversations about them."""
    entries = [conversation(name, pairs, group=name) for name, pairs in receipts()]
    for index, entry in enumerate(entries):
        draw_image(root / "dataset" / "images" / entry["image"], seed=index, size=(40 + 10 * index, 60))
    return entries


def samples_of(config: Any) -> list[Sample]:
    return [
        *read_samples(config.volume.train_file),
        *read_samples(config.volume.validation_file),
    ]


def test_images_within_messages_are_kept_on_the_volume(tmp_path: Path, toy_processor: Processor):
    entries = write_receipts(tmp_path)
    images = tmp_path / "dataset" / "images"
    held = [chat({**entry, "image": data_url(images / entry["image"])}) for entry in entries]
    write_json(tmp_path / "dataset" / "export.json", held)
    config = prepare_config(tmp_path, toy_processor.model_dir, format="messages")
    output = run(config)
    assert output.numbers.images == 12
    places = training_images(config)
    assert phase_of(config, StageName.TRAIN).images == places
    for sample in samples_of(config):
        (image,) = sample.images
        assert image.startswith("embedded:")
        content = places.find(image).read_bytes()
        assert content == (images / sample.group).read_bytes()
        (question, *_) = ask_samples([sample], "validation")
        pixels = encode_question(question, toy_processor, places).load_pixels
        assert pixels is not None
        assert pixels().shape[0] == 1
    assert len(list(config.volume.embedded_images_dir.iterdir())) == 12
    first = {path.name: path.read_bytes() for path in config.volume.data_dir.iterdir() if path.is_file()}
    # What an end in between has left is of no use: nobody knows what of it is on the disk.
    for path in config.volume.embedded_images_dir.iterdir():
        path.write_bytes(b"")
    run(config)
    assert {path.name: path.read_bytes() for path in config.volume.data_dir.iterdir() if path.is_file()} == first


def test_what_is_no_picture_within_an_entry_is_refused_like_a_file(tmp_path: Path, toy_model_dir: Path):
    entries = write_receipts(tmp_path)
    page = "data:image/png;base64,PGh0bWw+"
    bomb = data_url(draw_image(tmp_path / "bomb.png", size=(2000, 2000)))
    said = [chat({**entries[0], "image": image}) for image in (page, bomb)]
    write_json(tmp_path / "dataset" / "export.json", [*map(chat, entries), *said])
    limits = {"limits": {"imagePixels": 1_000_000}}
    _, first, second = refusal(prepare_config(tmp_path, toy_model_dir, format="messages", dataset=limits))
    assert first.startswith("export.json[12]: picture in the entry (")
    assert "is not one of JPEG" in first
    assert "is 2000 x 2000 px, more than dataset.limits.imagePixels 1,000,000" in second


def test_a_path_that_looks_like_an_image_within_an_entry_finds_none(tmp_path: Path, toy_model_dir: Path):
    entries = write_receipts(tmp_path)
    write_json(tmp_path / "dataset" / "export.json", [{**entries[0], "image": f"embedded:{'0' * 64}"}, *entries])
    _, told = refusal(prepare_config(tmp_path, toy_model_dir))
    assert told == "export.json[0]: picture in the entry (000000000000) does not exist"


@pytest.mark.parametrize("how", ["ignore", "use"])
def test_a_system_message_goes_from_the_spec_to_training_and_scores(how: str, tmp_path: Path, toy_processor: Processor):
    entries = write_receipts(tmp_path)
    write_json(tmp_path / "dataset" / "export.json", [chat(entry, system="Be brief.") for entry in entries])
    dataset = {"messages": {"systemMessage": how}}
    config = prepare_config(tmp_path, toy_processor.model_dir, format="messages", dataset=dataset)
    run(config)
    sample = samples_of(config)[0]
    encoded = encode(sample, toy_processor, 512)
    learned = toy_processor.tokenizer.decode(encoded.input_ids)
    (question, *_) = ask_samples([sample], "validation")
    asked = encode_question(question, toy_processor, training_images(config)).ids
    assert list(encoded.input_ids[: len(asked)]) == list(asked)
    assert (SYSTEM in learned, "Be brief." in learned) == (how == "ignore", how == "use")
    notes = [(note.kind, note.count) for note in report_of(config).notes if note.kind != "too_few_groups"]
    assert notes == ([("unused_system", 12)] if how == "ignore" else [])


WRONG: list[tuple[str, Any, str, str]] = [
    (
        "llava",
        lambda: json.dumps([document("a.png", [("Q", "A")])]),
        "[0]",
        "looks like UBIAI's: set dataset.f",
    ),
    (
        "llava",
        lambda: json.dumps([chat(conversation("a.png", [("Q", "A")]))]),
        "[0]",
        "messages of a chat: set dat",
    ),
    ("llava", lambda: json.dumps([{"question": "Q"}]), "[0]", "a row of a table: set dataset.format to table"),
    ("llava", lambda: json.dumps([{"b": 1, "a": 2}]), "[0]", "conversations is missing; its fields are a, b"),
    ("llava", lambda: "image,question,answer\na.png,Q,A\n", "", "looks like a table (CSV or TSV) and not like JSON"),
    ("llava", lambda: "PAR1....", "", "is a Parquet file: set dataset.format to table and name its columns"),
    ("messages", lambda: "PK\x03\x04", "", "is a zip archive: unpack or convert it"),
    (
        "messages",
        lambda: "Total\tB-KEY\n",
        "",
        "looks like the words of UBIAI's OCR archive: set dataset.f",
    ),
    (
        "ubiai",
        lambda: json.dumps([conversation("a.png", [("Q", "A")])]),
        "[0]",
        "looks like LLaVA's: set dataset.f",
    ),
    ("ubiai", lambda: json.dumps([chat(conversation("a.png", [("Q", "A")]))]), "[0]", "looks like messages of a chat"),
    ("ubiai", lambda: "PAR1....", "", "is a Parquet file: set dataset.format to table"),
]


@pytest.mark.parametrize(("format", "make", "place", "message"), WRONG)
def test_a_wrong_format_is_told_with_what_was_found(
    format: str, make: Any, place: str, message: str, tmp_path: Path, toy_model_dir: Path
):
    write_receipts(tmp_path)
    (tmp_path / "dataset" / "export.json").write_text(make())
    _, told, *_ = refusal(prepare_config(tmp_path, toy_model_dir, format=format))
    assert told.startswith(f"export.json{place}: ")
    assert message in told


def turns_of(entry: dict[str, Any]) -> list[dict[str, str]]:
    """A conversation (LLaVA's) as the_cauldron has it: both sides of a turn together, images beside."""
    said = [turn["value"].replace("<image>\n", "") for turn in entry["conversations"]]
    return [{"user": user, "assistant": assistant} for user, assistant in zip(said[::2], said[1::2], strict=True)]


def write_forms(folder: Path, entries: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same conversations in every form, in ``folder``; returns what the spec says of each."""
    images = folder / "images"
    turns = {"image": "image", "turns": "turns", "id": "id", "group": "group"}
    rows = [
        {"id": entry["id"], "image": entry["image"], "turns": turns_of(entry), "group": entry["group"]}
        for entry in entries
    ]
    write_json(folder / "llava.json", entries)
    (folder / "llava.jsonl").write_text("\n".join(map(json.dumps, entries)))
    pairs = [[(turn["user"], turn["assistant"]) for turn in row["turns"]] for row in rows]
    write_json(folder / "ubiai.json", [document(row["image"], said) for row, said in zip(rows, pairs, strict=True)])
    write_json(folder / "messages.json", [chat(entry) for entry in entries])
    held = [chat({**entry, "image": data_url(images / entry["image"])}) for entry in entries]
    (folder / "held.jsonl").write_text("\n".join(map(json.dumps, held)))
    write_json(folder / "sharegpt.json", [{**entry, "image": None, "images": [entry["image"]]} for entry in entries])
    with (folder / "table.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows({**row, "turns": json.dumps(row["turns"])} for row in rows)
    (folder / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "data").mkdir()
    structs = [
        {**row, "image": [{"bytes": (images / row["image"]).read_bytes(), "path": row["image"]}]} for row in rows
    ]
    for number, shard in enumerate((structs[:7], structs[7:])):
        path = folder / "data" / f"train-{number:05}-of-00002.parquet"
        pq.write_table(pa.Table.from_pylist(shard), path, row_group_size=len(shard))
    table = {"format": "table", "table": turns}
    return {
        "LLaVA's list": {"format": "llava", "file": "llava.json"},
        "LLaVA's lines": {"format": "llava", "file": "llava.jsonl"},
        "UBIAI": {"format": "ubiai", "file": "ubiai.json"},
        "messages": {"format": "messages", "file": "messages.json"},
        "messages with images": {"format": "messages", "file": "held.jsonl"},
        "ShareGPT": {"format": "messages", "file": "sharegpt.json"},
        "CSV": {**table, "file": "table.csv"},
        "a table of JSON lines": {**table, "file": "table.jsonl"},
        "sharded Parquet": {**table, "file": "data/train-*.parquet"},
    }


def facts_of(config: Any, held_out: bool) -> list[tuple[Any, ...]]:
    """What training and evaluation know of a sample, whatever its images are called and wherever it stood."""
    places = training_images(config)
    file = config.volume.validation_file if held_out else config.volume.train_file
    return [
        (
            sample.id, sample.turns, sample.image_turns, sample.group, sample.group_key, sample.system,
            sample.num_tokens, sample.num_supervised,
            [check_image(places.find(image), 10**6).digest for image in sample.images],
        )
        for sample in read_samples(file)
    ]  # fmt: skip


def test_all_forms_of_the_same_data_give_equal_samples_and_one_split(tmp_path: Path, toy_model_dir: Path):
    entries = write_receipts(tmp_path)
    forms = write_forms(tmp_path / "dataset", entries)
    found, reports = {}, {}
    for name, dataset in forms.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "dataset").symlink_to(tmp_path / "dataset")
        # Enough groups that no finding names the file.
        held_out = {"validation": {"fraction": 0.5}}
        config = prepare_config(tmp_path / name, toy_model_dir, dataset=dataset | held_out)
        run(config)
        found[name] = (facts_of(config, False), facts_of(config, True))
        reports[name] = report_of(config)
    expected = found["LLaVA's list"]
    assert (len(expected[0]) + len(expected[1]), len(expected[1]) > 0) == (12, True)
    report = reports["LLaVA's list"].model_copy(update={"format": "", "file": ""})
    for name in forms:
        assert found[name] == expected, name
        assert reports[name].model_copy(update={"format": "", "file": ""}) == report, name


def test_a_row_a_question_gives_the_pairs_of_ubiai(tmp_path: Path, toy_model_dir: Path):
    entries = write_receipts(tmp_path)
    folder = tmp_path / "dataset"
    rows = [
        {"picture": entry["image"], "q": turn["user"], "a": turn["assistant"], "of": entry["group"]}
        for entry in entries
        for turn in turns_of(entry)
    ]
    with (folder / "pairs.tsv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0], delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    write_forms(folder, entries)
    found = []
    for dataset in (
        {"format": "table", "file": "pairs.tsv",
         "table": {"image": "picture", "question": "q", "answer": "a", "group": "of"}},
        {"format": "ubiai", "file": "ubiai.json", "ubiai": {"samples": "pair"}},
    ):  # fmt: skip
        config = prepare_config(tmp_path, toy_model_dir, dataset=dataset)
        run(config)
        found.append([[fact[1:] for fact in facts_of(config, side)] for side in (False, True)])
    assert found[0] == found[1]


def test_a_pattern_that_fits_nothing_is_told(tmp_path: Path, toy_model_dir: Path):
    write_forms(tmp_path / "dataset", write_receipts(tmp_path))
    table = {"format": "table", "file": "data/test-*.parquet", "table": {"question": "q", "answer": "a"}}
    _, told = refusal(prepare_config(tmp_path, toy_model_dir, dataset=table))
    assert told.startswith("data/test-*.parquet: fits no file (in pvc://receipts/, which holds ")
    assert told.endswith(": correct dataset.file")


def test_held_out_samples_may_be_shards_too(tmp_path: Path, toy_model_dir: Path):
    forms = write_forms(tmp_path / "dataset", write_receipts(tmp_path))
    dataset = {**forms["sharded Parquet"], "validation": {"file": "data/*-00001-of-*.parquet"}}
    dataset["file"] = "data/*-00000-of-*.parquet"
    config = prepare_config(tmp_path, toy_model_dir, dataset=dataset)
    output = run(config)
    assert (output.numbers.samples_train, output.numbers.samples_validation) == (7, 5)
