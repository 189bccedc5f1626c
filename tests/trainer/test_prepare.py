"""The prepare stage on real folders: what it accepts, refuses, writes and says."""

import html
import json
import random
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llava_api.constants import StageName
from llava_api.failures import Reason
from llava_api.report import PrepareNumbers, StageResult
from llava_api.run_config import RunConfig
from llava_trainer.data.dataset import prepare_dataset
from llava_trainer.data.dataset_page import build_dataset_page
from llava_trainer.data.dataset_report import DatasetReport, build_dataset_report
from llava_trainer.data.encode import encode
from llava_trainer.data.model_facts import read_model_facts
from llava_trainer.data.processor import Processor, load_processor
from llava_trainer.data.refused_entries import MAX_ENTRY_BYTES
from llava_trainer.data.request import training_request
from llava_trainer.data.samples import Sample, read_samples
from llava_trainer.data.token_counts import build_histogram
from llava_trainer.errors import StageError
from llava_trainer.outcome import ENV_TERMINATION_LOG, StageOutput
from llava_trainer.reporting import Reporter
from llava_trainer.stages import prepare
from tests.trainer.exports import chat, conversation, document, draw_image, prepare_config, write_json

QUESTIONS = ("Which company issued this?", "What is the date?", "What is the total?")


class Recorder(Reporter):
    """Keeps what is reported instead of pushing it."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.steps: list[tuple[int, int]] = []

    def update(self, step: int, total_steps: int, **measures: Any) -> None:
        self.steps.append((step, total_steps))


def receipts(count: int = 12) -> list[tuple[str, list[tuple[str, str]]]]:
    """Images with one to three questions each, answers with odd characters among them."""
    rng = random.Random(0)
    answers = ("BOOK TA .K (TAMAN DAYA) SDN BHD", "25/12/2018", "9.00", "Größe 漢字", "No. 5 & 7, 'Jalan' <Sagu>")
    return [
        (f"{index:03}.png", [(question, rng.choice(answers)) for question in QUESTIONS[: index % 3 + 1]])
        for index in range(count)
    ]


def write_dataset(root: Path, entries: list[Any], *, images: int = 12) -> None:
    write_json(root / "dataset" / "export.json", entries)
    for index in range(images):
        draw_image(root / "dataset" / "images" / f"{index:03}.png", seed=index, size=(40 + 10 * index, 60))


def run(config: RunConfig) -> StageOutput:
    return prepare.run(config, Recorder(config))


def refusal(config: RunConfig) -> list[str]:
    """Lines of the failure's message."""
    with pytest.raises(StageError) as caught:
        run(config)
    assert caught.value.reason is Reason.INVALID_DATA
    assert not config.volume.train_file.exists()
    return caught.value.message.splitlines()


def report_of(config: RunConfig) -> DatasetReport:
    return DatasetReport.model_validate_json(config.volume.dataset_report_json.read_text(encoding="utf-8"))


def notes_of(config: RunConfig) -> dict[str, list[tuple[str, str]]]:
    return {note.kind: [(told.where, told.message) for told in note.examples] for note in report_of(config).notes}


def pairs_of(samples: list[Sample]) -> set[tuple[str, str, str]]:
    return {(sample.images[0], q.text, a.text) for sample in samples for _, q, a in sample.pairs()}


def both_sides(config: RunConfig) -> tuple[list[Sample], list[Sample]]:
    return list(read_samples(config.volume.train_file)), list(read_samples(config.volume.validation_file))


def test_both_formats_give_the_same_images_pairs_and_split(tmp_path: Path, toy_model_dir: Path):
    sides = {}
    reports = {}
    for format, build in (("llava", conversation), ("ubiai", document)):
        root = tmp_path / format
        write_dataset(root, [build(name, pairs) for name, pairs in receipts()])
        ubiai = {"ubiai": {"samples": "pair"}} if format == "ubiai" else {}
        config = prepare_config(root, toy_model_dir, format=format, dataset=ubiai)
        run(config)
        sides[format] = [pairs_of(side) for side in both_sides(config)]
        reports[format] = report_of(config)
    assert sides["llava"] == sides["ubiai"]
    llava, ubiai = reports["llava"], reports["ubiai"]
    assert (llava.samples_read, ubiai.samples_read) == (12, 24)
    assert llava.pictures.files == ubiai.pictures.files == 12
    assert llava.train.pairs + llava.validation.pairs == 24
    assert (llava.train.pairs, llava.validation.pairs) == (ubiai.train.pairs, ubiai.validation.pairs) == (18, 6)
    assert llava.train.supervised_tokens == ubiai.train.supervised_tokens


def test_numbers_progress_and_digests(tmp_path: Path, toy_model_dir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1 << 40, free=12_345))
    write_dataset(tmp_path, [conversation(name, pairs) for name, pairs in receipts()])
    config = prepare_config(tmp_path, toy_model_dir)
    reporter = Recorder(config)
    output = prepare.run(config, reporter)
    train, validation = both_sides(config)
    report = report_of(config)
    assert output.numbers == PrepareNumbers(
        samples_train=len(train), samples_validation=len(validation), pairs_train=18, pairs_validation=6, images=12,
        supervised_tokens=report.train.supervised_tokens, longest_sample_tokens=report.lengths.longest,
        overlong_samples=0, unsupervised_samples=0, samples_alignment=0, groups_validation=len(validation),
        sufficient_fraction=report.sufficient_fraction, image_scale=report.pictures.median_scale,
        largest=output.numbers.largest, free_bytes=12_345, flash_attention=False, omits_masks=True,
        streams_merge=True, publishes=True, model=read_model_facts(toy_model_dir), config_version=2,
    )  # fmt: skip
    longest = max(sample.num_tokens for sample in train)
    largest = output.numbers.largest
    assert (largest.rows, largest.tokens, largest.pictures) == (8, 8 * longest, 8)
    assert 0 < largest.supervised <= report.train.supervised_tokens
    assert len(train) + len(validation) == 12
    assert reporter.steps == [(step, 12) for step in range(1, 13)]
    assert output.digests.keys() == {"train", "validation"}
    assert sum(bar.samples for bar in report.lengths.histogram) == 12
    assert report.accepted


def files_of(config: RunConfig) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(config.volume.data_dir.iterdir())}


def test_running_again_over_a_half_written_folder_gives_the_same_files(tmp_path: Path, toy_model_dir: Path):
    write_dataset(tmp_path, [conversation(name, pairs) for name, pairs in receipts()])
    config = prepare_config(tmp_path, toy_model_dir)
    run(config)
    first = files_of(config)
    assert first.keys() == {"train.jsonl", "validation.jsonl", "report.json", "report.html"}
    config.volume.validation_file.unlink()
    (config.volume.data_dir / ".train.jsonl.partial").write_text('{"half')
    (config.volume.data_dir / ".report.html.partial").write_text("<html")
    config.volume.dataset_report_json.write_text("{")
    run(config)
    assert files_of(config) == first


def test_samples_of_one_image_and_of_its_copies_stay_together(tmp_path: Path, toy_model_dir: Path):
    entries = [document(name, pairs) for name, pairs in receipts()]
    entries += [document(f"copy-{name}", pairs) for name, pairs in receipts()]
    write_dataset(tmp_path, entries)
    for index in range(12):
        image = tmp_path / "dataset" / "images" / f"{index:03}.png"
        shutil.copy(image, image.with_name(f"copy-{image.name}"))
    config = prepare_config(tmp_path, toy_model_dir, format="ubiai")
    run(config)
    train, validation = (
        {path.removeprefix("copy-") for sample in side for path in sample.images} for side in both_sides(config)
    )
    assert train
    assert validation
    assert not train & validation
    assert len(notes_of(config)["same_picture"]) == 12
    assert notes_of(config)["same_picture"][0][1].startswith("same pixels as ")
    assert report_of(config).pictures.files == 24
    assert report_of(config).pictures.different == 12


def test_the_first_ten_offending_entries_are_told_with_their_number(tmp_path: Path, toy_model_dir: Path):
    entries = [conversation(name, pairs) for name, pairs in receipts()]
    entries += [conversation("missing.png", [("Q", "A")]) for _ in range(13)]
    write_dataset(tmp_path, entries)
    config = prepare_config(tmp_path, toy_model_dir)
    heading, *lines = refusal(config)
    where_all_are = "data/refused.jsonl on the volume has all"
    assert heading == f"13 entries of spec.dataset cannot be used; the first 10 of them ({where_all_are}):"
    listed = [json.loads(line) for line in config.volume.refused_entries_file.read_text().splitlines()]
    assert [(entry["source"], entry["file"], entry["index"], entry["kind"]) for entry in listed] == [
        ("pvc://receipts/", "export.json", index, "refused") for index in range(12, 25)
    ]
    assert listed[0]["problem"] == "picture images/missing.png does not exist"
    assert listed[0]["entry"] == entries[12]
    assert '<a href="refused.jsonl" download="refused.jsonl">' in config.volume.dataset_report_html.read_text()
    assert lines == [f"export.json[{index}]: picture images/missing.png does not exist" for index in range(12, 22)]
    report = report_of(config)
    assert not report.accepted
    assert report.refused_count == len(report.refused) == 13
    assert "Refused: 13 entries" in config.volume.dataset_report_html.read_text()


def test_entries_are_listed_as_they_are_where_they_may_be(
    tmp_path: Path, toy_model_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    odd = conversation("000.png", [("Q", "\ud83d")])
    large = conversation("missing.png", [("Q", "x" * MAX_ENTRY_BYTES)])
    write_dataset(tmp_path, [odd, large, conversation("missing.png", [("Q", "A")])])
    config = prepare_config(tmp_path, toy_model_dir)
    refusal(config)
    text = config.volume.refused_entries_file.read_text(encoding="utf-8")
    assert [json.loads(line)["entry"] for line in text.splitlines()] == [
        odd, None, conversation("missing.png", [("Q", "A")]),
    ]  # fmt: skip
    monkeypatch.setattr("llava_trainer.data.refused_entries.MAX_LISTED", 2)
    refusal(config)
    assert len(config.volume.refused_entries_file.read_text().splitlines()) == 2
    write_dataset(tmp_path, [conversation(name, pairs) for name, pairs in receipts()])
    run(config)
    assert not config.volume.refused_entries_file.exists()


def test_what_is_wrong_is_told_in_the_order_of_the_export(tmp_path: Path, toy_model_dir: Path):
    bad = [
        conversation("missing.png", [("Q", "A")]),
        conversation("000.png", [("Q", "")]),
        conversation("damaged.png", [("Q", "A")]),
        conversation("../secret.png", [("Q", "A")]),
        conversation("000.png", [("Q", "ends</s>here")]),
        {"id": 1},
        conversation("link.png", [("Q", "A")]),
        conversation("/etc/passwd", [("Q", "A")]),
        conversation("000.png", [("Q" * 3000, "A")]),
    ]
    write_dataset(tmp_path, [conversation("001.png", [("Q", "A")]), *bad])
    images = tmp_path / "dataset" / "images"
    (images / "damaged.png").write_bytes((images / "000.png").read_bytes()[:-30])
    draw_image(tmp_path / "secret.png")
    (images / "link.png").symlink_to(tmp_path / "secret.png")
    config = prepare_config(tmp_path, toy_model_dir)
    heading, *lines = refusal(config)
    assert heading == "7 entries of spec.dataset cannot be used; training.maxLength must be at least 3047 to keep all:"
    places = [f"export.json[{index}]" for index in (1, 3, 4, 6, 7, 8)]
    # Samples of which nothing is left are no entries to correct; they come after what is said of all of them.
    assert [line.split(":")[0] for line in lines] == [
        *places,
        "export.json",
        "export.json[2]",
        "export.json[9]",
        "export.json[5]",
    ]
    expected = [
        "picture images/missing.png does not exist", "images/damaged.png cannot be decoded",
        "images/../secret.png must be a path inside",
        "conversations is missing", "images/link.png leads outside the dataset", "images//etc/passwd must be a path",
        "3 of 4 samples (75.0%) had to be left out, more than dataset.limits.unsupervisedShare 0.01 allows",
        "every answer is blank", "training.maxLength 512 cuts off every answer: it must be at least 3047",
        "contains </s>, which means something else",
    ]  # fmt: skip
    for line, message in zip(lines, expected, strict=True):
        assert message in line


def test_overlong_samples_are_cut_off_and_told(tmp_path: Path, toy_model_dir: Path, caplog: pytest.LogCaptureFixture):
    entries = [conversation(name, pairs) for name, pairs in receipts()]
    entries[3] = conversation("003.png", [("What does it say?", "on and on " * 40)])
    write_dataset(tmp_path, entries)
    held_out = {"validation": {"fraction": 0.05}}
    config = prepare_config(tmp_path, toy_model_dir, training={"maxLength": 200}, dataset=held_out)
    output = run(config)
    assert output.numbers.overlong_samples == 1
    assert output.numbers.longest_sample_tokens > 200
    assert output.numbers.largest.tokens == 200 * output.numbers.largest.rows
    ((where, message),) = notes_of(config)["overlong"]
    assert where == "export.json[3]"
    assert message.startswith(f"{output.numbers.longest_sample_tokens} tokens, the last ")
    assert "export.json: samples cut off at training.maxLength: 1" in caplog.messages
    page = config.volume.dataset_report_html.read_text(encoding="utf-8")
    assert page.count("<s>") == 1
    assert "on and on </s></p>" not in page
    assert "&lt;/s&gt;</s></p>" in page
    assert pairs_of(both_sides(config)[0] + both_sides(config)[1]) >= {
        ("003.png", "What does it say?", ("on and on " * 40).strip())
    }


def test_the_maxlength_that_is_told_is_enough_and_no_more_than_needed(tmp_path: Path, toy_model_dir: Path):
    entries = [conversation(name, [("What? " * 5 * index, "9.00")]) for index, (name, _) in enumerate(receipts(), 1)]
    write_dataset(tmp_path, entries)
    too_short = prepare_config(tmp_path, toy_model_dir, training={"maxLength": 64})
    heading, *lines = refusal(too_short)
    needed = int(heading.split("at least ")[1].split()[0])
    assert len(lines) == 10
    one_too_few = [where for where, message in notes_of(too_short)["nothing_to_learn"] if f"least {needed}" in message]
    assert one_too_few == ["export.json[11]"]
    run(prepare_config(tmp_path, toy_model_dir, training={"maxLength": needed}))


def test_a_limit_within_the_image_is_refused(tmp_path: Path, toy_model_dir: Path):
    said = [("Hello. " * 30, "Hi."), ("What is this?", "A cat.")]
    entry = conversation(None, said, image="000.png")
    entry["conversations"][2]["value"] = "<image>\nWhat is this?"
    write_dataset(tmp_path, [entry])
    (_, share, line) = refusal(prepare_config(tmp_path, toy_model_dir, training={"maxLength": 64}))
    assert share.startswith("export.json: 1 of 1 samples (100.0%) had to be left out")
    assert "training.maxLength 64 cuts off its picture: it must be at least" in line


def test_a_few_samples_without_anything_to_learn_are_left_out_counted_and_listed(tmp_path: Path, toy_model_dir: Path):
    entries = [conversation(name, pairs) for name, pairs in receipts()]
    entries[3] = conversation("003.png", [("What does it say?", " ")])
    entries[5] = conversation("005.png", [("Long? " * 300, "Yes.")])
    entries[7] = conversation("007.png", [("First?", ""), ("Second?", "Yes.")])
    write_dataset(tmp_path, entries)
    config = prepare_config(tmp_path, toy_model_dir, dataset={"limits": {"unsupervisedShare": 0.2}})
    output = run(config)
    assert output.numbers.unsupervised_samples == 2
    assert output.numbers.samples_train + output.numbers.samples_validation == 10
    assert [where for where, _ in notes_of(config)["nothing_to_learn"]] == ["export.json[3]", "export.json[5]"]
    listed = [json.loads(line) for line in config.volume.refused_entries_file.read_text().splitlines()]
    assert [(entry["where"], entry["kind"]) for entry in listed] == [
        ("export.json[3]", "left out"), ("export.json[5]", "left out"),
    ]  # fmt: skip
    assert [where for where, _ in notes_of(config)["blank_answer"]] == ["export.json[3]", "export.json[7]"]
    assert report_of(config).left_out == 2
    page = config.volume.dataset_report_html.read_text()
    assert "<h2>Left out</h2>" in page
    assert "export.json[5]" in page
    shutil.rmtree(config.volume_root)
    refused = refusal(prepare_config(tmp_path, toy_model_dir, dataset={"limits": {"unsupervisedShare": 0.15}}))
    assert "2 of 12 samples (16.7%) had to be left out, more than dataset.limits.unsupervisedShare 0.15" in (refused[1])


def test_what_is_exactly_at_the_limit_is_accepted(tmp_path: Path, toy_model_dir: Path):
    entries = [conversation(name, pairs) for name, pairs in receipts(10)]
    entries[3] = conversation("003.png", [("What does it say?", "")])
    write_dataset(tmp_path, entries)
    run(prepare_config(tmp_path, toy_model_dir, dataset={"limits": {"unsupervisedShare": 0.1}}))


def test_a_validation_file_is_held_out_and_a_shared_image_is_told(tmp_path: Path, toy_model_dir: Path):
    entries = [conversation(name, pairs) for name, pairs in receipts()]
    said_twice = [conversation(None, [("Hello.", "Hi."), ("How much?", "9.00")])]
    write_dataset(tmp_path, [*entries[:8], *said_twice])
    shutil.copy(tmp_path / "dataset/images/002.png", tmp_path / "dataset/images/copy.png")
    again = conversation("copy.png", [("Something new?", "Yes.")])
    elsewhere = conversation(None, [("Hello!", "Hi."), ("How much?", "9.00")])
    write_json(tmp_path / "dataset" / "val" / "held.json", [*entries[8:], again, *said_twice, elsewhere])
    config = prepare_config(tmp_path, toy_model_dir, dataset={"validation": {"file": "val/held.json"}})
    reporter = Recorder(config)
    prepare.run(config, reporter)
    train, validation = both_sides(config)
    assert len(train) == 9
    assert len(validation) == 7
    assert reporter.steps[-1] == (16, 16)
    notes = notes_of(config)
    assert notes["shared_picture"] == [("val/held.json[4]", "shows copy.png")]
    assert notes["overlap"] == [("val/held.json[5]", "'Hello.'"), ("val/held.json[5]", "'How much?'")]


def test_a_held_out_question_that_training_asks_about_the_same_image_is_refused(tmp_path: Path, toy_model_dir: Path):
    entries = [conversation(name, pairs) for name, pairs in receipts()]
    write_dataset(tmp_path, entries[:8])
    shutil.copy(tmp_path / "dataset/images/002.png", tmp_path / "dataset/images/copy.png")
    again = conversation("copy.png", [("New?", "Yes."), (f" {QUESTIONS[0].upper()}\n", "other")])
    write_json(tmp_path / "dataset" / "held.json", [*entries[8:], again])
    config = prepare_config(tmp_path, toy_model_dir, dataset={"validation": {"file": "held.json"}})
    heading, line = refusal(config)
    assert heading == "1 entry of spec.dataset cannot be used:"
    assert line == (
        f"held.json[4]: {QUESTIONS[0].upper()!r} is held out, but export.json[2] trains on it with the same picture: "
        "take it out of one of the two files"
    )


def test_images_that_are_shown_together_stay_on_one_side(tmp_path: Path, toy_model_dir: Path):
    """A chain: each sample shows an image of the one before it, so that all of them are one group."""
    chain = [
        conversation(None, [("<image> or <image>?", "The first.")], image=[f"{index:03}.png", f"{index + 1:03}.png"])
        for index in range(5)
    ]
    singles = [conversation(f"{index:03}.png", [("Q", "A")]) for index in range(12)]
    sides = set()
    for seed in range(4):
        write_dataset(tmp_path, [*chain, *singles])
        config = prepare_config(tmp_path, toy_model_dir, training={"maxLength": 512, "seed": seed})
        run(config)
        train, validation = both_sides(config)
        shown = [{path for sample in side for path in sample.images} for side in (train, validation)]
        assert not shown[0] & shown[1]
        sides.add("000.png" in shown[0])
    assert True in sides


GROUPED = [f"patient-{index // 3}" for index in range(12)]


@pytest.mark.parametrize("seed", range(4))
def test_a_group_stays_on_one_side_and_every_sample_carries_its_own(seed: int, tmp_path: Path, toy_model_dir: Path):
    named = [conversation(name, pairs, group=group) for (name, pairs), group in zip(receipts(), GROUPED, strict=True)]
    # Joined by the picture that it shows, and by nothing else.
    joined = conversation("000.png", [("And what else?", "A.")], group="another name")
    text = conversation(None, [("What is a receipt?", "A paper.")], group="patient-3")
    write_dataset(tmp_path, [*named, joined, text])
    config = prepare_config(tmp_path, toy_model_dir, training={"maxLength": 512, "seed": seed})
    run(config)
    sides = both_sides(config)
    groups = [{sample.group for sample in side} for side in sides]
    assert not groups[0] & groups[1]
    assert groups[0] | groups[1] == {*GROUPED, "another name"}
    assert all(("another name" in side) == ("patient-0" in side) for side in groups)
    keys: dict[str, set[str]] = {}
    for sample in (*sides[0], *sides[1]):
        keys.setdefault(sample.group.replace("another name", "patient-0"), set()).add(sample.group_key)
    assert [len(found) for found in keys.values()] == [1] * 4
    assert len(set.union(*keys.values())) == 4
    report = report_of(config)
    assert (report.train.groups + report.validation.groups, report.shared.groups) == (4, 0)


def test_what_groups_are_called_does_not_change_what_is_held_out(tmp_path: Path, toy_model_dir: Path):
    held_out = []
    for prefix in (None, "a", "b"):
        entries = [
            conversation(name, pairs, group=None if prefix is None else f"{prefix}{name}") for name, pairs in receipts()
        ]
        write_dataset(tmp_path, entries)
        config = prepare_config(tmp_path, toy_model_dir)
        run(config)
        held_out.append(pairs_of(both_sides(config)[1]))
    assert held_out[0] == held_out[1] == held_out[2]


def test_everything_of_one_group_cannot_be_split(tmp_path: Path, toy_model_dir: Path):
    write_dataset(tmp_path, [conversation(name, pairs, group=1) for name, pairs in receipts()])
    _, line = refusal(prepare_config(tmp_path, toy_model_dir))
    assert line.startswith("export.json: every sample is about the same picture or of the same group")


def test_a_ubiai_document_is_a_group(tmp_path: Path, toy_model_dir: Path):
    entries = [document(None if index else name, pairs) for index, (name, pairs) in enumerate(receipts())]
    write_dataset(tmp_path, entries)
    write_json(tmp_path / "dataset" / "map.json", {str(index): f"{index:03}.png" for index in range(12)})
    ubiai = {"ubiai": {"documents": "map.json", "samples": "pair"}}
    config = prepare_config(tmp_path, toy_model_dir, format="ubiai", dataset=ubiai)
    run(config)
    groups = {sample.group for side in both_sides(config) for sample in side}
    assert groups == {"000.png", *(f"export.json[{index}]" for index in range(1, 12))}


def test_a_group_that_both_files_have_is_counted_and_told(
    tmp_path: Path, toy_model_dir: Path, caplog: pytest.LogCaptureFixture
):
    entries = [conversation(name, pairs, group=group) for (name, pairs), group in zip(receipts(), GROUPED, strict=True)]
    write_dataset(tmp_path, entries[:8])
    # patient-2 has 006 and 007 in training, 008 held out; 009 to 011 are patient-3, whom training does not know.
    write_json(tmp_path / "dataset" / "held.json", entries[8:])
    config = prepare_config(tmp_path, toy_model_dir, dataset={"validation": {"file": "held.json"}})
    numbers = run(config).numbers
    assert (numbers.groups_validation, numbers.groups_shared, numbers.pairs_shared) == (2, 1, 3)
    told = "group 'patient-2': 1 held-out and 2 training samples, like export.json[6]"
    assert notes_of(config)["shared_group"] == [("held.json[0]", told)]
    assert "export.json: held-out groups that training has samples of, too: 1" in caplog.messages
    page = config.volume.dataset_report_html.read_text()
    assert "3 in training, 2 held out, 1 on both sides (3 pairs)" in page


def alignment_config(root: Path, model_dir: Path, captions: list[Any], **changes: Any) -> RunConfig:
    """A run with an alignment over ``root``/captions beside its dataset."""
    write_json(root / "captions" / "captions.json", captions)
    dataset = {"source": "pvc://captions/", "format": "llava", "file": "captions.json", "images": "images", **changes}
    alignment = {"dataset": dataset, "batch": {"perDevice": 3, "global": 6}}
    return prepare_config(root, model_dir, alignmentDir=root / "captions", alignment=alignment)


def caption(name: str, text: str) -> dict[str, Any]:
    return conversation(name, [("Give a short description.", text)])


def test_captions_are_checked_in_the_plain_layout_and_none_is_held_out(tmp_path: Path, toy_model_dir: Path):
    write_dataset(tmp_path, [conversation(name, pairs) for name, pairs in receipts()])
    for index in range(5):
        draw_image(tmp_path / "captions" / "images" / f"c{index}.png", seed=50 + index)
    config = alignment_config(tmp_path, toy_model_dir, [caption(f"c{index}.png", "A line.") for index in range(5)])
    output = run(config)
    captions = list(read_samples(config.volume.alignment_file))
    assert output.numbers.samples_alignment == len(captions) == 5
    longest = max(sample.num_tokens for sample in captions)
    largest = output.numbers.largest_alignment
    assert (largest.rows, largest.tokens, largest.pictures) == (3, 3 * longest, 3)
    assert output.digests.keys() == {"train", "validation", "alignment"}
    processor = load_processor(toy_model_dir, "pad")
    assert captions[0].num_tokens == encode(captions[0], processor, 512, "plain").full_length
    assert captions[0].num_tokens < encode(captions[0], processor, 512, "v1").full_length
    report = report_of(config)
    assert report.alignment is not None
    assert (report.alignment.train.samples, report.alignment.validation.samples) == (5, 0)
    page = config.volume.dataset_report_html.read_text()
    assert "Alignment dataset" in page
    assert "&lt;image&gt;<mark>A line." in page


def test_alignment_learns_from_one_image_with_one_caption(tmp_path: Path, toy_model_dir: Path):
    write_dataset(tmp_path, [conversation(name, pairs) for name, pairs in receipts()])
    draw_image(tmp_path / "captions" / "images" / "c.png", seed=50)
    bad = [caption("c.png", "A line."), conversation(None, [("Q", "A")]), conversation("c.png", [("Q", "A")] * 2)]
    _, *lines = refusal(alignment_config(tmp_path, toy_model_dir, bad))
    assert lines == [
        "captions.json[1]: has 0 pictures and 2 turns: alignment learns from one picture with one caption",
        "captions.json[2]: has 1 pictures and 4 turns: alignment learns from one picture with one caption",
    ]


def test_captions_of_held_out_images_are_told(tmp_path: Path, toy_model_dir: Path):
    write_dataset(tmp_path, [conversation(name, pairs) for name, pairs in receipts()])
    shutil.copytree(tmp_path / "dataset" / "images", tmp_path / "captions" / "images")
    config = alignment_config(tmp_path, toy_model_dir, [caption(f"{index:03}.png", "A.") for index in range(12)])
    run(config)
    report = report_of(config)
    assert report.alignment is not None
    (note,) = [note for note in report.alignment.notes if note.kind == "alignment_overlap"]
    held_out = {sample.images[0] for sample in both_sides(config)[1]}
    assert {told.message for told in note.examples} == {f"shows {path}" for path in held_out}


def test_captions_of_held_out_groups_are_told(tmp_path: Path, toy_model_dir: Path):
    grouped = zip(receipts(), GROUPED, strict=True)
    write_dataset(tmp_path, [conversation(name, pairs, group=group) for (name, pairs), group in grouped])
    for index in range(4):
        draw_image(tmp_path / "captions" / "images" / f"c{index}.png", seed=50 + index)
    captions = [{**caption(f"c{index}.png", "A line."), "group": f"patient-{index}"} for index in range(4)]
    config = alignment_config(tmp_path, toy_model_dir, captions)
    run(config)
    report = report_of(config)
    assert report.alignment is not None
    (note,) = [note for note in report.alignment.notes if note.kind == "alignment_overlap"]
    (held_out,) = {sample.group for sample in both_sides(config)[1]}
    assert [told.message for told in note.examples] == [f"shows c{held_out[-1]}.png, of group {held_out!r}"]


def test_what_is_found_does_not_depend_on_the_number_of_decoders(tmp_path: Path, toy_model_dir: Path):
    entries = [conversation(name, pairs) for name, pairs in receipts()]
    entries += [conversation("missing.png", [("Q", "A")]), conversation("003.png", [("Q", "")])]
    write_dataset(tmp_path, entries)
    config = prepare_config(tmp_path, toy_model_dir)
    processor = load_processor(toy_model_dir, "pad")
    reports = set()
    for num_decoders in (1, 2, 7):
        request = training_request(config)
        with prepare_dataset(request, processor, tmp_path / "spool", num_decoders=num_decoders) as dataset:
            lines = b"".join(dataset.lines(dataset.trained))
            reports.add((build_dataset_report(dataset).model_dump_json(), lines))
    assert len(reports) == 1


def test_images_beyond_the_person_s_limit_are_refused(tmp_path: Path, toy_model_dir: Path):
    write_dataset(tmp_path, [conversation(name, pairs) for name, pairs in receipts()])
    config = prepare_config(tmp_path, toy_model_dir, dataset={"limits": {"imagePixels": 150 * 60 - 1}})
    assert refusal(config)[1:] == [
        "export.json[11]: picture images/011.png is 150 x 60 px, more than dataset.limits.imagePixels 8,999: make it "
        "smaller"
    ]


def test_a_broken_validation_file_fails_the_run(tmp_path: Path, toy_model_dir: Path):
    write_dataset(tmp_path, [conversation(name, pairs) for name, pairs in receipts()])
    (tmp_path / "dataset" / "held.json").write_text("[\n{]")
    config = prepare_config(tmp_path, toy_model_dir, dataset={"validation": {"file": "held.json"}})
    assert refusal(config)[1].startswith("held.json: is not JSON: ")
    config = prepare_config(tmp_path, toy_model_dir, dataset={"validation": {"file": "other.json"}})
    assert refusal(config)[1] == (
        "other.json: does not exist (in pvc://receipts/, which holds export.json, held.json, images/): correct "
        "dataset.validation.file"
    )


def test_repeated_and_contradicting_pairs_are_told(tmp_path: Path, toy_model_dir: Path):
    entries = [conversation(f"{index:03}.png", [("Q?", "A")]) for index in range(6)]
    entries.append(conversation("000.png", [("Q?", "A")]))
    entries.append(conversation("000.png", [("Q?", "B")]))
    entries.append(conversation(None, [("Q?", "C")]))
    write_dataset(tmp_path, entries)
    config = prepare_config(tmp_path, toy_model_dir)
    run(config)
    notes = notes_of(config)
    assert notes["repeated_pair"] == [("export.json[6]", "'Q?'")]
    assert notes["contradiction"] == [("export.json[7]", "'Q?': 'A' and 'B'")]
    assert notes.keys() == {"repeated_pair", "contradiction", "too_few_groups"}


def test_many_findings_are_counted_and_the_first_hundred_told(tmp_path: Path, toy_model_dir: Path):
    entries = [conversation("000.png", [("Q?", "A")]) for _ in range(130)]
    write_dataset(tmp_path, [*entries, conversation("001.png", [("Q?", "A")])])
    config = prepare_config(tmp_path, toy_model_dir)
    run(config)
    note = next(note for note in report_of(config).notes if note.kind == "repeated_pair")
    assert note.count == 129
    assert [told.where for told in note.examples] == [f"export.json[{index}]" for index in range(1, 101)]
    page = config.volume.dataset_report_html.read_text()
    assert "Pairs that repeat another one on the same picture: 129" in page
    assert "and 79 more" in page


@pytest.mark.parametrize(("entries", "message"), [
    ([], "export.json: holds no sample"),
    ([conversation("000.png", [("Q", "A")]), conversation("000.png", [("R", "B")])],
     "export.json: every sample is about the same picture"),
    ("a", "export.json: must be a JSON list or JSON lines, not str"),
    ({"a": 1}, "export.json[0]: conversations is missing"),
])  # fmt: skip
def test_a_dataset_that_cannot_be_split_is_refused(entries: Any, message: str, tmp_path: Path, toy_model_dir: Path):
    write_dataset(tmp_path, entries)
    heading, line = refusal(prepare_config(tmp_path, toy_model_dir))
    assert heading == "1 entry of spec.dataset cannot be used:"
    assert line.startswith(message)


@pytest.mark.parametrize(("dataset", "message"), [
    ({"file": "missing.json"}, "missing.json: does not exist (in pvc://receipts/, which holds export.json, images/"),
    ({"file": "images"}, "images: is not a file (in pvc://receipts/, which holds"),
    ({"file": "../volume/x.json"}, "../volume/x.json: must be a path inside the dataset"),
    ({"file": "out.json"}, "out.json: leads outside the dataset through a symbolic link"),
    ({"format": "ubiai", "ubiai": {"documents": "map.json"}}, "export.json: dataset.ubiai.documents: map.json does"),
])  # fmt: skip
def test_files_that_are_not_there_are_named(dataset: Any, message: str, tmp_path: Path, toy_model_dir: Path):
    write_dataset(tmp_path, [conversation(name, pairs) for name, pairs in receipts()])
    write_json(tmp_path / "out.json", [])
    (tmp_path / "dataset" / "out.json").symlink_to(tmp_path / "out.json")
    assert refusal(prepare_config(tmp_path, toy_model_dir, dataset=dataset))[1].startswith(message)


def test_a_mapping_file_finds_the_images(tmp_path: Path, toy_model_dir: Path):
    write_dataset(tmp_path, [document(None, pairs) for _, pairs in receipts()])
    write_json(tmp_path / "dataset" / "map.json", {str(index): f"{index:03}.png" for index in range(12)})
    config = prepare_config(tmp_path, toy_model_dir, format="ubiai", dataset={"ubiai": {"documents": "map.json"}})
    assert run(config).numbers.images == 12


def test_images_of_prompts_are_checked_too(tmp_path: Path, toy_model_dir: Path):
    write_dataset(tmp_path, [conversation(name, pairs) for name, pairs in receipts()])
    prompts = [{"image": "000.png", "text": "What?"}, {"text": "Hello."}, {"image": "no.png", "text": "What?"}]
    config = prepare_config(tmp_path, toy_model_dir, evaluation={"prompts": prompts})
    assert refusal(config)[1:] == ["evaluation.prompts[2]: picture images/no.png does not exist"]


class Collector(HTMLParser):
    """Tags and addresses of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_holds_everything_and_escapes_what_people_wrote(tmp_path: Path, toy_model_dir: Path):
    evil = "<script>alert(1)</script> & \"quotes\" 'too'"
    entries = [conversation(name, [(evil, evil)]) for name, _ in receipts()]
    write_dataset(tmp_path, [*entries, conversation("<script>x.png", [("Q", "A")])])
    config = prepare_config(tmp_path, toy_model_dir)
    refusal(config)
    text = config.volume.dataset_report_html.read_text(encoding="utf-8")
    page = Collector()
    page.feed(text)
    assert "script" not in page.tags
    # Each as the tower gets it, and as it is.
    assert page.tags.count("img") == 24
    assert all(address.startswith("data:image/") for address in page.addresses if address != "refused.jsonl")
    assert page.tags.count("mark") == 12
    assert "<mark> &lt;script&gt;alert(1)" in text
    assert page.tags.count("rect") >= 1


def test_the_grid_shows_at_most_24_samples(tmp_path: Path, toy_model_dir: Path):
    write_dataset(tmp_path, [conversation(f"{index:03}.png", [("Q", "A")]) for index in range(40)], images=40)
    config = prepare_config(tmp_path, toy_model_dir)
    run(config)
    assert config.volume.dataset_report_html.read_text().count("<img ") == 2 * 24


def test_an_unusable_model_is_told_before_the_data_is_looked_at(tmp_path: Path, toy_model_dir: Path):
    model = Path(shutil.copytree(toy_model_dir, tmp_path / "model"))
    (model / "model.safetensors").unlink()
    (tmp_path / "dataset").mkdir()
    with pytest.raises(StageError, match=r"model\.safetensors") as caught:
        run(prepare_config(tmp_path, model))
    assert caught.value.reason is Reason.INVALID_MODEL


def build_chat(name: str, pairs: Any) -> dict[str, Any]:
    return chat(conversation(name, pairs), system="Be brief.")


def build_row(name: str, pairs: Any) -> dict[str, Any]:
    turns = [{"user": question, "assistant": [{"type": "text", "text": answer}]} for question, answer in pairs]
    return {"image": [{"path": name, "bytes": None}], "turns": turns, "references": ["9"], "group": name, "id": 1}


BUILD = {"llava": conversation, "messages": build_chat, "table": build_row, "ubiai": document}
COLUMNS = {"image": "image", "turns": "turns", "references": "references", "group": "group", "id": "id"}


def mutate(value: Any, rng: random.Random) -> Any:
    """``value`` with one random place replaced by something of another kind, or gone."""
    strange = (None, True, -1, 10**400, 1.5, float("nan"), "", "\ud800", "../x", "<image>", [], {}, [[]], {"a": None})
    if isinstance(value, list | dict) and value and rng.random() < 0.85:
        key = rng.choice(range(len(value)) if isinstance(value, list) else list(value))
        if rng.random() < 0.15:
            del value[key]
        else:
            value[key] = mutate(value[key], rng)
        return value
    return rng.choice(strange)


@pytest.mark.parametrize("format", BUILD)
def test_whatever_an_export_holds_it_is_accepted_or_said_why_not(format: str, tmp_path: Path, toy_processor: Processor):
    build = BUILD[format]
    table = {"table": COLUMNS} if format == "table" else {}
    request = training_request(prepare_config(tmp_path, toy_processor.model_dir, format=format, dataset=table))
    write_dataset(tmp_path, [])
    outcomes = set()
    for seed in range(80):
        rng = random.Random(seed)
        entries: Any = [build(name, pairs) for name, pairs in receipts(4)]
        for _ in range(rng.randint(1, 3)):
            entries = mutate(entries, rng)
        text = json.dumps(entries)
        if rng.random() < 0.2:
            text = text[: rng.randrange(len(text) + 1)] + rng.choice(["", "}", "\0", "[["])
        (tmp_path / "dataset" / "export.json").write_text(text)
        with prepare_dataset(request, toy_processor, tmp_path / "spool") as dataset:
            report = build_dataset_report(dataset)
            assert report.accepted or prepare.describe_refused(dataset.findings, "spec.dataset")
            assert len(dataset.samples) or not report.accepted
            if seed % 20 == 0:
                build_dataset_page("fuzz", [dataset], report)
        outcomes.add(report.accepted)
    assert outcomes == {True, False}


def test_histogram_bars_hold_every_length_once():
    lengths = [5, 5, 6, 90, 100]
    bars = build_histogram(lengths, num_bars=10)
    assert len(bars) <= 10
    assert [bar.samples for bar in bars if bar.samples] == [3, 1, 1]
    for length in lengths:
        assert sum(bar.from_tokens <= length < bar.to_tokens for bar in bars) == 1
    assert build_histogram([]) == ()
    assert [(bar.from_tokens, bar.to_tokens, bar.samples) for bar in build_histogram([7])] == [(7, 8, 1)]


def test_from_the_command_line(tmp_path: Path, toy_model_dir: Path):
    write_dataset(tmp_path, [conversation(name, pairs) for name, pairs in receipts()])
    config = prepare_config(tmp_path, toy_model_dir)
    (tmp_path / "run.json").write_text(config.model_dump_json())
    done = subprocess.run(
        [sys.executable, "-m", "llava_trainer.cli", "prepare", "--config", str(tmp_path / "run.json")],
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", ENV_TERMINATION_LOG: str(tmp_path / "result.json")},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = StageResult.model_validate_json((tmp_path / "result.json").read_text())
    assert (result.stage, result.attempt, result.failure) == (StageName.PREPARE, 1, None)
    assert result.prepare.images == 12
    log = (config.volume.log_dir(StageName.PREPARE, 1) / "rank-0.log").read_text()
    assert log in done.stdout
    assert "train.jsonl: " in log


def test_a_global_batch_by_the_data_is_chosen_told_and_measured_with(tmp_path: Path, toy_model_dir: Path):
    write_dataset(tmp_path, [conversation(name, pairs) for name, pairs in receipts()])
    batch = {"perDevice": 8, "global": "auto"}
    training = {"maxLength": 512, "epochs": 50, "batch": batch}
    config = prepare_config(tmp_path, toy_model_dir, training=training, workers={"processesPerNode": 2})
    numbers = run(config).numbers
    assert numbers.samples_train == 8
    # Two steps an epoch: 6 samples, three for each of the two processes, though it could hold eight.
    assert (numbers.global_batch, numbers.largest.rows) == (6, 3)
    report = report_of(config)
    assert report.global_batch.samples == 6
    assert report.global_batch.reason in html.unescape(config.volume.dataset_report_html.read_text())
    fixed = prepare_config(tmp_path, toy_model_dir, training={**training, "batch": {"perDevice": 8, "global": 16}})
    assert run(fixed).numbers.global_batch is None
    assert report_of(fixed).global_batch is None
