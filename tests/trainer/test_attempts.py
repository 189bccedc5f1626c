"""Attempts of one stage after another: what the next one takes over, and what it believes.

Whole stages in their frame, on a real volume. Pods that outlive their attempt are in ``test_outlived``.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llava_api.constants import ENV_COMPLETION_INDEX, ENV_POD_NAME, StageName
from llava_api.failures import Reason, exit_code_of
from llava_api.report import StageResult
from llava_api.run_config import RunConfig
from llava_trainer.attempts.finished import take_over_result
from llava_trainer.attempts.folder import Fence, claim_attempt
from llava_trainer.attempts.links import link_results
from llava_trainer.attempts.takeover import list_earlier, take_over
from llava_trainer.data.samples import read_samples
from llava_trainer.errors import StageError
from llava_trainer.files import make_folder, remove_folder, write_whole
from llava_trainer.outcome import ENV_TERMINATION_LOG, StageBody, StageOutput, run_stage
from llava_trainer.reporting import Reporter
from llava_trainer.stages import evaluate, merge, prepare
from tests.trainer.exports import conversation, draw_image, prepare_config, write_json
from tests.trainer.pods import Pod, list_contents
from tests.trainer.runs import make_run, run_config
from tests.trainer.test_outcome import NUMBERS
from tests.trainer.trainings import make_dataset, make_training

BODIES: dict[StageName, StageBody] = {
    StageName.PREPARE: prepare.run,
    StageName.MERGE: merge.run,
    StageName.EVALUATE: evaluate.run,
}
Run = Callable[..., tuple[int, StageResult]]


def attempt_of(config: RunConfig, number: int) -> RunConfig:
    return config.model_copy(update={"run": config.run.model_copy(update={"attempt": number})})


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a stage in its frame, by its own body unless another is given; exit code and result."""

    def run(config: RunConfig, body: StageBody | None = None, *, pod: str = "") -> tuple[int, StageResult]:
        monkeypatch.setenv(ENV_POD_NAME, pod)
        monkeypatch.setenv(ENV_TERMINATION_LOG, str(tmp_path / "termination-log"))
        (tmp_path / "run.json").write_text(config.model_dump_json())
        code = run_stage(config.run.stage, tmp_path / "run.json", body or BODIES[config.run.stage])
        return code, StageResult.model_validate_json((tmp_path / "termination-log").read_text())

    return run


def must_not_run(config: RunConfig, reporter: Reporter) -> StageOutput:
    raise AssertionError("an earlier attempt had finished")


def make_prepare(root: Path) -> RunConfig:
    for number in range(4):
        draw_image(root / "dataset" / "images" / f"{number}.png", seed=number)
    entries = [conversation(f"{number}.png", [("What?", f"Number {number}.")]) for number in range(4)]
    write_json(root / "dataset" / "export.json", entries)
    return prepare_config(root, root / "base")


@pytest.fixture(params=[StageName.PREPARE, StageName.MERGE, StageName.EVALUATE])
def finished(request: pytest.FixtureRequest, tmp_path: Path, toy_model_dir: Path, run: Run) -> RunConfig:
    """A stage whose first attempt has finished."""
    stage: StageName = request.param
    if stage is StageName.PREPARE:
        (tmp_path / "base").symlink_to(toy_model_dir)
        config = make_prepare(tmp_path)
    else:
        config = make_run(tmp_path)
        if stage is StageName.EVALUATE:
            assert run(config)[0] == 0
            config = run_config(tmp_path, StageName.EVALUATE)
    assert run(config)[0] == 0
    return config


def test_what_an_attempt_had_finished_is_the_next_ones_result_at_once(finished: RunConfig, run: Run):
    """Its pod was gone before the operator looked, say."""
    own = finished.volume.attempt_dir(finished.run.stage, 1)
    contents = {name: digest for name, digest in list_contents(own).items() if name not in ("result.json", "claims")}
    first = StageResult.model_validate(json.loads((own / "result.json").read_text())["result"])
    code, result = run(attempt_of(finished, 2), must_not_run)
    assert (code, result) == (0, first.model_copy(update={"attempt": 2}))
    after = list_contents(finished.volume.attempt_dir(finished.run.stage, 2))
    for name, digest in contents.items():
        # What its pods had done, of which the result was made.
        if not name.startswith(("logs", "claims", "shards", "join")):
            assert after[name] == digest, name
    assert not own.exists()
    assert not [name for name in after if name.startswith("before")]
    # So does the one after that, whose predecessor did nothing itself.
    assert run(attempt_of(finished, 3), must_not_run)[1] == first.model_copy(update={"attempt": 3})


def test_inputs_that_a_finished_prepare_has_put_on_the_volume_are_found_where_they_are_now(
    tmp_path: Path, toy_model_dir: Path, run: Run
):
    (tmp_path / "base").symlink_to(toy_model_dir)
    config = make_prepare(tmp_path)
    own = config.volume.inputs_dir / "model"

    def make_model(config: RunConfig, reporter: Reporter) -> StageOutput:
        output = prepare.run(config, reporter)
        shutil.copytree(toy_model_dir, config.volume.model_dir)
        told = json.loads(config.volume.inputs_file.read_text()) | {"modelDir": "model"}
        write_whole(config.volume.inputs_file, json.dumps(told))
        return output

    assert run(config, make_model)[0] == 0
    assert own.is_dir()
    assert run(attempt_of(config, 2), must_not_run)[0] == 0
    later = run_config(tmp_path).model_copy(update={"results": {StageName.PREPARE: 2, StageName.TRAIN: 1}})
    seen: list[RunConfig] = []

    def look(config: RunConfig, reporter: Reporter) -> StageOutput:
        seen.append(config)
        raise StageError(Reason.INVALID_DATA, "seen enough")

    run(later, look)
    assert seen[0].model_dir == config.volume_root / "attempts" / "prepare-2" / "inputs" / "model"
    assert seen[0].dataset_dir == config.dataset_dir
    assert (seen[0].model_dir / "config.json").exists()


@pytest.mark.parametrize("how", ["flipped", "missing", "record cut off", "record of a failure"])
def test_a_finished_result_that_is_damaged_is_not_believed(
    finished: RunConfig, run: Run, how: str, caplog: pytest.LogCaptureFixture
):
    own = finished.volume.attempt_dir(finished.run.stage, 1)
    record = own / "result.json"
    expected = json.loads(record.read_text())["result"]["digests"]
    name = {StageName.PREPARE: "data/train.jsonl", StageName.MERGE: "merged/model.safetensors",
            StageName.EVALUATE: "evaluation/answers.jsonl"}[finished.run.stage]  # fmt: skip
    if how == "flipped":
        content = bytearray((own / name).read_bytes())
        content[-2] ^= 1
        (own / name).write_bytes(content)
    elif how == "missing":
        (own / name).unlink()
    elif how == "record cut off":
        record.write_bytes(record.read_bytes()[:-30])
    else:
        told = json.loads(record.read_text())
        told["result"]["failure"] = {"reason": "InternalError", "message": "?"}
        record.write_text(json.dumps(told))
    done = []

    def body(config: RunConfig, reporter: Reporter) -> StageOutput:
        done.append(config.run.attempt)
        return BODIES[config.run.stage](config, reporter)

    caplog.set_level(logging.WARNING)
    code, result = run(attempt_of(finished, 2), body)
    assert (code, result.attempt, done) == (0, 2, [2])
    assert ("is not believed" in caplog.text) is (how in ("flipped", "missing"))
    assert ("cannot be read" in caplog.text) is (how == "record cut off")
    if finished.run.stage is not StageName.EVALUATE:
        # Evaluation tells when it was made.
        assert result.digests == expected
    if finished.run.stage is StageName.PREPARE:
        assert len(list(read_samples(attempt_of(finished, 2).volume.train_file))) == 3


def test_a_training_that_had_finished_ends_at_once_in_all_its_pods(tmp_path: Path, toy_model_dir: Path, port: int):
    samples = make_dataset(tmp_path / "dataset")[:16]
    config = make_training(
        tmp_path, toy_model_dir, samples, workers={"numNodes": 2, "rendezvousPort": port},
        training={"checkpoint": {"everySteps": 1, "keep": 1}},
    )  # fmt: skip
    shutil.rmtree(config.volume.attempt_dir(StageName.TRAIN, 1))
    results = []
    for number in (1, 2):
        again = attempt_of(config, number)
        with Pod(again, f"a-{number}") as first, Pod(again, f"b-{number}", node=1) as second:
            assert [pod.wait() for pod in (first, second)] == [0, 0], first.output
            results += [first.result, second.result]
            outputs = first.output + second.output
        assert ("step 2 of 2" in outputs) is (number == 1)
    assert [result.attempt for result in results] == [1, 1, 2, 2]
    assert len({str(result.digests) for result in results}) == len({str(result.train) for result in results}) == 1
    own = again.volume.attempt_dir(StageName.TRAIN, 2)
    assert (own / "checkpoints" / "step-00000001" / "manifest.json").exists()
    assert (own / "history.jsonl").exists()
    assert (config.volume_root / "adapter").resolve() == own / "adapter"


def test_a_folder_is_used_by_one_set_of_pods(tmp_path: Path, run: Run):
    config = prepare_config(tmp_path, tmp_path, run={"attempt": 2})
    ends: Callable[..., StageOutput] = lambda config, reporter: StageOutput(numbers=NUMBERS)  # noqa: E731

    def breaks_off(config: RunConfig, reporter: Reporter) -> StageOutput:
        raise StageError(Reason.INTERRUPTED, "drained")

    assert run(config, breaks_off, pod="a")[0] == 75
    contents = list_contents(config.volume_root)
    code, result = run(config, must_not_run, pod="b")
    assert (code, result.failure.reason) == (85, Reason.ATTEMPT_USED)
    assert result.failure.message.startswith(f"{config.volume.attempt_dir(StageName.PREPARE, 2)} was claimed by pod a")
    assert list_contents(config.volume_root) == contents
    # The same pod's container may start again, and the next attempt goes on.
    assert run(config, ends, pod="a")[0] == 0
    assert run(attempt_of(config, 3), must_not_run, pod="c")[0] == 0


def test_pods_of_other_ranks_have_claims_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = attempt_of(prepare_config(tmp_path, tmp_path), 2)
    for pod, rank in (("a", "0"), ("b", "1"), ("b", "1")):
        monkeypatch.setenv(ENV_POD_NAME, pod)
        monkeypatch.setenv(ENV_COMPLETION_INDEX, rank)
        claim_attempt(config)
    monkeypatch.setenv(ENV_COMPLETION_INDEX, "0")
    with pytest.raises(StageError, match="claimed by pod a, and this is b") as caught:
        claim_attempt(config)
    assert caught.value.reason is Reason.ATTEMPT_USED


def test_only_earlier_attempts_of_the_same_stage_are_taken_over(tmp_path: Path):
    config = run_config(tmp_path)
    attempts = config.volume.attempts_dir
    for name in ("merge-2", "merge-10", "align-2", "merge-x", "other"):
        (attempts / name).mkdir()
    later = attempt_of(config, 10)
    later_claims = attempts / "merge-10"
    claim_attempt(later)
    take_over(later)
    assert [path.name for path in list_earlier(later_claims)] == ["merge-2", "merge-1"]
    assert {path.name for path in attempts.iterdir()} >= {"merge-10", "align-2", "merge-x", "other", "train-1"}
    last = attempt_of(config, 11)
    claim_attempt(last)
    take_over(last)
    found = list_earlier(attempts / "merge-11")
    assert [path.name for path in found] == ["merge-10", "merge-2", "merge-1"]
    assert found[2] == attempts / "merge-11" / "before" / "merge-1"


def test_any_number_of_attempts_leaves_folders_beside_each_other(tmp_path: Path):
    """A run on nodes that come and go begins hundreds: folders in folders would end at what a path may hold."""
    config = run_config(tmp_path)
    for number in range(1, 301):
        config = attempt_of(config, number)
        claim_attempt(config)
        take_over(config)
    own = config.volume.attempt_dir(config.run.stage, 300)
    assert len(list_earlier(own)) == 299
    assert max(len(path.relative_to(own).parts) for path in list_earlier(own)) == 2


def test_an_attempt_counts_until_its_folder_is_taken_or_a_later_one_begins(tmp_path: Path):
    config = prepare_config(tmp_path, tmp_path)
    fence = Fence(config)
    fence.check()
    claim_attempt(attempt_of(config, 2))
    with pytest.raises(StageError, match="attempt 2 has begun") as caught:
        fence.check()
    assert caught.value.reason is Reason.SUPERSEDED
    take_over(attempt_of(config, 2))
    with pytest.raises(StageError, match="prepare-1 is gone"):
        fence.check()
    # What a library makes again by its path brings the attempt not back.
    config.volume.attempt_dir(StageName.PREPARE, 1).mkdir()
    with pytest.raises(StageError, match="is gone"):
        fence.check()
    with pytest.raises(StageError, match="attempt 2 has begun"):
        claim_attempt(config)


def test_nothing_can_be_made_where_an_attempt_was(tmp_path: Path):
    config = prepare_config(tmp_path, tmp_path)
    make_folder(config.volume.download_dir("model"))
    remove_folder(config.volume.attempt_dir(StageName.PREPARE, 1))
    for act in (
        lambda: make_folder(config.volume.download_dir("model")),
        lambda: make_folder(config.volume.attempt_dir(StageName.PREPARE, 1)),
        lambda: write_whole(config.volume.inputs_file, "{}"),
    ):
        with pytest.raises(FileNotFoundError, match="the attempt's folder is gone"):
            act()
    assert list(config.volume.attempts_dir.glob("prepare-*")) == []


def test_removing_a_folder_leaves_what_its_links_name(tmp_path: Path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("kept")
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "folder" / "file").write_text("x")
    remove_folder(tmp_path / "folder")
    assert list_contents(tmp_path) == list_contents(tmp_path) | {"kept": "folder"}
    assert (tmp_path / "kept" / "file").read_text() == "kept"
    assert not (tmp_path / "folder").exists()


def test_stable_names_show_what_counts(tmp_path: Path):
    config = run_config(tmp_path, StageName.EVALUATE)
    volume = config.volume
    for folder in ("prepare-1/data", "train-1/adapter", "train-2/adapter", "merge-1/merged", "evaluate-1/evaluation"):
        (volume.attempts_dir / folder).mkdir(parents=True)
    (volume.root / "merged").symlink_to("attempts/merge-0/merged")
    link_results(config)
    links = {path.name: str(path.readlink()) for path in volume.root.iterdir() if path.is_symlink()}
    assert links == {
        "data": "attempts/prepare-1/data", "adapter": "attempts/train-1/adapter", "merged": "attempts/merge-1/merged",
        "evaluation": "attempts/evaluate-1/evaluation",
    }  # fmt: skip
    # Which attempt of an earlier stage counts is the operator's to say.
    link_results(config.model_copy(update={"results": {**config.results, StageName.TRAIN: 2}}))
    assert str((volume.root / "adapter").readlink()) == "attempts/train-2/adapter"


def test_a_volume_without_links_goes_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    config = run_config(tmp_path)
    (config.volume.attempts_dir / "merge-1" / "merged").mkdir(parents=True)
    (config.volume_root / "merged").mkdir()
    (config.volume_root / "merged" / "file").write_text("of a person")
    link_results(config)
    assert "merged is not linked to what merge has made: " in caplog.text
    assert list_contents(config.volume_root)["merged/file"]
    shutil.rmtree(config.volume_root / "merged")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    link_results(config)
    assert "Operation not permitted" in caplog.text
    assert not [path for path in config.volume_root.iterdir() if path.name.endswith(".link")]


def test_an_attempt_that_was_stopped_while_it_linked_leaves_no_older_result_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = run_config(tmp_path)
    (config.volume.attempts_dir / "merge-1" / "merged").mkdir(parents=True)
    replace = Path.replace
    newer = config.volume.attempts_dir / "merge-2" / "merged"

    def replace_late(self: Path, target: Path) -> Path:
        if not newer.exists():
            newer.mkdir(parents=True)
            target.symlink_to("attempts/merge-2/merged")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replace_late)
    link_results(config)
    assert str((config.volume_root / "merged").readlink()) == "attempts/merge-2/merged"


def test_a_failed_prepare_shows_its_report(tmp_path: Path, toy_model_dir: Path, run: Run):
    (tmp_path / "base").symlink_to(toy_model_dir)
    config = make_prepare(tmp_path)
    (tmp_path / "dataset" / "images" / "2.png").write_bytes(b"no picture")
    assert run(config)[0] == exit_code_of(Reason.INVALID_DATA)
    assert "Refused: 1 entry" in (config.volume_root / "data" / "report.html").read_text()
    assert not (config.volume.attempt_dir(StageName.PREPARE, 1) / "result.json").exists()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"version": 1}, "version is 1, but merge needs version 2"),
        ({"results": {}}, "results.prepare is missing: merge must be told which attempt of prepare counts"),
        ({"results": {StageName.PREPARE: 1}}, "results.train is missing"),
    ],
)
def test_a_later_stage_must_be_told_which_results_count(tmp_path: Path, run: Run, fields: dict, told: str):
    config = run_config(tmp_path).model_copy(update=fields)
    code, result = run(config, must_not_run)
    assert (code, result.failure.reason) == (64, Reason.INVALID_CONFIG)
    assert told in result.failure.message
    if "version" in fields:
        assert "the operator is older than the trainer image; use the image of the operator's" in result.failure.message


def test_prepare_takes_the_first_version_and_reports_the_newest(tmp_path: Path, toy_model_dir: Path, run: Run):
    (tmp_path / "base").symlink_to(toy_model_dir)
    code, result = run(make_prepare(tmp_path).model_copy(update={"version": 1}))
    assert (code, result.prepare.config_version) == (0, 2)
    assert (tmp_path / "volume" / "attempts" / "prepare-1" / "data" / "train.jsonl").exists()


def test_a_result_whose_other_contents_are_damaged_is_not_believed(finished: RunConfig):
    later = attempt_of(finished, 2)
    claim_attempt(later)
    take_over(later)
    assert take_over_result(later, lambda folder: "a download is gone") is None
    assert take_over_result(later, lambda folder: None).attempt == 2
