"""metrics.json and its JSON schema."""

import json
from pathlib import Path

import jsonschema
import pytest

from llava_api.constants import GateOutcome
from llava_api.report import Judgement
from llava_trainer.evaluation.schema import FILE, build_metrics_schema
from llava_trainer.evaluation.scores import Metrics
from tests.trainer.report_pages import make_answer, make_metrics

ROOT = Path(__file__).parents[2]


def read_schema() -> dict:
    return json.loads((ROOT / FILE).read_text())


def test_the_schema_is_what_the_types_say() -> None:
    assert (ROOT / FILE).read_text() == build_metrics_schema(), "make generate"


def test_metrics_with_everything_in_them_fit_the_schema() -> None:
    answers = [make_answer(str(n), type="colour", instructed="maybe", alone="yes") for n in range(9)]
    gate = Judgement(
        outcome=GateOutcome.FAILED, metric="exact_match", gain=0.1, low=0.0, high=0.2, limit=0.3, samples=9, groups=9
    )
    for metrics in (make_metrics([]), make_metrics(answers, gate=gate, retention=gate, origins={"model": "hf://a"})):
        told = json.loads(metrics.model_dump_json())
        jsonschema.Draft202012Validator.check_schema(read_schema())
        jsonschema.validate(told, read_schema(), jsonschema.Draft202012Validator)
        assert Metrics.model_validate(told) == metrics
        # Of a later image.
        told["generation"]["further"] = 1
        jsonschema.validate(told, read_schema(), jsonschema.Draft202012Validator)


def test_what_does_not_fit_is_found() -> None:
    told = json.loads(make_metrics([make_answer("1")]).model_dump_json())
    told["scores"][0]["gain"] = "much"
    with pytest.raises(jsonschema.ValidationError, match="'much' is not of type 'number'"):
        jsonschema.validate(told, read_schema(), jsonschema.Draft202012Validator)
