"""Evaluation shared out to pods, in one process: the same answers however it is shared, and resumed where it can be."""

import multiprocessing
import shutil
from collections import Counter
from dataclasses import replace
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from llava_api.constants import ENV_COMPLETION_INDEX, ENV_INDEX_FAILURES, StageName
from llava_api.failures import Reason
from llava_api.run_config import RunConfig
from llava_trainer.attempts.folder import claim_attempt
from llava_trainer.attempts.shards import own_shard_dir, whole_shard_dir
from llava_trainer.errors import StageError
from llava_trainer.evaluation import answering_shard
from llava_trainer.evaluation.rows import Row
from llava_trainer.evaluation.scores import Metrics
from llava_trainer.evaluation.shard_file import ROWS_FILE
from llava_trainer.evaluation.shards import take_join
from llava_trainer.model import answering
from llava_trainer.model.answering import Answerer
from llava_trainer.outcome import StageOutput
from llava_trainer.stages import evaluate
from tests.trainer.attempts import begin
from tests.trainer.runs import Recorder, describe_run

NUM_ROWS = 45
SETTINGS = {"gpus": 0, "generation": {"maxNewTokens": 8}, "trainingSamples": 4, "prompts": [
    {"image": "tray-0001.png", "text": "Describe this image in detail."}, {"text": "Who are you?"},
]}  # fmt: skip


@pytest.fixture
def root(merged_root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(merged_root, tmp_path / "run"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many questions each batch has that a model really answers."""
    sizes: list[int] = []
    generate = Answerer._generate

    def count(self: Answerer, batch, *more, **named):
        sizes.append(len(batch.ids))
        return generate(self, batch, *more, **named)

    monkeypatch.setattr(Answerer, "_generate", count)
    return sizes


def configure(root: Path, *, replicas: int = 1, attempt: int = 1, **evaluation) -> RunConfig:
    settings = SETTINGS | evaluation | {"workers": {"replicas": replicas}}
    return describe_run(root, StageName.EVALUATE, evaluation=settings, run={"attempt": attempt})


class Pods:
    """Makes this process one pod after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def run(self, config: RunConfig, index: int = 0, failures: int = 0, steps: list | None = None) -> StageOutput:
        self._monkeypatch.setenv(ENV_COMPLETION_INDEX, str(index))
        self._monkeypatch.setenv(ENV_INDEX_FAILURES[0], str(failures))
        begin(config)
        with Recorder(config) as reporter:
            output = evaluate.run(config, reporter)
        if steps is not None:
            steps += reporter.steps
        return output


@pytest.fixture
def pods(monkeypatch: pytest.MonkeyPatch) -> Pods:
    return Pods(monkeypatch)


def read_rows(config: RunConfig) -> list[Row]:
    return [Row.model_validate_json(line) for line in config.volume.answers_file.read_text().splitlines()]


def read_metrics(config: RunConfig) -> Metrics:
    return Metrics.model_validate_json(config.volume.metrics_file.read_bytes())


@pytest.fixture(scope="module")
def expected(merged_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Of one pod, one question at a time."""
    root = Path(shutil.copytree(merged_root, tmp_path_factory.mktemp("alone") / "run"))
    config = configure(root)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(answering, "BATCH_ROWS", 1)
        Pods(monkeypatch).run(config)
    rows = read_rows(config)
    assert len(rows) == NUM_ROWS
    return rows


# --- the same answers


@pytest.mark.parametrize(("replicas", "rows"), [(1, 32), (3, 5)])
def test_answers_are_the_same_however_they_are_shared_and_batched(
    root: Path, pods: Pods, expected: list[Row], monkeypatch: pytest.MonkeyPatch, replicas: int, rows: int
) -> None:
    """In fp32 on a CPU; where two logits were close they might differ, and here none were."""
    monkeypatch.setattr(answering, "BATCH_ROWS", rows)
    config = configure(root, replicas=replicas)
    steps: list[tuple[int, int]] = []
    outputs = [pods.run(config, index, steps=steps) for index in reversed(range(replicas))]
    assert [output.numbers is None for output in outputs] == [True] * (replicas - 1) + [False]
    assert not any(row.is_close for row in expected)
    assert read_rows(config) == expected
    metrics = read_metrics(config)
    assert (metrics.workers, metrics.repeats) == (replicas, ())
    assert sum(total for done, total in steps if done == total) == NUM_ROWS, "each pod counts its own"


def test_pods_without_a_question_load_no_model(root: Path, pods: Pods, asked: list[int]) -> None:
    config = configure(root, replicas=4, prompts=[], trainingSamples=0)
    file = config.volume.validation_file
    file.write_text("".join(line for line in file.read_text().splitlines(keepends=True)[1:3]))
    outputs = []
    for index in (3, 1, 0, 2):
        before = len(asked)
        outputs.append(pods.run(config, index).numbers)
        assert (len(asked) > before) is (index < 2)
    assert [numbers is None for numbers in outputs] == [True, True, True, False]
    assert len(read_rows(config)) == 6


def test_what_is_cut_off_or_close_is_counted(root: Path, pods: Pods, expected: list[Row]) -> None:
    config = configure(root, generation={"maxNewTokens": 3})
    pods.run(config)
    counts = read_metrics(config).answers
    rows = read_rows(config)
    assert {(one.set, one.model, one.variant): one.answers for one in counts} == Counter(
        (row.set, row.model, row.variant) for row in expected
    )
    assert sum(one.cut for one in counts) == sum(row.is_cut for row in rows) > 0
    assert sum(one.close for one in counts) == 0


def test_each_question_is_asked_with_what_its_variant_says(root: Path, expected: list[Row]) -> None:
    kinds = Counter((row.set, row.model, row.variant) for row in expected)
    assert kinds == {
        ("validation", "base", "asked"): 9, ("validation", "tuned", "asked"): 9,
        ("validation", "base", "instructed"): 9,
        ("validation", "base", "alone"): 1, ("validation", "tuned", "alone"): 1,
        ("train", "base", "asked"): 4, ("train", "tuned", "asked"): 4, ("train", "base", "instructed"): 4,
        ("prompt", "base", "asked"): 2, ("prompt", "tuned", "asked"): 2,
    }  # fmt: skip
    by_kind = {(row.question_id, row.model, row.variant): row.answer for row in expected}
    differ = [key for key in by_kind if key[2] != "asked" and by_kind[key] != by_kind[key[0], key[1], "asked"]]
    assert len(differ) >= 10, "another prompt gets another answer of this base"


# --- going on


def cut(file: Path, num_rows: int, torn: int = 0) -> None:
    """Leave so many rows of a file, and some bytes of the next."""
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[: num_rows + 1]) + lines[num_rows + 1][:torn])


@pytest.mark.parametrize(
    ("num_rows", "next_attempt"), [(0, True), (1, False), (13, False), (27, True), (NUM_ROWS, False), (NUM_ROWS, True)]
)
def test_rows_that_are_there_are_not_answered_again(
    root: Path, pods: Pods, expected: list[Row], asked: list[int], num_rows: int, next_attempt: bool
) -> None:
    config = configure(root)
    pods.run(config)
    sizes, batches = asked.copy(), []
    for size in sizes:
        batches += [size] * size
    # As if the pod had been killed in between: nothing is in its place, half a line is there.
    own = own_shard_dir(config)
    whole_shard_dir(config, 0).rename(own / "taken")
    (own / "taken" / ROWS_FILE).rename(own / ROWS_FILE)
    shutil.rmtree(config.volume.evaluation_dir)
    shutil.rmtree(config.volume.attempt_dir(StageName.EVALUATE, 1) / "join")
    cut(own / ROWS_FILE, num_rows, torn=20)
    asked.clear()
    again = configure(root, attempt=2) if next_attempt else config
    steps: list[tuple[int, int]] = []
    assert pods.run(again, failures=0 if next_attempt else 1, steps=steps).numbers is not None
    whole, done = 0, 0
    while done + sizes[whole] <= num_rows if whole < len(sizes) else False:
        done += sizes[whole]
        whole += 1
    assert asked == sizes[whole:], "batches of which a row is missing are answered as they were"
    assert read_rows(again) == expected
    assert steps[-1] == (NUM_ROWS, NUM_ROWS)


@pytest.mark.parametrize(
    "change", ["weights of the tuned model", "new tokens", "a question", "an image", "the adapter's base"]
)
def test_rows_of_other_inputs_are_answered_again(root: Path, pods: Pods, asked: list[int], change: str) -> None:
    config = configure(root)
    pods.run(config)
    num_asked = len(asked)
    asked.clear()
    changed: dict = {}
    data = config.volume.data_dir / "validation.jsonl"
    if change == "weights of the tuned model":
        (config.volume.merged_dir / "model.safetensors").touch()
    elif change == "the adapter's base":
        (root / "base" / "config.json").touch()
    elif change == "new tokens":
        changed = {"generation": {"maxNewTokens": 9}}
    elif change == "a question":
        data.write_text(data.read_text().replace("?", "??", 1))
    else:
        (root / "data" / "images" / "tray-0003.png").touch()
    pods.run(configure(root, attempt=2, **changed))
    assert len(asked) == num_asked


def test_a_pod_whose_index_is_whole_answers_nothing(root: Path, pods: Pods, asked: list[int]) -> None:
    """Its success may have been lost with its node; whoever has joined joins again."""
    config = configure(root, replicas=2)
    assert pods.run(config, 0).numbers is None
    num = len(asked)
    assert pods.run(config, 0, failures=1).numbers is None
    assert len(asked) == num
    numbers = pods.run(config, 1).numbers
    num = len(asked)
    assert pods.run(config, 0, failures=2).numbers is None, "another index joins"
    rows = read_rows(config)
    assert pods.run(config, 1, failures=1).numbers == numbers
    assert len(asked) == num
    assert read_rows(config) == rows


# --- joining


def write_wrong(config: RunConfig, edit) -> None:
    """Change the rows of a whole shard, with a last line that fits them."""
    from llava_trainer.evaluation.shard_file import ShardWriter, read_whole_shard

    file = whole_shard_dir(config, 0) / ROWS_FILE
    shard = read_whole_shard(config.volume_root, file)
    rows = list(shard.rows)
    edit(rows)
    with ShardWriter(file, shard.inputs) as writer:
        writer.append(rows)
        writer.finish({}, ())


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda rows: rows.pop(0), r"the answer of base to question validation/\d/\d \(asked\) is missing"),
        (lambda rows: rows.append(rows[3]), r"the answer of base to question \S+ \(\w+\) is there twice"),
        (lambda rows: rows.append(rows[0].model_copy(update={"question_id": "validation/99/1"})),
         r"the answer of base to question validation/99/1 \(asked\) is of a question that is not asked"),
        (lambda rows: rows.append(rows[0].model_copy(update={"model": "bare"})), "of bare to .* is not asked"),
        (lambda rows: rows.__setitem__(0, rows[0].model_copy(update={"references": ("x",)})), "is not asked"),
    ],
)  # fmt: skip
def test_shards_are_only_joined_where_each_row_is_there_once(root: Path, pods: Pods, edit, message: str) -> None:
    config = configure(root, replicas=2)
    pods.run(config, 0)
    write_wrong(config, edit)
    with pytest.raises(StageError, match=message) as caught:
        pods.run(config, 1)
    assert caught.value.reason is Reason.INTERNAL_ERROR
    assert not config.volume.evaluation_dir.exists()


def test_a_damaged_shard_is_told_and_answered_again_in_the_next_attempt(
    root: Path, pods: Pods, expected: list[Row], asked: list[int]
) -> None:
    config = configure(root, replicas=2)
    pods.run(config, 0)
    file = whole_shard_dir(config, 0) / ROWS_FILE
    num_first, content = sum(asked), bytearray(file.read_bytes())
    content[-3000] = 0
    file.write_bytes(content)
    with pytest.raises(
        StageError, match=r"a shard of the evaluation was damaged after it was written: .*rows.jsonl line"
    ):
        pods.run(config, 1)
    num_both = sum(asked)
    asked.clear()
    again = configure(root, replicas=2, attempt=2)
    assert [pods.run(again, index).numbers is None for index in (1, 0)] == [True, False]
    assert 0 < sum(asked) < num_first < num_both == NUM_ROWS
    assert read_rows(again) == expected


def join_at_once(config: RunConfig, index: int, barrier: Barrier, told: Queue) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv(ENV_COMPLETION_INDEX, str(index))
        claim_attempt(config)
        barrier.wait()
        told.put((index, take_join(config)))


def test_of_pods_that_see_all_shards_whole_at_the_same_time_one_joins(tmp_path: Path) -> None:
    num, spawn = 4, multiprocessing.get_context("fork")
    for attempt in range(1, 6):
        config = configure(tmp_path, replicas=num, attempt=attempt)
        for index in range(num):
            file = whole_shard_dir(config, index) / ROWS_FILE
            file.parent.mkdir(parents=True)
            file.touch()
        barrier, told = spawn.Barrier(num), spawn.Queue()
        processes = [spawn.Process(target=join_at_once, args=(config, index, barrier, told)) for index in range(num)]
        for process in processes:
            process.start()
        found = dict(told.get(timeout=60) for _ in range(num))
        for process in processes:
            process.join()
        assert sorted(found.values()) == [False] * (num - 1) + [True]


# --- where answers depend on the batch


def test_how_many_answers_change_one_by_one_is_told(root: Path, pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantised weights, or a GPU: then a few questions are asked again, of each model the same."""
    monkeypatch.setattr(answering_shard, "MOST_REPEATED", 3)
    alone: list[str] = []
    answer = Answerer.answer_batch

    def change_every_second(self: Answerer, prompts, max_new_tokens: int):
        told = answer(self, prompts, max_new_tokens)
        alone.append(told[0].text)
        return [replace(told[0], text="changed")] if len(alone) % 2 else told

    monkeypatch.setattr(Answerer, "answer_batch", change_every_second)
    config = configure(root, replicas=2, generation={"maxNewTokens": 8, "load": "4bit"})
    for index in range(2):
        pods.run(config, index)
    metrics = read_metrics(config)
    assert [(one.model, one.asked) for one in metrics.repeats] == [("base", 6), ("tuned", 6)]
    assert len(alone) == 12
    assert sum(one.changed for one in metrics.repeats) >= 6
    assert "language model in 4 bits (NF4), base and tuned alike" in config.volume.report_file.read_text()


def test_what_is_asked_again_does_not_depend_on_the_rows_that_were_left(
    root: Path, pods: Pods, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is counted again by whoever makes the file whole, from rows that it may not have made itself."""
    monkeypatch.setattr(answering_shard, "MOST_REPEATED", 3)
    told = []
    for attempt in (1, 2):
        asked.clear()
        config = configure(root, attempt=attempt, generation={"maxNewTokens": 8, "load": "8bit"})
        pods.run(config)
        told.append((read_rows(config), read_metrics(config).repeats))
    assert told[0] == told[1]
    assert asked == [1] * 6, "nothing else"
