"""Proves that stages are configured, and artifacts named, as the image understands that a run began with."""

import json
from typing import Any

import pytest

from llava_api.constants import StageName
from llava_api.spec import MAX_MIXTURE
from llava_api.status import Status, Trainer
from llava_operator.build.common import Platform
from llava_operator.build.config import build_config_map
from llava_operator.deciding.results import take_result
from llava_operator.run import current_stage, parse_status
from tests.controller.makers import FROM_SCRATCH, RESULTS, make_attempt, make_run, walk

PLATFORM = Platform(trainer_image="registry/trainer:1", report_url="https://op-report.system.svc:8443/v1/progress")


def write_config(status: Status, stage: StageName, version: int | None = None, **spec: Any) -> dict[str, Any]:
    """What the ConfigMap of an attempt holds that was committed to with a version; none: by an older operator."""
    settings = {} if version is None else {"config_version": version}
    attempt = make_attempt(make_run(status, **spec), stage, 3, **settings)
    return json.loads(build_config_map(attempt, PLATFORM)["data"]["run.json"])


def with_trainer(status: Status, version: int | None) -> Status:
    return status.model_copy(update={"trainer": None if version is None else Trainer(config_version=version)})


def retried(status: Status, stage: StageName, attempt: int) -> Status:
    stages = [one.model_copy(update={"attempt": attempt}) if one.name is stage else one for one in status.stages]
    return status.model_copy(update={"stages": tuple(stages)})


@pytest.mark.parametrize("version", [None, 1, 2, 7])
def test_prepare_gets_the_version_that_every_image_understands(version: int | None) -> None:
    written = write_config(walk({}, StageName.PREPARE), StageName.PREPARE, version)
    assert written["version"] == 1
    assert "results" not in written


@pytest.mark.parametrize("version", [None, 1])
def test_an_older_image_gets_no_field_that_it_does_not_know(version: int | None) -> None:
    written = write_config(walk({}, StageName.MERGE), StageName.MERGE, version)
    assert written["version"] == 1
    assert "results" not in written


def test_an_image_gets_the_fields_of_a_format_only_where_they_are_set() -> None:
    written = write_config(walk({}, StageName.PREPARE), StageName.PREPARE)
    assert not {"messages", "table"} & written["dataset"].keys()
    written = write_config(walk(FROM_SCRATCH, StageName.PREPARE), StageName.PREPARE, **FROM_SCRATCH)
    assert not {"messages", "table"} & written["alignment"]["dataset"].keys()
    dataset = {"source": "pvc://data/", "format": "table", "file": "t.csv", "table": {"question": "q", "answer": "a"}}
    spec = {"dataset": dataset}
    written = write_config(walk(spec, StageName.PREPARE), StageName.PREPARE, **spec)
    assert (written["dataset"]["table"]["question"], "messages" in written["dataset"]) == ("q", False)


def test_an_image_gets_a_newer_setting_only_where_it_is_not_the_default() -> None:
    names = {"projector", "maxSteps", "minimumLearningRate", "optimizer", "visionTower"}
    # As the API server fills them in.
    defaults = {"projector": "train", "minimumLearningRate": 0.0, "optimizer": {"beta1": 0.9, "epsilon": 1e-8},
                "visionTower": {"mode": "frozen", "learningRate": 2e-6}}  # fmt: skip
    written = write_config(walk({}, StageName.TRAIN), StageName.TRAIN, 2, training=defaults)["training"]
    assert not names & written.keys()
    assert written["lora"].keys() == {"rank", "alpha", "dropout"}
    chosen = {
        "projector": "frozen", "maxSteps": 7, "minimumLearningRate": 1e-6, "optimizer": {"beta2": 0.95},
        "lora": {"targets": ["q_proj"], "rsLora": True}, "visionTower": {"mode": "full"},
    }  # fmt: skip
    written = write_config(walk({}, StageName.TRAIN), StageName.TRAIN, 2, training=chosen)["training"]
    assert (written["projector"], written["maxSteps"], written["minimumLearningRate"]) == ("frozen", 7, 1e-6)
    assert written["optimizer"]["beta2"] == 0.95
    assert written["visionTower"] == {"mode": "full", "learningRate": 2e-6}
    assert (written["lora"]["targets"], written["lora"]["rsLora"]) == (["q_proj"], True)


@pytest.mark.parametrize("version", [2, 7])
def test_an_image_that_knows_how_is_told_which_attempts_count(version: int) -> None:
    status = retried(walk(FROM_SCRATCH, StageName.MERGE), StageName.TRAIN, 4)
    written = write_config(status, StageName.MERGE, version, **FROM_SCRATCH)
    assert written["version"] == 2
    assert written["results"] == {"prepare": 1, "align": 1, "train": 4}


def test_what_prepare_says_of_the_image_is_kept() -> None:
    status = walk({}, StageName.PREPARE)
    old = RESULTS[StageName.PREPARE]
    assert status.trainer is not None
    image = status.trainer.image
    assert take_result(status, old).trainer == Trainer(image=image, config_version=1)
    new = old.model_copy(update={"prepare": old.prepare.model_copy(update={"config_version": 2})})
    taken = take_result(status, new)
    assert taken.trainer == Trainer(image=image, config_version=2)
    kept = parse_status({"status": json.loads(taken.model_dump_json(exclude_none=True))})
    assert kept.trainer == taken.trainer


@pytest.mark.parametrize(
    ("stage", "field", "path", "old_path"),
    [
        ("prepare", "dataset_report", "attempts/prepare-3/data/report.html", "data/report.html"),
        ("align", "projector", "attempts/align-3/projector", "projector"),
        ("train", "adapter", "attempts/train-3/adapter", "adapter"),
        ("merge", "merged", "attempts/merge-3/merged", "merged"),
        ("evaluate", "report", "attempts/evaluate-3/evaluation/report.html", "evaluation/report.html"),
    ],
)
def test_artifacts_are_named_where_the_image_puts_them(stage: str, field: str, path: str, old_path: str) -> None:
    name = StageName(stage)
    status = walk(FROM_SCRATCH, name)
    assert current_stage(status).name is name
    for version, expected in ((2, path), (1, old_path)):
        result = RESULTS[name]
        if name is StageName.PREPARE:
            result = result.model_copy(
                update={"prepare": result.prepare.model_copy(update={"config_version": version})}
            )
        taken = take_result(retried(with_trainer(status, version), name, 3), result)
        assert getattr(taken.artifacts, field) == expected


def test_weights_are_named_in_their_attempt_too() -> None:
    status = with_trainer(walk({}, StageName.TRAIN), 2)
    taken = take_result(status, RESULTS[StageName.TRAIN].model_copy(update={"digests": {"weights": "w"}}))
    assert (taken.artifacts.adapter, taken.artifacts.weights) == (None, "attempts/train-1/weights")


def test_attempts_are_committed_to_with_the_version_that_prepare_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    new = RESULTS[StageName.PREPARE]
    new = new.model_copy(update={"prepare": new.prepare.model_copy(update={"config_version": 2})})
    monkeypatch.setitem(RESULTS, StageName.PREPARE, new)
    status = walk({}, StageName.TRAIN)
    versions = {
        stage.name: [one.settings.config_version for one in stage.attempts] for stage in status.stages if stage.attempts
    }
    assert versions == {StageName.PREPARE: [1], StageName.TRAIN: [2]}


def test_the_digests_of_a_run_with_everything_fit_into_its_status() -> None:
    status = walk({})
    made = {
        StageName.PREPARE: (
            "train",
            "validation",
            "selection",
            "alignment",
            "retention",
            *(f"mixture-{n}" for n in range(MAX_MIXTURE)),
        ),
        StageName.ALIGN: ("projector",),
        StageName.TRAIN: ("adapter",),
        StageName.MERGE: ("merged",),
        StageName.EVALUATE: ("report", "metrics"),
    }
    for stage, names in made.items():
        digests = dict.fromkeys(names, "sha256:" + "0" * 64)
        status = take_result(status, RESULTS[stage].model_copy(update={"digests": digests}))
    assert status.artifacts is not None
    assert {name for names in made.values() for name in names} <= status.artifacts.digests.keys()
