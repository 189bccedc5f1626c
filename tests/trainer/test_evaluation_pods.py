"""Evaluation by real processes that are killed at every place where it matters: the answers are those of one pod."""

import shutil
from pathlib import Path

import pytest

from llava_api.constants import StageName
from llava_api.run_config import RunConfig
from llava_trainer.evaluation.rows import Row
from llava_trainer.stages import evaluate
from tests.trainer.attempts import begin
from tests.trainer.pods import Pod
from tests.trainer.runs import Recorder, describe_run

SETTINGS = {"gpus": 0, "generation": {"maxNewTokens": 8}, "prompts": [{"text": "Who are you?"}]}
NUM_ROWS = 31


@pytest.fixture(scope="module")
def expected(merged_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    root = Path(shutil.copytree(merged_root, tmp_path_factory.mktemp("alone") / "run"))
    config = begin(configure(root))
    with Recorder(config) as reporter:
        evaluate.run(config, reporter)
    return read_rows(config)


@pytest.fixture
def root(merged_root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(merged_root, tmp_path / "run"))


def configure(root: Path, *, replicas: int = 1, attempt: int = 1) -> RunConfig:
    settings = SETTINGS | {"workers": {"replicas": replicas}}
    return describe_run(root, StageName.EVALUATE, evaluation=settings, run={"attempt": attempt})


def read_rows(config: RunConfig) -> list[Row]:
    return [Row.model_validate_json(line) for line in config.volume.answers_file.read_text().splitlines()]


def kill_before(config: RunConfig, name: str, failures: int, place: str) -> str:
    """Run a pod until it is about to do something, and kill it there; what it had logged."""
    with Pod(config, name, failures=failures, stop_before=place) as pod:
        pod.await_stop()
        pod.kill()
        return pod.output


def test_a_pod_may_be_killed_anywhere(root: Path, expected: list[Row]) -> None:
    """One after the other, over two attempts, each goes on from what the ones before have left."""
    first, second = configure(root), configure(root, attempt=2)
    assert "answers are there" not in kill_before(first, "a", 0, r"rows\.jsonl#3$")
    # Of a line that was being written half is there.
    left = first.volume.attempt_dir(StageName.EVALUATE, 1) / "shards" / "0" / "try-0" / "rows.jsonl"
    left.write_bytes(left.read_bytes()[:-30])
    found = kill_before(first, "b", 1, r"/whole/rows\.jsonl$")
    assert "answers are there from earlier pods" in found
    assert f"{NUM_ROWS} of {NUM_ROWS}" not in found
    everything = f"{NUM_ROWS} of {NUM_ROWS} answers are there from earlier pods"
    assert everything in kill_before(first, "c", 2, r"shards/0/whole$")
    assert everything in kill_before(second, "d", 0, r"evaluate-2/join$")
    whole = "shard 0 has been answered by an earlier pod"
    assert whole in kill_before(second, "e", 1, r"evaluate-2/evaluation$")
    assert whole in kill_before(second, "f", 2, r"evaluate-2/result\.json$")
    with Pod(second, "g", failures=3) as pod:
        assert pod.wait() == 0, pod.output
        assert pod.result.evaluate is not None
        assert whole in pod.output
        assert "the weights of" not in pod.output, "no model is loaded for what is there"
    assert read_rows(second) == expected
    assert len(expected) == NUM_ROWS


def test_one_of_two_pods_is_killed_and_the_answers_are_those_of_one(root: Path, expected: list[Row]) -> None:
    config = configure(root, replicas=2)
    kill_before(config, "a", 0, r"rows\.jsonl#2$")
    with Pod(config, "b", node=1) as other, Pod(config, "c", node=0, failures=1) as again:
        assert (other.wait(), again.wait()) == (0, 0), other.output + again.output
        told = [pod.result.evaluate for pod in (other, again) if pod.result.evaluate is not None]
    assert len(told) == 1, "one pod tells the scores"
    assert read_rows(config) == expected
