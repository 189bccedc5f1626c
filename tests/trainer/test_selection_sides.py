"""Held-out samples that select a step are none of those that give the scores."""

from pathlib import Path
from typing import Any

import pytest

from llava_api.failures import Reason
from llava_api.run_config import RunConfig
from llava_trainer.data.dataset_report import DatasetReport
from llava_trainer.data.samples import read_samples
from llava_trainer.data.split import SplitError, choose_selecting
from llava_trainer.errors import StageError
from llava_trainer.stages import prepare
from tests.trainer.exports import conversation, prepare_config, write_json
from tests.trainer.test_prepare import Recorder, receipts, write_dataset

SELECTS = {"validation": {"everySteps": 5}, "keepBest": {"by": "exact"}}


def configure(root: Path, model_dir: Path, *, fraction: float | None, count: int = 30, **training: Any) -> RunConfig:
    write_dataset(root, [conversation(name, pairs) for name, pairs in receipts(count)], images=count)
    return prepare_config(root, model_dir, dataset={"validation": {"fraction": fraction}}, training=SELECTS | training)


def refusal(config: RunConfig) -> str:
    with pytest.raises(StageError) as caught:
        prepare.run(config, Recorder(config))
    assert caught.value.reason is Reason.INVALID_DATA
    return caught.value.message


@pytest.mark.parametrize(
    "sizes",
    [dict.fromkeys(range(8), 1), {n: n * n + 1 for n in range(11)}, {0: 1000, **dict.fromkeys(range(1, 9), 1)}],
    ids=["even", "skewed", "one is most of it"],
)
def test_each_side_has_four_groups_and_about_half_of_the_questions(sizes: dict[int, int]) -> None:
    chosen = choose_selecting(sizes, seed=1)
    assert chosen < set(sizes)
    assert min(len(chosen), len(sizes) - len(chosen)) >= 4
    assert choose_selecting(sizes, seed=1) == chosen
    assert abs(2 * sum(sizes[one] for one in chosen) - sum(sizes.values())) <= max(sizes.values())


def test_the_seed_decides_and_seven_groups_are_too_few() -> None:
    many = dict.fromkeys(range(40), 1)
    assert choose_selecting(many, seed=1) != choose_selecting(many, seed=2)
    with pytest.raises(SplitError, match=r"7 groups are held out, and training\.keepBest or earlyStopping needs 8"):
        choose_selecting(dict.fromkeys(range(7), 1), seed=1)


def test_prepare_writes_both_sides_and_tells_of_them(tmp_path: Path, toy_model_dir: Path) -> None:
    config = configure(tmp_path, toy_model_dir, fraction=0.4)
    output = prepare.run(config, Recorder(config))
    files = (config.volume.train_file, config.volume.validation_file, config.volume.selection_file)
    train, judging, selecting = ({sample.images[0] for sample in read_samples(file)} for file in files)
    assert (len(train), len(judging), len(selecting)) == (16, 7, 7)
    assert len(train | judging | selecting) == 30
    numbers = output.numbers
    assert (numbers.samples_validation, numbers.samples_selection, numbers.groups_selection) == (7, 7, 7)
    assert output.digests.keys() == {"train", "validation", "selection"}
    report = DatasetReport.model_validate_json(config.volume.dataset_report_json.read_text())
    assert report.selection is not None
    assert (report.validation.groups, report.selection.groups) == (7, 7)
    assert "To select a step by" in config.volume.dataset_report_html.read_text()
    without = configure(tmp_path, toy_model_dir, fraction=0.4, keepBest=None)
    assert prepare.run(without, Recorder(without)).numbers.samples_validation == 14


@pytest.mark.parametrize(
    ("fraction", "count", "fix"),
    [
        (0.1, 30, "set dataset.validation.fraction to 0.25"),
        (0.5, 12, "the dataset has 12 groups in all, so add others"),
    ],
)
def test_too_few_groups_are_refused_with_what_would_do(
    fraction: float, count: int, fix: str, tmp_path: Path, toy_model_dir: Path
) -> None:
    message = refusal(configure(tmp_path, toy_model_dir, fraction=fraction, count=count))
    assert "training.keepBest or earlyStopping needs 8 at least" in message
    assert fix in message
    assert "or leave keepBest and earlyStopping out" in message


def test_the_fraction_that_is_told_is_enough(tmp_path: Path, toy_model_dir: Path) -> None:
    config = configure(tmp_path, toy_model_dir, fraction=0.25)
    assert prepare.run(config, Recorder(config)).numbers.groups_selection == 4


def test_nothing_to_look_at_is_refused(tmp_path: Path, toy_model_dir: Path) -> None:
    config = configure(tmp_path, toy_model_dir, fraction=None, keepBest=None)
    assert "set dataset.validation.fraction or file, or leave training.validation out" in refusal(config)


def test_the_plan_knows_of_held_out_samples_that_are_longer(tmp_path: Path, toy_model_dir: Path) -> None:
    """They are looked at in micro-batches of as many rows as training's."""
    config = configure(tmp_path, toy_model_dir, fraction=0.4, keepBest=None)
    longest = max(sample.num_tokens for file in (config.volume.train_file, config.volume.validation_file)
                  for sample in _prepared(config, file))  # fmt: skip
    largest = prepare.run(config, Recorder(config)).numbers.largest
    assert largest is not None
    assert largest.tokens == config.training.batch.per_device * longest


def test_held_out_samples_do_not_make_packed_rows_shorter(tmp_path: Path, toy_model_dir: Path) -> None:
    """They stand in many rows of their own, and attention grows with the square of a row."""
    found = []
    for changes in ({"validation": None}, {}):
        config = configure(tmp_path, toy_model_dir, fraction=0.2, keepBest=None, packing=True, **changes)
        found.append(prepare.run(config, Recorder(config)).numbers.largest)
    without, beside = found
    assert without is not None
    assert beside is not None
    assert without.rows < config.training.batch.per_device
    held_out = list(read_samples(config.volume.validation_file))
    assert max(sample.num_tokens for sample in held_out) * config.training.batch.per_device < without.tokens
    assert (beside.rows, beside.tokens) == (without.rows, without.tokens)


def _prepared(config: RunConfig, file: Path) -> Any:
    if not file.exists():
        prepare.run(config, Recorder(config))
    return read_samples(file)


def test_many_groups_are_divided_at_once() -> None:
    """With sums made anew for each, half a million would take an hour."""
    sizes = {group: 1 + group % 7 for group in range(200_000)}
    assert len(choose_selecting(sizes, seed=1)) == 100_000


def test_groups_on_both_sides_are_those_that_judge(tmp_path: Path, toy_model_dir: Path) -> None:
    """What is told beside the scores is about the samples that they are of."""
    names = receipts(30)
    write_dataset(tmp_path, [conversation(name, pairs) | {"group": name} for name, pairs in names], images=30)
    held_out = [conversation(name, [(f"{q} Again?", a) for q, a in pairs]) | {"group": name} for name, pairs in names]
    write_json(tmp_path / "dataset" / "held-out.json", held_out)
    config = prepare_config(
        tmp_path, toy_model_dir, dataset={"validation": {"file": "held-out.json"}}, training=SELECTS
    )
    numbers = prepare.run(config, Recorder(config)).numbers
    assert numbers.groups_shared == numbers.groups_validation == 15
    assert numbers.pairs_shared == numbers.pairs_validation


def test_a_file_is_not_learned_from_and_held_out(tmp_path: Path, toy_model_dir: Path) -> None:
    write_dataset(tmp_path, [conversation(name, pairs) for name, pairs in receipts(12)])
    write_json(tmp_path / "dataset" / "z.json", [conversation(name, pairs) for name, pairs in receipts(2)])
    dataset = {"file": "*.json", "validation": {"file": "z.json"}}
    config = prepare_config(tmp_path, toy_model_dir, dataset=dataset, training={"validation": None})
    assert "z.json: is one of the files of dataset.file, too: correct dataset.file or" in refusal(config)
