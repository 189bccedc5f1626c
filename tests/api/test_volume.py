"""The volume's layout, and the versions of the run configuration that go with it."""

import json
from pathlib import Path

import pytest

from llava_api.constants import StageName
from llava_api.run_config import RunConfig
from llava_api.volume import STABLE_NAMES, MissingResultError, RunVolume, find_attempt_dir, parse_attempt
from tests.api.test_contract import make_config

ROOT = Path("/llava/run")


def test_results_lie_in_the_folders_of_the_attempts_that_count() -> None:
    volume = RunVolume(root=ROOT, results=dict(zip(StageName, range(1, 7), strict=True)))
    attempts = ROOT / "attempts"
    assert volume.train_file == attempts / "prepare-1/data/train.jsonl"
    assert volume.dataset_report_html == attempts / "prepare-1/data/report.html"
    assert volume.inputs_file == attempts / "prepare-1/inputs/inputs.json"
    assert volume.model_dir == attempts / "prepare-1/inputs/model"
    assert volume.download_dir("model") == attempts / "prepare-1/inputs/downloads/model"
    assert volume.projector_dir == attempts / "align-2/projector"
    assert (volume.adapter_dir, volume.weights_dir) == (attempts / "train-3/adapter", attempts / "train-3/weights")
    assert volume.merged_dir == attempts / "merge-4/merged"
    assert volume.report_file == attempts / "evaluate-5/evaluation/report.html"
    assert volume.publication_dir == attempts / "publish-6/publication"


def test_the_layout_of_older_images_stays() -> None:
    volume = RunVolume(root=ROOT)
    assert volume.train_file == ROOT / "data/train.jsonl"
    assert volume.inputs_file == ROOT / "inputs/inputs.json"
    assert volume.projector_dir == ROOT / "projector"
    assert (volume.adapter_dir, volume.merged_dir) == (ROOT / "adapter", ROOT / "merged")
    assert volume.metrics_file == ROOT / "evaluation/metrics.json"


def test_a_result_of_which_nobody_knows_who_made_it_has_no_path() -> None:
    with pytest.raises(MissingResultError, match="merge"):
        _ = RunVolume(root=ROOT, results={StageName.TRAIN: 1}).merged_dir


def test_people_find_every_result_under_a_name_at_the_root() -> None:
    assert STABLE_NAMES.keys() == set(StageName)
    volume = RunVolume(root=ROOT, results=dict.fromkeys(StageName, 1))
    folders = (volume.data_dir, volume.projector_dir, volume.adapter_dir, volume.weights_dir, volume.merged_dir,
               volume.evaluation_dir, volume.publication_dir)  # fmt: skip
    for folder in folders:
        stage, _ = parse_attempt(folder.parent.name)
        assert folder.name in STABLE_NAMES[stage]


@pytest.mark.parametrize(
    ("name", "parsed"),
    [("train-1", (StageName.TRAIN, 1)), ("evaluate-12", (StageName.EVALUATE, 12)), ("train-0", None),
     ("train-01", None), ("serve-1", None), ("train", None), ("train-1.old", None), ("xtrain-1", None)],
)  # fmt: skip
def test_names_of_attempts(name: str, parsed: tuple[StageName, int] | None) -> None:
    assert parse_attempt(name) == parsed


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("/llava/run/attempts/train-2", "/llava/run/attempts/train-2"),
        ("/llava/run/attempts/train-2/before/train-1/logs", "/llava/run/attempts/train-2"),
        ("/llava/run/attempts/prepare-1/inputs/attempts/train-1/x", "/llava/run/attempts/prepare-1"),
        ("/llava/run/attempts", None),
        ("/llava/run/adapter/train-2", None),
    ],
)
def test_the_attempt_that_a_path_belongs_to(path: str, folder: str | None) -> None:
    assert find_attempt_dir(Path(path)) == (folder and Path(folder))


def test_version_1_has_no_field_that_older_images_would_refuse() -> None:
    results = {StageName.PREPARE: 2}
    newest = make_config().model_copy(update={"results": results})
    assert json.loads(newest.model_dump_json())["results"] == {"prepare": 2}
    older = newest.model_copy(update={"version": 1})
    for written in (json.loads(older.model_dump_json()), older.model_dump(), older.model_dump(by_alias=True)):
        assert written["version"] == 1
        assert "results" not in written
    assert RunConfig.model_validate_json(older.model_dump_json()) == older.model_copy(update={"results": {}})


def test_a_stage_writes_into_its_own_attempt_whatever_else_counts() -> None:
    config = make_config().model_copy(update={"results": {StageName.PREPARE: 2, StageName.TRAIN: 9}})
    assert config.volume.adapter_dir == ROOT / "attempts/train-1/adapter"
    assert config.volume.train_file == ROOT / "attempts/prepare-2/data/train.jsonl"
