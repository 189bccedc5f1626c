"""Micro-batches as the loop gets them: loaded ahead, from a file that is read one sample at a time; and the dry run of
the longest of them."""

import dataclasses
import threading
from pathlib import Path

import pytest
import torch

from llava_api.failures import Reason
from llava_api.run_config import RunConfig
from llava_trainer.data.images import ImageError
from llava_trainer.data.processor import Processor
from llava_trainer.data.sample_file import SampleFile
from llava_trainer.data.samples import Sample, write_samples
from llava_trainer.errors import StageError
from llava_trainer.gang.stopping import StopRequest
from llava_trainer.gang.world import World
from llava_trainer.reporting import Reporter
from llava_trainer.training import train as training
from llava_trainer.training.batches import BatchLoader, RowLoader
from llava_trainer.training.curve import read_curve
from llava_trainer.training.model_under_training import build_model
from llava_trainer.training.phase import phase_of
from llava_trainer.training.probe import probe_largest
from tests.trainer.trainings import change, make_mixed_dataset, make_training, plan_of


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    folder = tmp_path_factory.mktemp("dataset")
    return folder, make_mixed_dataset(folder)


@pytest.fixture
def config(tmp_path: Path, toy_model_dir: Path, dataset: tuple[Path, list[Sample]]) -> RunConfig:
    (tmp_path / "dataset").symlink_to(dataset[0])
    return make_training(tmp_path, toy_model_dir, dataset[1], training={"epochs": 2})


def open_loader(config: RunConfig, samples, processor: Processor, world_size: int = 1, rank: int = 0) -> BatchLoader:
    phase = phase_of(config)
    plan = plan_of(config, processor, world_size)
    return BatchLoader(
        samples, processor, images=phase.images, max_length=phase.training.max_length, plan=plan, rank=rank
    )


def losses(config: RunConfig, world: World) -> list[tuple[float, float]]:
    with Reporter(config) as reporter:
        training.train(config, world, reporter, StopRequest())
    entries = read_curve(config.volume.history_file(config.run.stage, config.run.attempt))
    return [(entry.loss, entry.grad_norm) for entry in entries]


def test_batches_are_pinned_in_the_models_number_format(
    config: RunConfig, dataset: tuple[Path, list[Sample]], toy_processor: Processor, monkeypatch: pytest.MonkeyPatch
):
    pinned: list[tuple[int, ...]] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tuple(tensor.shape))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    loader = RowLoader(
        samples=dataset[1], processor=toy_processor, images=phase_of(config).images, max_length=256,
        dtype=torch.bfloat16, pinned=True,
    )  # fmt: skip
    micro_batch = loader.load(((0,), (1,)))
    assert micro_batch.tensors["pixel_values"].dtype == torch.bfloat16
    assert micro_batch.tensors["input_ids"].dtype == torch.int64
    assert sorted(pinned) == sorted(tuple(tensor.shape) for tensor in micro_batch.tensors.values())
    places = micro_batch.tensors["image_places"]
    assert (micro_batch.tensors["input_ids"].flatten()[places] == toy_processor.image_token_id).all()
    assert len(places) == 2 * toy_processor.tokens_per_image


def test_memory_that_cannot_be_pinned_is_the_nodes(
    config: RunConfig, dataset: tuple[Path, list[Sample]], toy_processor: Processor, monkeypatch: pytest.MonkeyPatch
):
    def fail(tensor: torch.Tensor) -> torch.Tensor:
        raise torch.AcceleratorError("CUDA error: out of memory")

    monkeypatch.setattr(torch.Tensor, "pin_memory", fail)
    loader = RowLoader(
        samples=dataset[1], processor=toy_processor, images=phase_of(config).images, max_length=256, pinned=True
    )
    with pytest.raises(StageError, match=r"memory does not suffice for a batch that is loaded ahead") as caught:
        loader.load(((0,),))
    assert caught.value.reason is Reason.OUT_OF_MEMORY


def test_samples_are_read_by_their_number(tmp_path: Path, dataset: tuple[Path, list[Sample]]):
    write_samples(tmp_path / "train.jsonl", dataset[1])
    with SampleFile(tmp_path / "train.jsonl") as samples:
        assert len(samples) == 21
        assert [samples[index] for index in (20, 0, 7)] == [dataset[1][index] for index in (20, 0, 7)]
        for index in (-1, 21):
            with pytest.raises(IndexError):
                samples[index]


def test_a_damaged_sample_is_named(tmp_path: Path, dataset: tuple[Path, list[Sample]]):
    path = tmp_path / "train.jsonl"
    write_samples(path, dataset[1])
    path.write_bytes(path.read_bytes().replace(b'"id"', b'"di"', 1))
    with SampleFile(path) as samples, pytest.raises(ValueError, match=r"train\.jsonl line 1 is not a sample"):
        samples[0]


def test_sizes_are_those_that_prepare_counted_or_are_counted_now(
    tmp_path: Path, dataset: tuple[Path, list[Sample]], toy_processor: Processor
):
    counted = [dataclasses.replace(sample, num_tokens=1000 + index) for index, sample in enumerate(dataset[1][:15])]
    write_samples(tmp_path / "train.jsonl", [*counted, *dataset[1][15:]])
    with SampleFile(tmp_path / "train.jsonl") as samples:
        sizes = samples.measure(toy_processor, "v1", max_length=1010)
    assert sizes.tokens[:15].tolist() == [min(1010, 1000 + index) for index in range(15)]
    assert sizes.images.tolist() == [1] * 16 + [0] * 5
    # The same conversation without its image and the line break after it.
    text_only_tokens, tokens = sizes.tokens[16:], sizes.tokens[15]
    assert all(tokens - 25 < other < tokens - 16 for other in text_only_tokens)


@pytest.mark.parametrize("packing", [False, True])
def test_what_is_loaded_is_what_the_plan_says(
    config: RunConfig, dataset: tuple[Path, list[Sample]], toy_processor: Processor, packing: bool
):
    config = change(config, attempt=1, packing=packing)
    plan = plan_of(config, toy_processor, 2)
    with open_loader(config, dataset[1], toy_processor, 2, rank=1) as loader:
        for step in range(plan.total_steps):
            shares, micro_batches = plan.rank_batch(step, 1), loader.load(step)
            assert len(shares) == len(micro_batches)
            for rows, micro_batch in zip(shares, micro_batches, strict=True):
                tokens = sum(int(plan.sizes.tokens[index]) for row in rows for index in row)
                images = sum(int(plan.sizes.images[index]) for row in rows for index in row)
                assert micro_batch.num_tokens == tokens
                pixels = micro_batch.tensors["pixel_values"]
                assert (0 if pixels is None else len(pixels)) == images
                labels = micro_batch.tensors["labels"]
                assert micro_batch.num_supervised == (labels != -100).sum().item()


def test_the_next_step_is_loaded_meanwhile_and_no_other(
    config: RunConfig, dataset: tuple[Path, list[Sample]], toy_processor: Processor
):
    read: list[int] = []
    all_read = threading.Event()

    class Watched(list):
        def __getitem__(self, index):
            read.append(index)
            if len(read) == 16:
                all_read.set()
            return super().__getitem__(index)

    plan = plan_of(config, toy_processor)
    with open_loader(config, Watched(dataset[1]), toy_processor) as loader:
        loader.load(0)
        assert all_read.wait(30)
    assert sorted(read) == sorted((*plan.batch(0), *plan.batch(1)))


def test_a_step_may_be_asked_for_out_of_order(
    config: RunConfig, dataset: tuple[Path, list[Sample]], toy_processor: Processor
):
    with open_loader(config, dataset[1], toy_processor) as loader:
        loader.load(0)
        later, again = loader.load(4), loader.load(0)
    with open_loader(config, dataset[1], toy_processor) as loader:
        expected = [loader.load(4), loader.load(0)]
    for ours, theirs in zip((later, again), expected, strict=True):
        assert [batch.tensors["input_ids"].tolist() for batch in ours] == [
            batch.tensors["input_ids"].tolist() for batch in theirs
        ]


def test_an_image_that_has_gone_is_told_where_it_is_needed(
    config: RunConfig, dataset: tuple[Path, list[Sample]], toy_processor: Processor
):
    gone = [dataclasses.replace(sample, images=("gone.png",)) if sample.images else sample for sample in dataset[1]]
    # The first epoch's first or second batch shows images.
    with open_loader(config, gone, toy_processor) as loader, pytest.raises(ImageError, match="does not exist"):
        [loader.load(step) for step in range(2)]


def test_packing_and_grouping_change_batches_but_not_what_is_learned_from_them(config: RunConfig, world: World):
    expected = losses(change(config, attempt=1), world)
    packed = losses(change(config, attempt=2, packing=True), world)
    for (loss, norm), (expected_loss, expected_norm) in zip(packed, expected, strict=True):
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert norm == pytest.approx(expected_norm, rel=1e-3)
    assert losses(change(config, attempt=3, grouping="none"), world) != expected


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_the_probe_changes_no_loss_by_a_bit(
    config: RunConfig, world: World, monkeypatch: pytest.MonkeyPatch, stage: int
):
    settings = {"zero": {"stage": stage}, "lora": {"rank": 4, "alpha": 8, "dropout": 0.2}}
    probed = losses(change(config, attempt=1, **settings), world)
    monkeypatch.setattr(training, "probe_largest", lambda *arguments: None)
    assert losses(change(config, attempt=2, **settings), world) == probed


def test_what_does_not_fit_fails_before_the_first_step(
    config: RunConfig, world: World, toy_processor: Processor, dataset: tuple[Path, list[Sample]]
):
    model = build_model(config, phase_of(config), world)

    def run_out(*_arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    # A CPU has no such error of its own: raised where the last layer would ask for memory.
    model.module.get_submodule("tuned.model.language_model.layers.2").register_forward_pre_hook(run_out)
    plan = plan_of(config, toy_processor)
    told = r"the longest micro-batch of the run \(4 rows, .* 4 pictures, .*\) does not fit: CUDA out of memory"
    with open_loader(config, dataset[1], toy_processor) as loader, pytest.raises(StageError, match=told) as caught:
        probe_largest(model, loader, plan, world)
    assert caught.value.reason is Reason.OUT_OF_DEVICE_MEMORY


@pytest.mark.parametrize(("precision", "zero"), [
    ("fp32", {"stage": 0}), ("bf16", {"stage": 1}), ("bf16", {"stage": 2}), ("bf16", {"stage": 3}),
    ("bf16", {"stage": 2, "offload": {"optimizer": True}}),
])  # fmt: skip
def test_the_probe_runs_all_that_is_largest_beside_the_moments(
    config: RunConfig, world: World, toy_processor: Processor, dataset: tuple[Path, list[Sample]],
    precision: str, zero: dict,
):  # fmt: skip
    """Adam's moments would else be made in the first step, when the probe has said that everything fits."""
    changed = change(config, precision=precision, zero=zero)
    model = build_model(changed, phase_of(changed), world)
    inner = model.engine.optimizer if zero["stage"] == 0 else model.engine.optimizer.optimizer
    seen: list[tuple[int, int]] = []

    def look(_module: object, _args: object, given: dict) -> None:
        moments = sum(tensor.numel() for state in inner.state.values() for name, tensor in state.items()
                      if name.startswith("exp_avg"))  # fmt: skip
        seen.append((given["input_ids"].numel(), moments))

    model.module.register_forward_pre_hook(look, with_kwargs=True)
    plan = plan_of(changed, toy_processor)
    with open_loader(changed, dataset[1], toy_processor) as loader:
        probe_largest(model, loader, plan, world)
    extremes = plan.find_extremes()
    assert [positions for positions, _ in seen] == [one.tokens for one in (extremes[0], *extremes)]
    assert all(moments >= 2 * model.num_parameters for _, moments in seen)
