"""Memory while a dataset is prepared: bounded by the largest entry, and some hundred bytes for each sample."""

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from llava_trainer.data.check import MAX_SAMPLE_CHARACTERS, MAX_SAMPLE_IMAGES, Checker, Limits
from llava_trainer.data.dataset import PreparedDataset, prepare_dataset
from llava_trainer.data.findings import Findings
from llava_trainer.data.image_folder import ImageFolder
from llava_trainer.data.processor import Processor
from llava_trainer.data.request import training_request
from llava_trainer.data.samples import Sample, Source, Turn
from tests.trainer.exports import conversation, document, draw_image, prepare_config, write_json

MEGABYTE = 1_000_000


@pytest.fixture
def prepare(tmp_path: Path, toy_processor: Processor) -> Callable[[str], PreparedDataset]:
    """Prepares the export in ``tmp_path``/dataset; what is only imported or made once is in memory already."""

    def run(format: str) -> PreparedDataset:
        config = prepare_config(tmp_path, toy_processor.model_dir, format=format)
        return prepare_dataset(training_request(config), toy_processor, tmp_path / "spool")

    for index in range(2):
        draw_image(tmp_path / "dataset" / "images" / f"{index}.png", seed=index)
    write_json(tmp_path / "dataset" / "export.json", [conversation(f"{n}.png", [("Q", "A")]) for n in range(2)])
    with run("llava"):
        return run


def test_an_export_of_long_documents_takes_no_more_memory_than_one_of_them(
    tmp_path: Path, prepare: Callable[[str], PreparedDataset]
):
    text = "total amount of this invoice " * 7000
    with (tmp_path / "dataset" / "export.json").open("w") as stream:
        for index in range(150):
            entry = document(f"{index % 2}.png", [(f"What is {index}?", "9.00")], document=text)
            stream.write(write_json(tmp_path / "one.json", entry).read_text() + "\n")
    assert (tmp_path / "dataset" / "export.json").stat().st_size > 30 * MEGABYTE
    tracemalloc.start()
    with prepare("ubiai") as dataset:
        _, peak = tracemalloc.get_traced_memory()
        assert len(dataset.samples) == 150
    tracemalloc.stop()
    assert peak < 4 * MEGABYTE


def test_a_sample_with_an_image_of_its_own_takes_less_than_a_kilobyte(
    tmp_path: Path, prepare: Callable[[str], PreparedDataset]
):
    images = tmp_path / "dataset" / "images"
    answers = "many words to say " * 5
    kept = []
    for count in (100, 300):
        for index in range(count):
            Image.new("RGB", (8, 8), (index % 256, index // 256, 7)).save(images / f"{index}.bmp")
        write_json(
            tmp_path / "dataset" / "export.json",
            [conversation(f"{index}.bmp", [("What?", answers), ("Why?", answers)]) for index in range(count)],
        )
        tracemalloc.start()
        with prepare("llava") as dataset:
            kept.append(tracemalloc.get_traced_memory()[0])
            assert len(dataset.samples) == count
        tracemalloc.stop()
    assert (kept[1] - kept[0]) / 200 < 1000


def test_a_sample_beyond_every_length_limit_is_refused_before_it_is_tokenised(
    tmp_path: Path, prepare: Callable[[str], PreparedDataset]
):
    texts = ("word " * (MAX_SAMPLE_CHARACTERS // 5 + 1), "short")
    entries = [conversation(f"{index}.png", [("Q", text)]) for index, text in enumerate(texts)]
    write_json(tmp_path / "dataset" / "export.json", entries)
    with prepare("llava") as dataset:
        told = [str(finding) for finding in next(iter(dataset.findings.kept.values()))]
    assert told == ["export.json[0]: holds more than 1,048,576 characters: divide it"]


@pytest.mark.parametrize("name", ["id", "group", "question_type"])
def test_names_count_as_well(tmp_path: Path, prepare: Callable[[str], PreparedDataset], name: str):
    """A line of evaluation's rows has each of them, and may be 8 MiB long."""
    entries = [
        conversation("0.png", [("Q", "A")], **{name: "x" * MAX_SAMPLE_CHARACTERS}),
        conversation("1.png", [("Q", "A")]),
    ]
    write_json(tmp_path / "dataset" / "export.json", entries)
    with prepare("llava") as dataset:
        told = [str(finding) for finding in next(iter(dataset.findings.kept.values()))]
    assert told == ["export.json[0]: holds more than 1,048,576 characters: divide it"]


def test_a_sample_of_more_images_than_any_length_limit_is_refused_before_they_are_looked_at(
    tmp_path: Path, prepare: Callable[[str], PreparedDataset]
):
    count = MAX_SAMPLE_IMAGES + 1
    entry = conversation(None, [("<image>" * count, "A")], image=[f"none-{index}.png" for index in range(count)])
    write_json(tmp_path / "dataset" / "export.json", [entry, conversation("0.png", [("Q", "A")])])
    with prepare("llava") as dataset:
        told = [str(finding) for finding in next(iter(dataset.findings.kept.values()))]
    assert told[0] == "export.json[0]: shows more than 1,024 pictures: divide it"


def test_what_is_remembered_of_a_damaged_image_is_its_message(tmp_path: Path, toy_processor: Processor):
    image = Image.effect_noise((64, 64), 50)
    (tmp_path / "dataset" / "images").mkdir(parents=True)
    image.save(tmp_path / "dataset" / "images" / "0.png")
    whole = (tmp_path / "dataset" / "images" / "0.png").read_bytes()
    (tmp_path / "dataset" / "images" / "0.png").write_bytes(whole[:-500])
    folder = ImageFolder(root=tmp_path / "dataset", name="images")
    limits = Limits(max_length=512, max_pixels=10_000)
    checker = Checker(folder, toy_processor, limits, Findings())
    found = checker.find_image_problem("0.png")
    assert found is not None
    assert str(found).startswith("cannot be decoded")
    assert (found.__cause__, found.__context__, found.__traceback__) == (None, None, None)


def test_no_more_than_two_million_characters_are_read_ahead(tmp_path: Path, toy_processor: Processor):
    pulled = 0

    def read() -> Iterator[Sample]:
        nonlocal pulled
        for index in range(40):
            pulled += 1
            turns = (Turn(role="user", text="Q"), Turn(role="assistant", text="9.00 " * 40_000))
            yield Sample(id=str(index), images=(), turns=turns, source=Source(file="e", index=index))

    limits = Limits(max_length=512, max_pixels=10_000)
    checker = Checker(ImageFolder(root=tmp_path), toy_processor, limits, Findings())
    checked = checker.check_all(read())
    next(checked)
    assert pulled == 11
