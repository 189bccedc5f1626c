"""The retention set: prepared beside the dataset, kept from the mixture, asked of both models and judged."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from llava_api.constants import GateOutcome, StageName
from llava_api.report import PrepareNumbers
from llava_api.run_config import RunConfig
from llava_trainer.data.questions import Question
from llava_trainer.data.samples import Turn, read_samples
from llava_trainer.errors import StageError
from llava_trainer.evaluation.dealing import deal
from llava_trainer.evaluation.rows import Row
from llava_trainer.evaluation.scores import Metrics
from llava_trainer.files import sha256_file
from llava_trainer.stages import evaluate, prepare
from tests.trainer.runs import Recorder, describe_run, run_config
from tests.trainer.test_mixture import (
    conversation,
    draw_image,
    prepare_mixed,
    report_of,
    talk,
    write_json,
    write_main,
)

RETENTION: dict[str, Any] = {
    "dataset": {"source": "pvc://general/", "format": "llava", "images": "images", "file": "export.json"},
    "maximumLoss": 0.1,
}


def write_second(root: Path, entries: list[dict[str, Any]]) -> None:
    write_json(root / "second" / "export.json", entries)
    (root / "second" / "images").mkdir(exist_ok=True)


def prepare_with(root: Path, model_dir: Path, mixture: list[Any] = [], **retention: Any) -> RunConfig:  # noqa: B006
    return prepare_mixed(
        root, model_dir, mixture, evaluation={"gpus": 0, "retention": {**RETENTION, **retention}},
        retentionDir=root / "second",
    )  # fmt: skip


def run(config: RunConfig) -> PrepareNumbers:
    output = prepare.run(config, Recorder(config))
    assert isinstance(output.numbers, PrepareNumbers)
    file = config.volume.retention_file
    assert output.digests["retention"] == sha256_file(file)
    return output.numbers


# --- prepare


def test_it_is_checked_kept_and_reported_by_itself(tmp_path: Path, toy_model_dir: Path) -> None:
    write_main(tmp_path)
    write_second(tmp_path, [talk(str(n)) for n in range(12)])
    config = prepare_with(tmp_path, toy_model_dir)
    numbers = run(config)
    assert (numbers.samples_retention, numbers.retention_shared, numbers.samples_train) == (12, 0, 18)
    assert numbers.groups_retention == 12
    assert [sample.id for sample in read_samples(config.volume.retention_file)]
    report = report_of(config)
    assert report.retention is not None
    assert report.retention.train.samples == 12
    assert "Retention dataset" in config.volume.dataset_report_html.read_text()


def test_what_training_learns_from_is_told_and_counted(tmp_path: Path, toy_model_dir: Path) -> None:
    write_main(tmp_path)
    write_second(tmp_path, [conversation(f"copy-{n}.png", [("Describe it.", "A scan.")]) for n in range(24)])
    for index in range(24):
        draw_image(tmp_path / "second" / "images" / f"copy-{index}.png", seed=index)
    config = prepare_with(tmp_path, toy_model_dir)
    numbers = run(config)
    # What is held out is not learned from.
    assert numbers.retention_shared == numbers.samples_train == 18
    second = report_of(config).retention
    assert second is not None
    (note,) = [note for note in second.notes if note.kind == "retention_overlap"]
    assert note.count == 18
    assert note.examples[0].message.startswith("shows copy-")


def test_the_mixture_has_nothing_of_it(tmp_path: Path, toy_model_dir: Path) -> None:
    write_main(tmp_path)
    write_second(tmp_path, [talk(str(n)) for n in range(10)])
    config = prepare_with(tmp_path, toy_model_dir, [([talk(str(n)) for n in range(30)], 0.5)])
    numbers = run(config)
    assert numbers.samples_withheld == 10
    asked = {sample.turns[0].text for sample in read_samples(config.volume.retention_file)}
    assert not asked & {sample.turns[0].text for sample in read_samples(config.volume.mixture_file(0))}


def test_one_that_cannot_be_used_is_told_with_its_place(tmp_path: Path, toy_model_dir: Path) -> None:
    write_main(tmp_path)
    write_second(tmp_path, [conversation("none.png", [("Q?", "A")])])
    config = prepare_with(tmp_path, toy_model_dir)
    with pytest.raises(StageError, match=r"1 entry of spec\.evaluation\.retention\.dataset cannot be used"):
        prepare.run(config, Recorder(config))


# --- evaluation


@pytest.fixture(scope="module")
def root(merged_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose retention set is what it trains on."""
    root = Path(shutil.copytree(merged_root, tmp_path_factory.mktemp("retained") / "run"))
    config = describe_run(root, StageName.EVALUATE)
    shutil.copyfile(config.volume.train_file, config.volume.retention_file)
    return root


def evaluation_config(root: Path, **retention: Any) -> RunConfig:
    given = run_config(root, StageName.EVALUATE)
    dataset = {**RETENTION["dataset"], "images": given.dataset.images}
    second = {**RETENTION, "dataset": dataset, "maximumLoss": 0.2, **retention}
    settings = {"gpus": 0, "generation": {"maxNewTokens": 8}, "retention": second}
    return run_config(root, StageName.EVALUATE, evaluation=settings, retentionDir=given.dataset_dir)


def test_both_models_are_asked_and_what_is_lost_is_judged(root: Path) -> None:
    config = evaluation_config(root)
    with Recorder(config) as reporter:
        output = evaluate.run(config, reporter)
    metrics = Metrics.model_validate_json(config.volume.metrics_file.read_bytes())
    (score,) = [one for one in metrics.scores if one.split == "retention"]
    assert score.samples == sum(sample.num_pairs for sample in read_samples(config.volume.retention_file))
    assert metrics.retention is not None
    # Neither knows anything, so that nothing is lost.
    assert metrics.retention.outcome is GateOutcome.PASSED
    assert metrics.retention.limit == -0.2
    assert output.numbers is not None
    assert output.numbers.retention == metrics.retention
    rows = [Row.model_validate_json(line) for line in config.volume.answers_file.read_text().splitlines()]
    assert {row.model for row in rows if row.set == "retention"} == {"base", "tuned"}
    assert "retention" in config.volume.report_file.read_text().lower()


def test_pictures_of_the_same_name_in_two_folders_are_two() -> None:
    """What is asked about the same images is one pod's, and these are not the same."""
    turns = (Turn(role="user", text="Q?"),)
    asked = [
        Question(set=of, place=0, sample="a", number=1, images=("a.png",), image_turns=(0,), turns=turns)
        for of in ("validation", "train", "retention")
    ]
    assert [[question.set for question in shard] for shard in deal(asked, 2)] == [
        ["validation", "train"],
        ["retention"],
    ]
