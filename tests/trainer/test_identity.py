"""What makes two trainings the same one: what counts, and what an older image told nothing of."""

from types import SimpleNamespace
from typing import Any

import pytest

from llava_api.spec import Training
from llava_trainer.training.identity import _digest_recipe, told_by

BEFORE = {
    "d112be03872b5d40309a8427cfc3818fb6df5182caee0df4a443145ec3888b10": {},
    "9a5cab473fe082d15b64911061dbb2a5d1699bffb96a7ddea84993a4922e465d": {"validation": {"everySteps": 5}},
}
"""Digests that images of before there were projector, maxSteps, tracking and so on gave, by their settings."""


def digest(**training: Any) -> str:
    return _digest_recipe(SimpleNamespace(training=Training.model_validate(training)))  # type: ignore[arg-type]


@pytest.mark.parametrize("before", BEFORE)
def test_a_training_that_asks_for_nothing_new_is_the_same_as_an_older_images(before: str) -> None:
    assert digest(**BEFORE[before]) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"projector": "frozen"}, {"maxSteps": 7}, {"minimumLearningRate": 1e-5}, {"optimizer": {"beta2": 0.95}},
        {"visionTower": {"mode": "full"}}, {"lora": {"targets": ["q_proj"]}}, {"lora": {"rsLora": True}},
        {"learningRate": 1e-3}, {"keepBest": {}},
    ],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_what_changes_what_is_learned_counts(changes: dict[str, Any]) -> None:
    assert digest(**changes) != digest()


@pytest.mark.parametrize(
    "changes",
    [{"tracking": {"tensorboard": {}}}, {"maxRestarts": 7}, {"zero": {"stage": 3}}, {"checkpoint": {"keep": 9}}],
)
def test_what_only_keeps_and_shows_does_not(changes: dict[str, Any]) -> None:
    assert digest(**changes) == digest()
    assert digest(validation={"everySteps": 5, "answers": {}}) == digest(validation={"everySteps": 5})


def test_a_checkpoint_of_before_there_were_mixtures_is_of_none() -> None:
    assert told_by({"recipe": "r"}) == {"recipe": "r", "mixture": "none"}
    assert told_by({"mixture": "m"})["mixture"] == "m"
