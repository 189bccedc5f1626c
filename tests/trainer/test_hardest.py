"""Training samples with the highest loss: which they are, on how many processes, and after restarts."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llava_api.constants import StageName
from llava_api.run_config import RunConfig
from llava_trainer.data.processor import Processor, load_processor
from llava_trainer.data.sample_file import SampleFile, SampleSizes
from llava_trainer.data.samples import Sample, Turn
from llava_trainer.errors import StageError
from llava_trainer.files import remove_folder
from llava_trainer.gang.stopping import StopRequest
from llava_trainer.gang.world import World
from llava_trainer.model.loading import load_model
from llava_trainer.reporting import Reporter
from llava_trainer.training.batch_plan import BatchPlan
from llava_trainer.training.batches import BatchLoader
from llava_trainer.training.hardest import (
    KEPT,
    EpochLosses,
    HardestSamples,
    HardestState,
    SampleLoss,
    carry_over,
    read_hardest,
)
from llava_trainer.training.phase import phase_of
from llava_trainer.training.resuming import ResumePoint
from llava_trainer.training.step import sum_by_sample
from llava_trainer.training.train import _open_hardest, train
from tests.trainer.attempts import begin
from tests.trainer.many import run_in_processes
from tests.trainer.test_validation import look_at
from tests.trainer.trainings import StopAfter, make_dataset, make_training, plan_of, text_only

NUM_SAMPLES = 18
WRONG = 11
"""Number of the sample whose answer is of something else."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    folder = tmp_path_factory.mktemp("dataset")
    return folder, make_dataset(folder)


@pytest.fixture
def configure(tmp_path: Path, toy_model_dir: Path, dataset: tuple[Path, list[Sample]]):
    folder, drawn = dataset
    (tmp_path / "dataset").symlink_to(folder)
    samples = [*drawn[: NUM_SAMPLES - 2], *(text_only(sample) for sample in drawn[:2])]
    wrong = samples[WRONG]
    said = Turn(role="assistant", text="Zebras graze where no river ever was.")
    samples[WRONG] = Sample(
        id="wrong", images=wrong.images, image_turns=wrong.image_turns, turns=(wrong.turns[0], said),
        source=wrong.source,
    )  # fmt: skip

    def make(*, attempt: int = 1, **training: Any) -> RunConfig:
        own = {"batch": {"perDevice": 2, "global": 4}, "epochs": 3, "learningRate": 5e-3} | training
        return make_training(tmp_path, toy_model_dir, samples, attempt=attempt, training=own)

    return make


def run(world: World, config: RunConfig, stop: StopRequest | None = None) -> None:
    with Reporter(config) as reporter:
        train(config, world, reporter, stop or StopRequest())


def hardest(config: RunConfig) -> HardestState:
    found = read_hardest(config.volume.hardest_file(StageName.TRAIN, config.run.attempt))
    assert found is not None
    return found


def same(found: EpochLosses, expected: EpochLosses, *, within: float) -> None:
    assert [one.index for one in found.hardest] == [one.index for one in expected.hardest]
    assert [one.loss for one in found.hardest] == pytest.approx([one.loss for one in expected.hardest], abs=within)
    assert [(one.tokens, one.step) for one in found.hardest] == [(one.tokens, one.step) for one in expected.hardest]
    assert (found.epoch, found.seen) == (expected.epoch, expected.seen)


# --- which they are


def test_the_last_epoch_tells_and_the_wrong_answer_is_the_hardest(configure, world: World) -> None:
    config = configure()
    run(world, config)
    state = hardest(config)
    last = state.last
    assert last is not None
    assert (state.step, state.num_samples, last.epoch, last.seen) == (15, NUM_SAMPLES, 2, NUM_SAMPLES)
    assert last.hardest[0].index == WRONG
    assert sorted(one.index for one in last.hardest) == list(range(NUM_SAMPLES))
    assert all(before.loss >= after.loss for before, after in pairwise(last.hardest))
    assert {one.step for one in last.hardest} == set(range(11, 16))


def test_a_samples_loss_is_what_transformers_gives_it(
    configure, world: World, dataset: tuple[Path, list[Sample]]
) -> None:
    """The model has not learned yet, and one step goes through all samples."""
    for packing in (False, True):
        config = configure(attempt=1 + packing, epochs=1, batch={"perDevice": 3, "global": 18}, packing=packing)
        begin(config)
        run(world, config)
        processor: Processor = load_processor(config.model_dir, "pad")
        llava = load_model(config.model_dir, torch.float32, world.device, "sdpa")
        last = hardest(config).last
        assert last is not None
        with SampleFile(config.volume.train_file) as samples:
            for one in last.hardest:
                loss, tokens, _ = look_at(llava, samples[one.index], phase_of(config).images, processor)
                assert tokens == one.tokens
                assert one.loss == pytest.approx(loss / tokens, abs=1e-4)
        remove_folder(config.volume.attempt_dir(StageName.TRAIN, config.run.attempt))


@pytest.mark.parametrize(("processes", "stage"), [(2, 2), (2, 3)])
def test_the_same_on_two_processes(configure, world: World, processes: int, stage: int) -> None:
    alone = configure(attempt=1, zero={"stage": 2})
    run(world, alone)
    expected = hardest(alone).last
    remove_folder(alone.volume.root / "attempts" / "train-1")
    shared = configure(attempt=2, zero={"stage": stage})
    begin(shared)
    run_in_processes(processes, run, shared)
    found = hardest(shared).last
    assert expected is not None
    assert found is not None
    same(found, expected, within=1e-3)


@pytest.mark.parametrize("looks", [7, 11])
def test_they_survive_a_restart(configure, world: World, looks: int) -> None:
    """In the middle of an epoch, and at an epoch's end minus one."""
    whole = configure(attempt=1)
    run(world, whole)
    expected = hardest(whole)
    remove_folder(whole.volume.root / "attempts" / "train-1")
    stopped = configure(attempt=2)
    begin(stopped)
    with pytest.raises(StageError, match="Interrupted"):
        run(world, stopped, StopAfter(looks))
    assert hardest(stopped).step == looks
    resumed = configure(attempt=3)
    begin(resumed)
    run(world, resumed)
    assert hardest(resumed) == expected


def test_alignment_keeps_none(configure, world: World) -> None:
    """There is no report of captions."""
    config = configure()
    plan = plan_of(config, load_processor(config.model_dir, "pad"))
    phase = phase_of(config)
    assert _open_hardest(config, phase, plan, ResumePoint(), world) is not None
    assert _open_hardest(config, replace(phase, stage=StageName.ALIGN), plan, ResumePoint(), world) is None


# --- parts


def make_plan(num_samples: int = 100, global_batch: int = 10, world_size: int = 1) -> BatchPlan:
    ones = np.ones(num_samples, dtype=np.int64)
    sizes = SampleSizes(tokens=ones * 10, images=ones * 0, supervised=ones)
    return BatchPlan(sizes=sizes, global_batch=global_batch, per_device_batch=5, max_length=64, world_size=world_size,
                     epochs=3, seed=1, grouping="none")  # fmt: skip


def note_all(samples: HardestSamples, plan: BatchPlan, steps: range) -> None:
    """Each sample's loss is its number, in every epoch."""
    for step in steps:
        rank_batch = plan.rank_batch(step, 0)
        losses = [[2.0 * index, 2.0] for rows in rank_batch for row in rows for index in row]
        samples.note(step, rank_batch, np.array(losses))


def keep(samples: HardestSamples, step: int, world: World, file: Path) -> HardestState:
    samples.keep(step, world, lambda: None)
    state = read_hardest(file)
    assert state is not None
    return state


def test_only_so_many_are_kept(tmp_path: Path, world: World) -> None:
    plan, file = make_plan(), tmp_path / "hardest.json"
    samples = HardestSamples(plan, file)
    note_all(samples, plan, range(10))
    last = keep(samples, 10, world, file).last
    assert last is not None
    assert [one.index for one in last.hardest] == list(range(99, 99 - KEPT, -1))
    assert [one.loss for one in last.hardest] == [float(index) for index in range(99, 99 - KEPT, -1)]


def test_an_epoch_under_way_does_not_take_the_place_of_a_whole_one(tmp_path: Path, world: World) -> None:
    plan, file = make_plan(), tmp_path / "hardest.json"
    samples = HardestSamples(plan, file)
    begun = 0
    for until, epoch, seen in ((4, 0, 40), (10, 0, 100), (13, 0, 100), (20, 1, 100), (29, 1, 100), (30, 2, 100)):
        note_all(samples, plan, range(begun, until))
        begun = until
        last = keep(samples, until, world, file).last
        assert last is not None
        assert (last.epoch, last.seen) == (epoch, seen), until


def test_what_is_done_again_is_not_carried_over(tmp_path: Path, world: World) -> None:
    plan, file = make_plan(), tmp_path / "hardest.json"
    samples = HardestSamples(plan, file)
    note_all(samples, plan, range(17))
    keep(samples, 17, world, file)
    carried = carry_over(file, 14)
    assert [one.epoch for one in carried] == [0, 1]
    assert all(entry.step <= 14 for one in carried for entry in one.hardest)
    assert [one.epoch for one in carry_over(file, 10)] == [0]
    assert carry_over(file, 18) == (), "it does not know of all steps before"
    assert carry_over(tmp_path / "none.json", 3) == ()


def test_a_part_of_an_epoch_says_so(tmp_path: Path, world: World) -> None:
    """Where the file of the attempt before is lost, nothing is known of the steps before."""
    plan, file = make_plan(num_samples=95), tmp_path / "hardest.json"
    samples = HardestSamples(plan, file)
    note_all(samples, plan, range(7, 10))
    last = keep(samples, 10, world, file).last
    assert last is not None
    assert (last.first_step, last.seen) == (7, 25)


def test_a_fence_is_asked_before_it_is_written(tmp_path: Path, world: World) -> None:
    def refuse() -> None:
        raise StageError("Superseded", "another attempt")

    samples = HardestSamples(make_plan(), tmp_path / "hardest.json")
    with pytest.raises(StageError):
        samples.keep(0, world, refuse)
    assert not (tmp_path / "hardest.json").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"step": -1, "num_samples": 1, "epochs": []}',
        b'{"step": 1, "num_samples": 1, "epochs": [{"epoch": 0, "first_step": 0, "seen": 1, "hardest": '
        b'[{"loss": NaN, "index": 0, "tokens": 1, "step": 1}]}]}',
        b'{"step": 1, "num_samples": 1, "epochs": [' + b"1," * 1_000_000 + b"1]}",
    ],
    ids=["empty", "a list", "nothing", "no text", "deep", "negative", "no number", "large"],
)  # fmt: skip
def test_a_file_that_is_none_tells_nothing(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "hardest.json").write_bytes(content)
    assert read_hardest(tmp_path / "hardest.json") is None
    assert "does not tell which samples were the hardest" in caplog.text


def test_too_many_are_none_of_ours(tmp_path: Path) -> None:
    one = SampleLoss(loss=1.0, index=0, tokens=1, step=1)
    from pydantic import TypeAdapter

    state = HardestState(
        step=1, num_samples=1, epochs=(EpochLosses(epoch=0, first_step=0, seen=1, hardest=(one,) * 33),)
    )
    (tmp_path / "hardest.json").write_bytes(TypeAdapter(HardestState).dump_json(state))
    assert read_hardest(tmp_path / "hardest.json") is None


def test_losses_of_tokens_are_summed_by_sample() -> None:
    assert sum_by_sample([1.0, 2.0, 4.0, 8.0], [2, 0, 1, 1]).tolist() == [[3, 2], [0, 0], [4, 1], [8, 1]]
    assert sum_by_sample([], []).shape == (0, 2)
    assert sum_by_sample([], [0]).tolist() == [[0, 0]]


def test_a_samples_tokens_are_those_that_the_batch_learns(configure) -> None:
    for packing in (False, True):
        config = configure(attempt=1, packing=packing)
        processor = load_processor(config.model_dir, "pad")
        plan = plan_of(config, processor)
        with (
            SampleFile(config.volume.train_file) as samples,
            BatchLoader(
                samples, processor, images=phase_of(config).images, max_length=256, plan=plan, rank=0
            ) as loader,
        ):
            for step in range(plan.steps_per_epoch):
                for micro_batch in loader.load(step):
                    assert sum(micro_batch.supervised_each) == micro_batch.num_supervised
