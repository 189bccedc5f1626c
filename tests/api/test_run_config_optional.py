"""What is newer than an image is written only where it is set."""

import json
from pathlib import Path
from typing import Any

import pytest

from llava_api.run_config import RunConfig

CONFIG = """{
    "run": {"namespace": "a", "name": "b", "uid": "c", "stage": "evaluate", "attempt": 1},
    "volumeRoot": "/run", "modelDir": "/model", "datasetDir": "/data",
    "dataset": {"source": "pvc://a/", "format": "llava", "file": "a.json"},
    "training": {}, "workers": {}, "merge": {}
}"""


FIELDS: dict[str, Any] = {
    "run": {"namespace": "a", "name": "b", "uid": "c", "stage": "train", "attempt": 1},
    "volumeRoot": Path("/run"),
    "modelDir": Path("/model"),
    "datasetDir": Path("/data"),
    "dataset": {"source": "pvc://a/", "format": "llava", "file": "a.json"},
    "training": {},
    "workers": {},
    "merge": {},
    "evaluation": {},
}


def written(validation: dict[str, Any] | None, **training: Any) -> dict[str, Any]:
    config = RunConfig.model_validate(FIELDS | {"training": {"validation": validation, **training}})
    fields: dict[str, Any] = config.model_dump(mode="json")["training"]
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    return fields


def test_answers_are_written_where_they_are_asked_for() -> None:
    assert "validation" not in written(None)
    assert written({"everySteps": 5})["validation"] == {"everySteps": 5, "samples": 256}
    assert "tracking" not in written({"everySteps": 5})
    asked = written({"everySteps": 5, "answers": {}})["validation"]
    assert asked["answers"] == {"questions": 4, "maxNewTokens": 64}


@pytest.mark.parametrize("validation", [None, {"everySteps": 5}])
def test_nothing_of_it_is_written_where_it_is_not(validation: dict[str, Any] | None) -> None:
    assert "answers" not in str(written(validation))


@pytest.mark.parametrize("load", ["none", "8bit", "4bit"])
def test_how_models_are_loaded_to_answer_is_written_where_it_is_set(load: str) -> None:
    config = RunConfig.model_validate(FIELDS | {"evaluation": {"generation": {"load": load}}})
    told = config.model_dump(mode="json")["evaluation"]["generation"]
    assert told.get("load", "none") == load
    assert ("load" in told) is (load != "none")
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def evaluated(**evaluation: Any) -> dict[str, Any]:
    config = RunConfig.model_validate_json(json.dumps({**json.loads(CONFIG), "evaluation": evaluation}))
    fields: dict[str, Any] = config.model_dump(mode="json")["evaluation"]
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    return fields


def test_metrics_and_a_gate_are_written_where_they_are_asked_for() -> None:
    newer = {"metrics", "numberTolerance", "gate"}
    assert not newer & evaluated().keys()
    assert not newer & evaluated(metrics=["exact_match"], gate=None).keys()
    asked = evaluated(metrics=["anls"], gate={"minimumGain": 0.1})
    assert asked["metrics"] == ["anls"]
    assert asked["gate"] == {"metric": None, "minimumGain": 0.1, "use": "lowerBound"}
    assert "numberTolerance" not in asked


def test_a_tracker_is_written_where_it_is_asked_for() -> None:
    mlflow = {"url": "https://m.example", "experiment": "e"}
    assert "wandb" not in written(None, tracking={"mlflow": mlflow})["tracking"]
    assert written(None, tracking={"wandb": {"project": "p"}})["tracking"]["wandb"]["project"] == "p"
