"""The folders of evaluation's shards: pods of one index keep each other out, and those of several do not."""

import json
import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from llava_api.constants import ENV_COMPLETION_INDEX, ENV_INDEX_FAILURES, ENV_POD_NAME, StageName
from llava_api.failures import Reason
from llava_api.report import EvaluateNumbers, StageResult
from llava_api.run_config import RunConfig
from llava_trainer.attempts.finished import FindDamage, record_result, take_over_result
from llava_trainer.attempts.folder import Fence, claim_attempt
from llava_trainer.attempts.shards import list_left_files, own_shard_dir, publish_shard, whole_shard_dir
from llava_trainer.attempts.takeover import list_earlier, take_over
from llava_trainer.errors import StageError
from llava_trainer.files import make_folder, write_whole
from llava_trainer.outcome import stage_log_file
from tests.trainer.exports import prepare_config

ROWS = "rows.jsonl"
EVALUATE = StageName.EVALUATE
UNDAMAGED: FindDamage = lambda folder: None  # noqa: E731


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return attempt_of(prepare_config(tmp_path, tmp_path), 1)


def attempt_of(config: RunConfig, number: int) -> RunConfig:
    return config.model_copy(update={"run": config.run.model_copy(update={"stage": EVALUATE, "attempt": number})})


class Pods:
    """Makes this process one pod after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def be(self, name: str, index: int = 0, failures: str = "", ignored: str = "") -> None:
        for variable, value in (
            (ENV_POD_NAME, name), (ENV_COMPLETION_INDEX, str(index)),
            *zip(ENV_INDEX_FAILURES, (failures, ignored), strict=True),
        ):  # fmt: skip
            self._monkeypatch.setenv(variable, value)


@pytest.fixture
def pods(monkeypatch: pytest.MonkeyPatch) -> Pods:
    return Pods(monkeypatch)


def test_each_index_has_a_folder_of_its_own(config: RunConfig, pods: Pods):
    for index in (1, 0, 2):
        pods.be(f"pod-{index}", index, "0")
        claim_attempt(config)
        take_over(config)
        Fence(config).check()
    shards = config.volume.attempt_dir(EVALUATE, 1) / "shards"
    assert sorted(path.relative_to(shards).as_posix() for path in shards.glob("*/*")) == [
        "0/try-0",
        "1/try-0",
        "2/try-0",
    ]


def test_the_next_pod_of_an_index_takes_over_what_was_left(config: RunConfig, pods: Pods):
    """One that does not count (a drained one) is a pod before, too; the one before is out in every way."""
    pods.be("a", 3, "0")
    claim_attempt(config)
    old, fence = own_shard_dir(config), Fence(config)
    (old / ROWS).write_text("first\n")
    stream = (old / ROWS).open("a")
    pods.be("b", 3, "0", "1")
    claim_attempt(config)
    assert own_shard_dir(config).name == "try-1"
    assert [path.read_text() for path in list_left_files(config, ROWS)] == ["first\n"]
    (own_shard_dir(config) / ROWS).write_text("second\n")
    pods.be("c", 3, "1", "1")
    claim_attempt(config)
    assert [path.read_text() for path in list_left_files(config, ROWS)] == ["second\n", "first\n"]
    assert sorted(path.name for path in own_shard_dir(config).parent.iterdir()) == ["try-2"]
    Fence(config).check()
    # The first one goes on, by what it knows.
    pods.be("a", 3, "0")
    stream.write("late\n")
    stream.close()
    for act in (lambda: make_folder(old / "whole"), lambda: write_whole(old / "x", ""), lambda: (old / ROWS).open("a")):
        with pytest.raises(FileNotFoundError):
            act()
    for act in (fence.check, lambda: claim_attempt(config)):
        with pytest.raises(StageError) as caught:
            act()
        assert caught.value.reason is Reason.SUPERSEDED
    assert not old.exists()


def test_a_pod_that_begins_late_finds_its_place_taken(config: RunConfig, pods: Pods):
    """The container of a pod on a node that was cut off may start when the next one is at work."""
    pods.be("b", 0, "1")
    claim_attempt(config)
    pods.be("a", 0, "0")
    with pytest.raises(StageError, match=r"another pod has taken its place .*try-1") as caught:
        claim_attempt(config)
    assert caught.value.reason is Reason.SUPERSEDED


def test_a_folder_that_one_cut_off_has_made_again_is_in_nobodys_way(config: RunConfig, pods: Pods):
    """It had looked for later pods, and makes its folder when the next one has taken it over already."""
    pods.be("a", 0, "0")
    claim_attempt(config)
    old = own_shard_dir(config)
    (old / ROWS).write_text("first\n")
    pods.be("b", 0, "1")
    claim_attempt(config)
    old.mkdir()
    (old / "claim").write_text("a")
    pods.be("c", 0, "2")
    claim_attempt(config)
    assert sorted(path.name for path in own_shard_dir(config).parent.iterdir()) == ["try-2"]
    assert [path.read_text() for path in list_left_files(config, ROWS)] == ["first\n"]


@pytest.mark.parametrize("failures", ["0", "", "x", "9" * 10, "-1"])
def test_pods_that_nothing_tells_apart_leave_the_attempt_to_the_next(config: RunConfig, pods: Pods, failures: str):
    """Of a Job that was suspended and started again, and of one that was made by an older operator."""
    pods.be("a", 0, failures)
    claim_attempt(config)
    claim_attempt(config)
    pods.be("b", 0, failures)
    with pytest.raises(StageError, match="try-0 was claimed by pod a, and this is b") as caught:
        claim_attempt(config)
    assert caught.value.reason is Reason.ATTEMPT_USED


def test_what_is_whole_stays_whoever_comes_later(config: RunConfig, pods: Pods):
    pods.be("a", 1, "0")
    claim_attempt(config)
    _make_whole(config, "a")
    publish_shard(config, Fence(config))
    pods.be("b", 1, "1")
    claim_attempt(config)
    assert (whole_shard_dir(config, 1) / ROWS).read_text() == "a"
    _make_whole(config, "b")
    publish_shard(config, Fence(config))
    assert (whole_shard_dir(config, 1) / ROWS).read_text() == "a"
    assert not whole_shard_dir(config, 0).exists()


def test_a_pod_that_was_replaced_makes_nothing_whole(config: RunConfig, pods: Pods):
    pods.be("a", 0, "0")
    claim_attempt(config)
    _make_whole(config, "a")
    fence = Fence(config)
    pods.be("b", 0, "1")
    claim_attempt(config)
    pods.be("a", 0, "0")
    with pytest.raises((StageError, FileNotFoundError)):
        publish_shard(config, fence)
    assert not whole_shard_dir(config, 0).exists()


def _make_whole(config: RunConfig, rows: str) -> None:
    make_folder(own_shard_dir(config) / "whole")
    (own_shard_dir(config) / "whole" / ROWS).write_text(rows)


def test_the_next_attempt_finds_what_all_indexes_have_left(config: RunConfig, pods: Pods):
    """Whatever they were, whole or not, and however many pods the next one has."""
    for index, failures in ((0, "0"), (1, "0"), (1, "1")):
        pods.be(f"{index}-{failures}", index, failures)
        claim_attempt(config)
        (own_shard_dir(config) / ROWS).write_text(f"{index}-{failures}")
    pods.be("2-0", 2, "0")
    claim_attempt(config)
    _make_whole(config, "2-0")
    publish_shard(config, Fence(config))
    config = attempt_of(config, 2)
    pods.be("new", 0, "0")
    claim_attempt(config)
    take_over(config)
    assert [path.read_text() for path in list_left_files(config, ROWS)] == ["0-0", "1-1", "1-0", "2-0"]
    (own_shard_dir(config) / ROWS).write_text("new")
    config = attempt_of(config, 3)
    claim_attempt(config)
    take_over(config)
    assert [path.read_text() for path in list_left_files(config, ROWS)] == ["new", "0-0", "1-1", "1-0", "2-0"]


def test_an_attempt_that_was_given_up_ends_whichever_index(config: RunConfig, pods: Pods):
    pods.be("a", 4, "0")
    claim_attempt(config)
    fence = Fence(config)
    pods.be("b", 0, "0")
    claim_attempt(attempt_of(config, 2))
    take_over(attempt_of(config, 2))
    pods.be("a", 4, "0")
    with pytest.raises(StageError, match="try-0 is gone"):
        fence.check()
    with pytest.raises(FileNotFoundError):
        make_folder(own_shard_dir(config) / "whole")


def test_pods_of_all_indexes_take_over_at_the_same_time(config: RunConfig, pods: Pods):
    """Real processes: each finds everything in its place at the end, and none fails since another was quicker."""
    for number in range(1, 41):
        folder = config.volume.attempt_dir(EVALUATE, number)
        for before in range(1, number) if number % 5 == 0 else ():
            earlier = config.volume.attempt_dir(EVALUATE, before)
            if earlier.is_dir():
                (folder / "before").mkdir(parents=True, exist_ok=True)
                earlier.rename(folder / "before" / earlier.name)
        folder.mkdir(exist_ok=True)
    context = multiprocessing.get_context("fork")
    barrier, found = context.Barrier(8), context.Queue()
    processes = [
        context.Process(target=_take_over, args=(attempt_of(config, 41), index, barrier, found)) for index in range(8)
    ]
    for process in processes:
        process.start()
    everything = [f"evaluate-{number}" for number in range(40, 0, -1)]
    assert [found.get(timeout=60) for _ in processes] == [everything] * 8
    for process in processes:
        process.join()


def _take_over(config: RunConfig, index: int, barrier: Barrier, found: "multiprocessing.Queue[object]") -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        Pods(monkeypatch).be(f"pod-{index}", index, "0")
        claim_attempt(config)
        barrier.wait()
        try:
            take_over(config)
            found.put([path.name for path in list_earlier(config.volume.attempt_dir(EVALUATE, 41))])
        except Exception as error:
            found.put(repr(error))


def test_a_finished_result_is_taken_over_by_whichever_pod_comes(config: RunConfig, pods: Pods):
    pods.be("a", 1, "0")
    claim_attempt(config)
    folder = config.volume.attempt_dir(EVALUATE, 1) / "evaluation"
    folder.mkdir()
    (folder / "metrics.json").write_text("{}")
    result = StageResult(stage=EVALUATE, attempt=1, evaluate=EvaluateNumbers(scores=(), prompts=1))
    record_result(config, result)
    assert json.loads((config.volume.attempt_dir(EVALUATE, 1) / "result.json").read_text())["result"]["attempt"] == 1
    config = attempt_of(config, 2)
    for index in (1, 0):
        pods.be(f"b-{index}", index, "0")
        claim_attempt(config)
        take_over(config)
        assert take_over_result(config, UNDAMAGED) == result.model_copy(update={"attempt": 2})
    assert (config.volume.attempt_dir(EVALUATE, 2) / "evaluation" / "metrics.json").read_text() == "{}"


def test_each_pod_has_a_log_of_its_own(config: RunConfig, pods: Pods):
    names = []
    for index, failures in ((0, "0"), (3, "0"), (3, "2")):
        pods.be("a", index, failures)
        names.append(stage_log_file(config).name)
    assert names == ["rank-0.log", "rank-3.log", "rank-3-2.log"]
