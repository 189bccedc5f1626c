"""The loop in one rank: against plain PyTorch, against itself after a restart, and where it has to give up."""

import dataclasses
import json
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import get_scheduler

from llava_api.constants import StageName
from llava_api.failures import Reason
from llava_api.report import TrainNumbers
from llava_api.run_config import RunConfig
from llava_trainer.data.collate import collate
from llava_trainer.data.encode import encode
from llava_trainer.data.images import open_image, pixel_values
from llava_trainer.data.processor import Processor
from llava_trainer.data.samples import Sample, write_samples
from llava_trainer.errors import StageError
from llava_trainer.files import sha256_file, write_whole
from llava_trainer.gang.stopping import StopRequest
from llava_trainer.gang.world import World
from llava_trainer.inputs import Inputs
from llava_trainer.model.learning import group_parameters
from llava_trainer.model.loading import load_model
from llava_trainer.model.lora import add_adapter
from llava_trainer.reporting import Reporter
from llava_trainer.training import train as training
from llava_trainer.training.batches import BatchLoader
from llava_trainer.training.checkpoint import CheckpointState
from llava_trainer.training.curve import CurvePoint, read_curve
from llava_trainer.training.model_under_training import build_model
from llava_trainer.training.phase import phase_of
from llava_trainer.training.progress import Progress
from llava_trainer.training.retention import find_checkpoints, list_checkpoints
from llava_trainer.training.saving import Saver
from llava_trainer.training.train import train
from tests.trainer.trainings import StopAfter, StopWithin, change, configure, make_mixed_dataset, make_training, plan_of

EPOCHS = 3


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    folder = tmp_path_factory.mktemp("dataset")
    return folder, make_mixed_dataset(folder)


@pytest.fixture
def config(tmp_path: Path, toy_model_dir: Path, dataset: tuple[Path, list[Sample]]) -> RunConfig:
    (tmp_path / "dataset").symlink_to(dataset[0])
    return make_training(tmp_path, toy_model_dir, dataset[1], training={"epochs": EPOCHS})


def run(config: RunConfig, world: World, stop: StopRequest | None = None) -> TrainNumbers:
    with Reporter(config) as reporter:
        numbers = train(config, world, reporter, stop or StopRequest())
    assert numbers is not None
    return numbers


def curve(config: RunConfig) -> list[CurvePoint]:
    return read_curve(config.volume.history_file(config.run.stage, config.run.attempt))


def trajectory(config: RunConfig) -> list[tuple[float, float, float]]:
    return [(entry.loss, entry.grad_norm, entry.learning_rate) for entry in curve(config)]


def adapter_digest(config: RunConfig) -> str:
    return sha256_file(config.volume.adapter_dir / "adapter_model.safetensors")


def plain_pytorch(config: RunConfig, samples: list[Sample], processor: Processor) -> list[tuple[float, float, float]]:
    """The oracle: one rank, one micro-batch a step, torch's own optimiser, scheduler and clipping."""
    phase = phase_of(config)
    plan = plan_of(config, processor)
    torch.manual_seed(phase.training.seed)
    tuned = add_adapter(load_model(config.model_dir, torch.float32, "cpu"), phase.training.lora).train()
    groups = group_parameters(
        tuned,
        learning_rate=phase.training.peak_learning_rate,
        projector_learning_rate=phase.training.projector_learning_rate,
        weight_decay=phase.training.weight_decay,
    )
    learning = [parameter for group in groups for parameter in group.parameters]
    optimizer = torch.optim.AdamW(
        [{"params": g.parameters, "lr": g.learning_rate, "weight_decay": g.weight_decay} for g in groups]
    )
    warmup = -(-plan.total_steps * 3 // 100)
    scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=warmup, num_training_steps=plan.total_steps)
    outcomes = []
    for step in range(plan.total_steps):
        batch_samples = [samples[index] for index in plan.batch(step)]
        paths = [phase.images.find(sample.images[0]) if sample.images else None for sample in batch_samples]
        items = [
            (
                encode(sample, processor, phase.training.max_length),
                pixel_values(open_image(path), processor)[None] if path else None,
            )
            for sample, path in zip(batch_samples, paths, strict=True)
        ]
        batch = collate(items, processor.pad_token_id)
        labels, _ = batch.pop("labels"), batch.pop("predicting")
        ones = [torch.ones(encoded.num_tokens, dtype=torch.int64) for encoded, _ in items]
        mask = torch.nn.utils.rnn.pad_sequence(ones, batch_first=True)
        logits = tuned(**batch, attention_mask=mask, use_cache=False).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        torch.autograd.backward(loss)
        for parameter in learning:
            # A batch without any image gives the projector a gradient of zero, and momentum moves it on.
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        norm = torch.nn.utils.clip_grad_norm_(learning, 1.0)
        outcomes.append((loss.item(), norm.item(), scheduler.get_last_lr()[0]))
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    return outcomes


def test_the_loop_learns_what_plain_pytorch_learns(
    config: RunConfig, world: World, dataset: tuple[Path, list[Sample]], toy_processor: Processor
):
    numbers = run(config, world)
    expected = plain_pytorch(config, dataset[1], toy_processor)
    losses, norms, learning_rates = zip(*trajectory(config), strict=True)
    expected_losses, expected_norms, expected_learning_rates = zip(*expected, strict=True)
    assert losses == pytest.approx(expected_losses, rel=1e-6)
    assert norms == pytest.approx(expected_norms, rel=1e-4)
    assert learning_rates == pytest.approx(expected_learning_rates, rel=1e-9)
    assert (numbers.steps, numbers.world_size) == (9, 1)
    assert numbers.final_loss == curve(config)[-1].loss < curve(config)[0].loss
    assert [entry.step for entry in curve(config)] == list(range(1, 10))


@pytest.mark.parametrize(
    "setting",
    [
        {"batch": {"perDevice": 1, "global": 8}},
        {"batch": {"perDevice": 8, "global": 8}},
        {"gradientCheckpointing": True},
    ],
    ids=["accumulation", "none", "checkpointing"],
)
def test_how_a_batch_is_computed_changes_nothing(config: RunConfig, world: World, setting: dict):
    run(config, world)
    expected = [entry.loss for entry in curve(config)]
    other = change(config, attempt=2, **setting)
    run(other, world)
    assert [entry.loss for entry in curve(other)] == pytest.approx(expected, rel=1e-5)


def test_bf16_learns_too_and_keeps_its_originals_in_fp32(config: RunConfig, world: World):
    saving = change(config, precision="bf16", checkpoint={"everySteps": 8, "keep": 1})
    run(saving, world)
    assert curve(saving)[-1].loss < curve(saving)[0].loss
    (checkpoint,) = list_checkpoints(config.volume.checkpoints_dir(StageName.TRAIN, 1))
    stored = load_file(checkpoint / "rank-00000.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    adapter = load_file(config.volume.adapter_dir / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in adapter.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("precision", "stage", "stop"),
    [
        ("fp32", 2, StopAfter(4)),
        ("bf16", 3, StopAfter(4)),
        ("fp32", 0, StopWithin(4, micro_batches=0, rank=0)),
        ("bf16", 2, StopWithin(4, micro_batches=0, rank=0)),
    ],
    ids=["fp32-2", "bf16-3", "fp32-0-within", "bf16-2-within"],
)
def test_a_stopped_run_goes_on_bit_for_bit(
    config: RunConfig, world: World, precision: str, stage: int, stop: StopRequest
):
    settings = {"lora": {"rank": 4, "alpha": 8, "dropout": 0.2}, "precision": precision, "zero": {"stage": stage}}
    straight = change(config, attempt=1, **settings)
    run(straight, world)
    expected, digest = trajectory(straight), adapter_digest(straight)
    stopped = change(config, attempt=2, **settings)
    with pytest.raises(StageError, match="after step 4 of 9; the checkpoint of step 4 is on the volume") as caught:
        run(stopped, world, stop)
    assert caught.value.reason is Reason.INTERRUPTED
    assert not stopped.volume.adapter_dir.exists()
    torch.manual_seed(12345)
    run(stopped, world)
    assert trajectory(stopped) == expected
    assert adapter_digest(stopped) == digest


def test_a_later_attempt_goes_on_from_the_newest_checkpoint_that_is_whole(
    config: RunConfig, world: World, caplog: pytest.LogCaptureFixture
):
    saving = change(config, checkpoint={"everySteps": 2, "keep": 3})
    run(saving, world)
    expected, digest = trajectory(saving), adapter_digest(saving)
    checkpoints = list_checkpoints(config.volume.checkpoints_dir(StageName.TRAIN, 1))
    assert [path.name for path in checkpoints] == ["step-00000004", "step-00000006", "step-00000008"]
    damaged = checkpoints[-1] / "rank-00000.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-8])
    (checkpoints[-2] / "adapter" / "adapter_config.json").unlink()
    later = change(saving, attempt=2)
    told = []

    class Kept(Reporter):
        def update(self, step: int, total_steps: int, **measures) -> None:
            told.append(measures["skipped_checkpoints"])

    with caplog.at_level("INFO"):
        train(later, world, Kept(later), StopRequest())
    assert set(told) == {"train-1/step-00000008, train-1/step-00000006"}
    assert "step-00000008 is passed over" in caplog.text
    assert "step-00000006 is passed over" in caplog.text
    assert "resuming from" in caplog.text
    assert "after step 4 of 9" in caplog.text
    assert trajectory(later) == expected
    assert adapter_digest(later) == digest
    # Three in all, not three of each attempt: two of its own, and the one that was whole.
    kept = [f"{path.parent.parent.name}/{path.name}" for path in find_checkpoints(later.volume, StageName.TRAIN, 2)]
    assert kept == ["train-2/step-00000008", "train-2/step-00000006", "train-1/step-00000004"]


def test_a_checkpoints_adapter_is_the_model_at_that_step(config: RunConfig, world: World):
    inputs = Inputs(
        model_dir=config.model_dir, dataset_dir=config.dataset_dir, origins={"model": "hf://me/tiny@" + "c" * 40}
    )
    write_whole(config.volume.inputs_file, inputs.model_dump_json())
    assert run(change(config, checkpoint={"everySteps": 8, "keep": 1}), world).attention == "sdpa"
    (checkpoint,) = list_checkpoints(config.volume.checkpoints_dir(StageName.TRAIN, 1))
    saved = load_file(checkpoint / "adapter" / "adapter_model.safetensors")
    # The last of nine steps has next to no learning rate left.
    final = load_file(config.volume.adapter_dir / "adapter_model.safetensors")
    assert saved.keys() == final.keys()
    assert all(torch.allclose(saved[name], final[name], atol=1e-3) for name in saved)
    assert any(not torch.equal(saved[name], final[name]) for name in saved)
    for folder in (checkpoint / "adapter", config.volume.adapter_dir):
        adapter = json.loads((folder / "adapter_config.json").read_text())
        assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("me/tiny", "c" * 40)
        assert str(config.volume_root.parent) not in json.dumps(adapter)


def test_a_checkpoint_of_another_adapter_is_refused(config: RunConfig, world: World):
    with pytest.raises(StageError, match="asked to stop"):
        run(config, world, StopAfter(1))
    other = change(config, attempt=2, lora={"rank": 2, "alpha": 8, "dropout": 0.0})
    with pytest.raises(StageError, match=r"lora_A\S* is \[4, \d+\] there and \[2, \d+\] here") as caught:
        run(other, world)
    assert caught.value.reason is Reason.CHECKPOINT_MISMATCH


def test_a_checkpoint_of_another_training_is_refused_with_what_differs(config: RunConfig, world: World):
    with pytest.raises(StageError, match="asked to stop"):
        run(config, world, StopAfter(1))
    for changes, told in (
        ({"seed": 7}, "spec.training.seed 42, which is 7 now: set it back to 42"),
        ({"epochs": 2}, "spec.training.epochs 3, which is 2 now"),
        ({"batch": {"perDevice": 4, "global": 4}}, "spec.training.batch.global 8, which is 4 now"),
        ({"grouping": "none"}, "spec.training.grouping modality, which is none now"),
        ({"method": "qlora"}, "spec.training.method lora, which is qlora now"),
        ({"maxLength": 128}, "spec.training.maxLength 256, which is 128 now"),
    ):
        with pytest.raises(StageError, match="is of another training") as caught:
            run(change(config, attempt=2, **changes), world)
        assert caught.value.reason is Reason.CHECKPOINT_MISMATCH
        assert told in caught.value.message


def test_a_checkpoint_of_another_model_or_of_other_samples_is_refused(
    config: RunConfig, world: World, tmp_path: Path, dataset: tuple[Path, list[Sample]]
):
    with pytest.raises(StageError, match="asked to stop"):
        run(config, world, StopAfter(1))
    other = tmp_path / "other"
    shutil.copytree(config.model_dir, other)
    tensors = load_file(other / "model.safetensors")
    tensors["language_model.model.layers.0.mlp.up_proj.weight"][-1, 0] += 1.0
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    fields = change(config, attempt=2).model_dump(by_alias=True)
    write_samples(config.volume.train_file, dataset[1][::-1])
    with pytest.raises(
        StageError, match=r"from another model \(sha256:\w{12}… there, .*; it was made from other samples"
    ):
        run(RunConfig.model_validate(fields | {"modelDir": other}), world)


def test_an_empty_share_of_the_last_batch_counts_for_nothing(
    config: RunConfig, world: World, dataset: tuple[Path, list[Sample]], toy_processor: Processor
):
    # 21 samples in batches of 20: the second has 1, the first of two processes'.
    plan = dataclasses.replace(plan_of(config, toy_processor, 2), per_device_batch=10, global_batch=20)
    images = phase_of(config).images
    with BatchLoader(dataset[1], toy_processor, images=images, max_length=256, plan=plan, rank=1) as loader:
        full, (empty,) = loader.load(0), loader.load(1)
    assert sum(micro_batch.num_supervised for micro_batch in full) > 0
    assert (empty.num_supervised, empty.num_tokens) == (0, 0)
    module = build_model(config, phase_of(config), world).module
    loss = module(**empty.to(world.device))
    torch.autograd.backward(loss)
    assert loss.item() == 0.0


def test_a_request_before_the_first_step_saves_nothing(config: RunConfig, world: World):
    with pytest.raises(StageError, match="before it had done a step"):
        run(config, world, StopAfter(0))
    assert list_checkpoints(config.volume.checkpoints_dir(StageName.TRAIN, 1)) == []


@pytest.mark.parametrize(("stopped_after", "expected"), [(2, [2]), (3, [2, 3])])
def test_a_checkpoint_that_is_being_written_when_asked_to_stop_is_waited_for_and_not_repeated(
    config: RunConfig, world: World, monkeypatch: pytest.MonkeyPatch, stopped_after: int, expected: list[int]
):
    """Another one follows only if steps were done since."""
    asked = threading.Event()
    written: list[int] = []

    def write_slowly(self: Saver, pieces: object, state: CheckpointState) -> int:
        asked.wait(60)
        written.append(state.step)
        return state.step

    class Stop(StopAfter):
        @property
        def received(self) -> bool:
            if stopping := super().received:
                asked.set()
            return stopping

    monkeypatch.setattr(Saver, "_write", write_slowly)
    saving = change(config, checkpoint={"everySteps": 2, "keep": 3})
    with pytest.raises(StageError, match=f"the checkpoint of step {stopped_after} is on the volume"):
        run(saving, world, Stop(stopped_after))
    assert written == expected


def test_a_run_that_is_asked_to_stop_as_soon_as_it_goes_on_writes_nothing(config: RunConfig, world: World):
    with pytest.raises(StageError, match="the checkpoint of step 1"):
        run(config, world, StopAfter(1))
    with pytest.raises(StageError, match="after step 1 of 9; the checkpoint of step 1 is on the volume"):
        run(change(config, attempt=2), world, StopAfter(0))
    (kept,) = find_checkpoints(config.volume, StageName.TRAIN, 2)
    assert kept.parent == config.volume.attempt_dir(StageName.TRAIN, 2) / "before" / "train-1" / "checkpoints"


@pytest.mark.parametrize("probed", [True, False])
def test_a_loss_that_is_no_number_ends_training(
    config: RunConfig, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probed: bool
):
    if not probed:
        monkeypatch.setattr(training, "probe_largest", lambda *arguments: None)
    broken = tmp_path / "broken"
    shutil.copytree(config.model_dir, broken)
    file = broken / "model.safetensors"
    tensors = load_file(file)
    tensors["language_model.lm_head.weight"][7] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    fields = config.model_dump(by_alias=True) | {"modelDir": broken}
    longest = r"before the first step, .* the longest micro-batch of the run \(4 rows, .* is nan: the model's weights"
    with pytest.raises(StageError, match=longest if probed else "in step 1 the loss is nan") as caught:
        run(RunConfig.model_validate(fields), world)
    assert caught.value.reason is Reason.LOSS_NOT_FINITE
    assert not config.volume.adapter_dir.exists()


def test_an_adapter_without_gradient_ends_training(config: RunConfig, world: World, tmp_path: Path):
    dead = tmp_path / "dead"
    shutil.copytree(config.model_dir, dead)
    tensors = load_file(dead / "model.safetensors")
    # Whatever the layers below compute, the head says the same.
    tensors["language_model.lm_head.weight"].zero_()
    save_file(tensors, dead / "model.safetensors", metadata={"format": "pt"})
    fields = config.model_dump(by_alias=True) | {"modelDir": dead}
    with pytest.raises(
        StageError, match="after step 1 none of the 42 tensors of the language_model has received"
    ) as caught:
        run(RunConfig.model_validate(fields), world)
    assert caught.value.reason is Reason.ZERO_GRADIENT


def test_a_batch_without_anything_to_learn_ends_training(
    tmp_path: Path, toy_model_dir: Path, world: World, dataset: tuple[Path, list[Sample]]
):
    (tmp_path / "dataset").symlink_to(dataset[0])
    long = [
        dataclasses.replace(sample, turns=(dataclasses.replace(sample.turns[0], text="tray " * 300), sample.turns[1]))
        for sample in dataset[1][:8]
    ]
    config = make_training(tmp_path, toy_model_dir, long)
    with pytest.raises(StageError, match=r"no token of step 1's 8 samples .*training\.maxLength") as caught:
        run(config, world)
    assert caught.value.reason is Reason.NOTHING_SUPERVISED


def test_a_checkpoint_that_cannot_be_written_ends_training(config: RunConfig, world: World):
    checkpoints = config.volume.checkpoints_dir(config.run.stage, 1)
    checkpoints.write_text("a file where a folder should be")
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        run(change(config, checkpoint={"everySteps": 2, "keep": 1}), world)


def test_nothing_to_train_on_is_refused(tmp_path: Path, toy_model_dir: Path, world: World):
    with pytest.raises(StageError, match="holds no sample") as caught:
        run(make_training(tmp_path, toy_model_dir, []), world)
    assert caught.value.reason is Reason.INVALID_DATA


def test_a_full_run_reports_and_leaves_nothing_aside(config: RunConfig, world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(World, "peak_gpu_memory_bytes", 7)

    class Kept(Reporter):
        reports: list = []  # noqa: RUF012

        def update(self, step: int, total_steps: int, **measures) -> None:
            self.reports.append((step, total_steps, measures))

    saving = change(config, checkpoint={"everySteps": 4, "keep": 1})
    progress = Progress()
    with Kept(saving) as reporter:
        train(saving, world, reporter, StopRequest(), progress=progress)
    assert (progress.step, progress.attempt_steps) == (9, 9)
    assert progress.slowest_step_s is not None
    # Each step, and again when a checkpoint is on the disk.
    assert list(dict.fromkeys((step, total) for step, total, _ in reporter.reports)) == [(n, 9) for n in range(1, 10)]
    assert len(reporter.reports) == 11
    last = reporter.reports[-1][2]
    assert last["checkpoint_step"] == 8
    assert last["peak_gpu_memory_bytes"] == 7
    assert last["epoch"] == EPOCHS
    assert list(last["losses"]) == [entry.loss for entry in curve(saving)]
    assert last["tokens_per_second"] > last["samples_per_second"] > 0
    assert "checkpoint_step" not in reporter.reports[3][2]
    assert not [name for _, folders, files in os.walk(config.volume_root) for name in folders + files
                if name.endswith(".partial")]  # fmt: skip


def test_configuration_of_the_helpers_is_what_the_operator_writes(tmp_path: Path):
    config = configure(tmp_path, tmp_path / "base")
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
