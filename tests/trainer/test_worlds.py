"""What is learned does not depend on who shares the work: 1, 2 and 4 processes, every ZeRO stage, and restarts between.

Everything in fp32. The dataset's last batch is short, so that with 2 and 4 processes some have nothing to do in it, and
some of the samples show no image, so that processes go through the model in company of others that do.
"""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llava_api.constants import StageName
from llava_api.run_config import RunConfig
from llava_trainer.data.samples import Sample
from llava_trainer.errors import StageError
from llava_trainer.gang.stopping import StopRequest
from llava_trainer.gang.world import World
from llava_trainer.reporting import Reporter
from llava_trainer.training.curve import read_curve
from llava_trainer.training.retention import list_checkpoints
from llava_trainer.training.train import train
from tests.trainer.attempts import begin, taken_over
from tests.trainer.many import run_in_processes
from tests.trainer.trainings import StopAfter, StopWithin, make_dataset, make_training, text_only

STEPS = 6
TOLERANCE = 1e-5
"""Of the loss per token (between 5 and 7 here), absolute: sums in another order, through six steps."""
ADAPTER_TOLERANCE = 1e-4
"""Of its numbers; a step moves one by up to 1e-2."""
LONE_NUMBERS = 0.002
"""Of a tensor's numbers: so many may differ more. Adam divides a gradient by its own size, so that where it is next to
nothing its rounding decides; on some processors that is one number of 512 in one tensor (1.8e-4 off)."""
LONE_TOLERANCE = 5e-4
"""Of those."""
DROPOUT_BAND = 0.2
"""Of the loss per token, with a dropout of 0.1."""
DROPOUT = {"lora": {"rank": 4, "alpha": 8, "dropout": 0.1}}
STAGES: dict[str, dict[str, Any]] = {
    "0": {"stage": 0},
    "1": {"stage": 1},
    "2": {"stage": 2},
    "2, optimiser offloaded": {"stage": 2, "offload": {"optimizer": True}},
    "3": {"stage": 3},
    "3, all offloaded": {"stage": 3, "offload": {"optimizer": True, "parameters": True}},
}


def run_all(world: World, configs: list[tuple[RunConfig, int | StopRequest]]) -> None:
    """Train by each of ``configs``, up to the number of steps given with it, or until it is asked to stop."""
    for config, until in configs:
        if world.is_first:
            begin(config)
        try:
            train(config, world, Reporter(config), StopAfter(until) if isinstance(until, int) else until)
        except StageError as error:
            saved = until if isinstance(until, int) else 3
            if f"the checkpoint of step {saved} is on the volume" not in error.message:
                raise


@pytest.fixture(scope="module")
def configure(tmp_path_factory: pytest.TempPathFactory, toy_model_dir: Path):
    folder = tmp_path_factory.mktemp("worlds")
    samples: list[Sample] = make_dataset(folder / "dataset")[:14]
    samples += [text_only(sample) for sample in samples[:5]]
    plain = {"epochs": 2, "batch": {"perDevice": 2, "global": 8}, "warmupRatio": 0.0}

    def make(run: str, *, attempt: int = 1, **training: Any) -> RunConfig:
        root = folder / run
        if not root.exists():
            root.mkdir()
            (root / "dataset").symlink_to(folder / "dataset")
        return make_training(root, toy_model_dir, samples, attempt=attempt, training=plain | training)

    return make


def losses(config: RunConfig) -> list[float]:
    return [entry.loss for entry in read_curve(config.volume.history_file(config.run.stage, config.run.attempt))]


@pytest.fixture(scope="module")
def alone(configure, world: World) -> list[float]:
    """Losses of one rank without ZeRO's help."""
    config = configure("alone", zero={"stage": 0})
    run_all(world, [(config, STEPS)])
    assert len(losses(config)) == STEPS
    return losses(config)


@pytest.fixture(scope="module")
def in_two(configure) -> None:
    """Two processes: every stage from beginning to end, and two runs up to their second step."""
    straight = [(configure(f"stage {name}", zero=zero), STEPS) for name, zero in STAGES.items()]
    part_way = [
        (configure("moved", zero={"stage": 2}), 2),
        (configure("stopped under 3", zero={"stage": 3}), 2),
        (configure("moved, dropout", zero={"stage": 2}, **DROPOUT), 2),
        (configure("seen late", checkpoint={"everySteps": 2, "keep": 2}), 3),
        # The second process alone is asked, in the fourth step, when it has run one of two micro-batches.
        (configure("within a step", zero={"stage": 2}), StopWithin(3, micro_batches=0, rank=1)),
        (configure("within a step", attempt=2, zero={"stage": 2}), STEPS),
        (configure("straight, dropout", **DROPOUT), STEPS),
    ]
    run_in_processes(2, run_all, straight + part_way)


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def assert_same_adapter(folder: Path, expected: Path) -> None:
    tensors, others = adapter(folder), adapter(expected)
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        difference = (tensor - others[name]).abs()
        assert (difference > ADAPTER_TOLERANCE).float().mean() <= LONE_NUMBERS, name
        assert difference.max() <= LONE_TOLERANCE, name


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_learn_the_same_whatever_they_share_out(configure, alone, in_two, stage: str):
    config = configure(f"stage {stage}")
    assert losses(config) == pytest.approx(alone, abs=TOLERANCE)
    assert_same_adapter(config.volume.adapter_dir, configure("alone").volume.adapter_dir)


def test_what_can_be_served_of_a_checkpoint_is_whole_under_every_stage(configure, in_two):
    checkpoints = [
        list_checkpoints(configure(run).volume.checkpoints_dir(StageName.TRAIN, 1))[0]
        for run in ("stopped under 3", "moved")
    ]
    assert [folder.name for folder in checkpoints] == ["step-00000002"] * 2
    assert_same_adapter(*(folder / "adapter" for folder in checkpoints))


def test_processes_of_which_one_is_asked_to_stop_within_a_step_stop_together_and_lose_none(configure, alone, in_two):
    later = configure("within a step", attempt=2)
    checkpoints = taken_over(later, 1) / "checkpoints"
    assert [folder.name for folder in list_checkpoints(checkpoints)] == ["step-00000003"]
    assert losses(later) == pytest.approx(alone, abs=TOLERANCE)


def test_four_processes_learn_the_same(configure, alone):
    config = configure("in four", zero={"stage": 2})
    run_in_processes(4, run_all, [(config, STEPS)])
    assert losses(config) == pytest.approx(alone, abs=TOLERANCE)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_two_processes_teach_the_tower_the_same_under_every_stage_and_go_on_from_another(configure, world, method: str):
    """Some of them see no image in a step: their tower looks at a blank one, and has a gradient of zero."""
    learning = {"method": method, "learningRate": 1e-3, "visionTower": {"mode": "full", "learningRate": 1e-3}}
    alone = configure(f"{method} and tower", zero={"stage": 0}, **learning)
    run_all(world, [(alone, STEPS)])
    second, third = (
        configure(f"{method} and tower under {stage}", zero={"stage": stage}, **learning) for stage in (2, 3)
    )
    moved = configure(f"{method} and tower, moved", zero={"stage": 3}, **learning)
    run_in_processes(2, run_all, [(second, STEPS), (third, STEPS), (moved, 2)])
    again = configure(f"{method} and tower, moved", attempt=2, zero={"stage": 2}, **learning)
    run_all(world, [(again, STEPS)])
    frozen = configure(f"{method} without tower", zero={"stage": 0}, method=method, learningRate=1e-3)
    run_all(world, [(frozen, STEPS)])
    for config in (second, third, again):
        assert losses(config) == pytest.approx(losses(alone), abs=TOLERANCE)
    assert losses(frozen) != pytest.approx(losses(alone), abs=TOLERANCE), "the tower changes something"


def test_a_run_goes_on_with_other_processes_under_another_stage(configure, alone, in_two, world: World):
    run_all(
        world,
        [
            (configure("moved", attempt=2, zero={"stage": 3}), 4),
            (configure("moved, dropout", attempt=2, zero={"stage": 3}, **DROPOUT), 4),
        ],
    )
    moved = configure("moved", attempt=3, zero={"stage": 0})
    with_dropout = configure("moved, dropout", attempt=3, zero={"stage": 1}, **DROPOUT)
    run_in_processes(2, run_all, [(moved, STEPS), (with_dropout, STEPS)])
    assert losses(moved) == pytest.approx(alone, abs=TOLERANCE)
    straight = losses(configure("straight, dropout", **DROPOUT))
    assert losses(with_dropout) == pytest.approx(straight, abs=DROPOUT_BAND)
    # Dropout does something here.
    assert straight != pytest.approx(alone, abs=TOLERANCE)


def test_a_checkpoint_of_an_optimiser_that_was_not_fused_is_continued(
    configure, alone, world: World, monkeypatch: pytest.MonkeyPatch
):
    """As older images wrote it on CPUs."""
    asked = []

    class Unfused(torch.optim.AdamW):
        def __init__(self, *arguments: Any, fused: bool, **settings: Any) -> None:
            asked.append(fused)
            super().__init__(*arguments, fused=False, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim, "AdamW", Unfused)
        run_all(world, [(configure("not fused", zero={"stage": 0}), 2)])
    assert asked == [True]
    later = configure("not fused", attempt=2, zero={"stage": 0})
    run_all(world, [(later, STEPS)])
    assert losses(later) == pytest.approx(alone, abs=TOLERANCE)


def resume_with_a_stale_view(world: World, config: RunConfig, stale: Path) -> str:
    """Go on and stop at once; what the second process sees of the volume lags behind. Returns what it stopped with."""
    appearing = None
    if not world.is_first:
        newest = list_checkpoints(taken_over(config, 1) / "checkpoints")[-1]
        config = config.model_copy(update={"volume_root": stale})
        late = taken_over(config, 1) / "checkpoints" / newest.name
        assert not late.exists()
        appearing = threading.Timer(3.0, late.symlink_to, [newest])
        appearing.start()
    try:
        train(config, world, Reporter(config), StopAfter(0))
    except StageError as error:
        return error.message
    finally:
        if appearing:
            appearing.join()
    return "it did not stop"


def test_two_nodes_that_list_different_checkpoints_go_on_from_the_same_one(configure, in_two, tmp_path: Path):
    """The second one's file system shows what another node has written only after a while."""
    config = begin(configure("seen late", attempt=2, checkpoint={"everySteps": 2, "keep": 2}))
    checkpoints = taken_over(config, 1) / "checkpoints"
    older, newest = list_checkpoints(checkpoints)
    assert [older.name, newest.name] == ["step-00000002", "step-00000003"]
    stale = tmp_path / "volume"
    (stale / checkpoints.relative_to(config.volume_root)).mkdir(parents=True)
    (stale / older.relative_to(config.volume_root)).symlink_to(older)
    (stale / "attempts" / "prepare-1").symlink_to(config.volume.result_dir(StageName.PREPARE))
    told = run_in_processes(2, resume_with_a_stale_view, config, stale)
    assert (
        told
        == ["training was asked to stop (SIGTERM) after step 3 of 6; the checkpoint of step 3 is on the volume"] * 2
    )
