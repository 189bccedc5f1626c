"""The sample file: what is written is what is read."""

from pathlib import Path

import pytest

from llava_trainer.data.samples import Sample, Source, Turn, read_samples, write_samples
from tests.trainer.test_template import make_sample

SAMPLES = [
    make_sample("Größe?", "漢字\n🙂", "\u2028?", "Ja."),
    make_sample("Hello.", "Hi.", image_turns=()),
    make_sample("Hello.", "Hi.", "What is this?", "A cat.", image_turns=(2,)),
]


def test_samples_come_back_as_they_were(tmp_path: Path):
    path = tmp_path / "data" / "train.jsonl"
    write_samples(path, SAMPLES)
    assert list(read_samples(path)) == SAMPLES
    assert len(path.read_bytes().splitlines()) == 3
    assert [entry.name for entry in path.parent.iterdir()] == ["train.jsonl"]


def test_what_an_interrupted_attempt_left_does_not_matter(tmp_path: Path):
    path = tmp_path / "train.jsonl"

    def interrupted():
        yield SAMPLES[0]
        raise KeyboardInterrupt

    write_samples(path, SAMPLES[:1])
    with pytest.raises(KeyboardInterrupt):
        write_samples(path, interrupted())
    assert list(read_samples(path)) == SAMPLES[:1]
    write_samples(path, SAMPLES)
    assert list(read_samples(path)) == SAMPLES


@pytest.mark.parametrize("line", ["", "{", "[]", '{"id": "x"}', "null"])
def test_a_damaged_line_is_named(line: str, tmp_path: Path):
    path = tmp_path / "train.jsonl"
    write_samples(path, SAMPLES[:1])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=r"train\.jsonl line 2 is not a sample"):
        list(read_samples(path))


def test_pairs_are_questions_with_what_was_said_before():
    sample = SAMPLES[2]
    assert list(sample.pairs()) == [((), *sample.turns[:2]), (sample.turns[:2], *sample.turns[2:])]
    assert sample.num_pairs == 2


def test_a_source_reads_as_file_and_index():
    assert str(Source(file="export.json", index=12)) == "export.json[12]"
    assert str(Source(file="export.json", index=12, part=".relations[0]")) == "export.json[12].relations[0]"


def test_sample_is_hashable_and_frozen():
    sample = SAMPLES[0]
    assert hash(sample)
    with pytest.raises(AttributeError):
        sample.id = "other"
    assert isinstance(sample, Sample)
    assert isinstance(sample.turns[0], Turn)
