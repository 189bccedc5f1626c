"""What the benchmarks calculate by themselves: lengths and filling."""

import dataclasses
from pathlib import Path

import pytest

from llava_trainer.gang.world import World
from llava_trainer.training.batch_plan import BatchPlan
from llava_trainer.training.flops import positions_of_samples
from tests.benchmarks import gpu_rows
from tests.benchmarks.gpu import tables_on
from tests.benchmarks.gpu_mixture import computed_positions
from tests.benchmarks.gpu_model import Bench
from tests.benchmarks.gpu_rows import WAYS
from tests.benchmarks.mixture import draw_shapes, encode_shape, max_length, sizes_of


def test_the_mixture_shrinks_in_proportion_and_stays_as_it_is():
    whole, quarter = draw_shapes(512, seed=0), draw_shapes(512, seed=0, image_tokens=144)
    assert whole == draw_shapes(512, seed=0)
    assert max(shape.tokens for shape in whole) <= max_length() == 2048
    assert max_length(144) == 512
    for large, small in zip(whole, quarter, strict=True):
        assert (large.image_tokens == 576) == (small.image_tokens == 144)
        assert small.text_tokens == pytest.approx(large.text_tokens / 4, abs=4)
    # LLaVA's 665K: 6 % without an image, 60 % of a padded random batch of 16 is real.
    assert 0.04 < sum(shape.image_tokens == 0 for shape in whole) / 512 < 0.09


def test_a_shape_becomes_a_sample_as_long():
    (shape,) = draw_shapes(1, seed=3, image_tokens=144)
    encoded = encode_shape(shape, image_token_id=5, first_id=10, last_id=20, seed=0)
    assert encoded.num_tokens == shape.tokens
    assert encoded.input_ids.count(5) == shape.image_tokens == 144
    assert encoded.num_supervised == shape.answer_tokens


def test_what_a_gpu_is_measured_by_runs_on_a_cpu(tmp_path: Path, world: World):
    """With a small model, so that a machine with a GPU is not where it is tried for the first time."""
    bench = Bench(
        device=world.device, layers=1, hidden=32, intermediate=48, heads=2, vocabulary=700 + 64, tower_layers=3,
        tower_hidden=16, image_px=28, rank=2, rows=2, length=96, warm_up_steps=1, timed_steps=1, rounds=1,
    )  # fmt: skip
    ways = [way for way in WAYS if way.method != "qlora"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_rows, "WAYS", ways)
        lines = list(tables_on(bench, world, tmp_path))
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines if line.startswith("| ")]
    speeds = {cells[0]: cells for cells in rows if len(cells) == 8}
    assert {str(way) for way in ways} <= speeds.keys()
    assert all(float(speeds[str(way)][3].replace(",", "")) > 0 for way in ways)
    mixture = {cells[0]: cells for cells in rows if len(cells) == 5}
    names = ("the plain way", "ours, grouped, checkpointing", "ours, packed, checkpointing")
    assert all(float(mixture[name][1].replace(",", "")) > 0 for name in names)
    assert mixture["the plain way"][2] == "1.00"


def test_packed_rows_compute_what_is_there_and_what_fills_up():
    sizes = sizes_of(draw_shapes(32, seed=0, image_tokens=4))
    plan = BatchPlan(
        sizes=sizes, global_batch=16, per_device_batch=8, max_length=max_length(4), world_size=1, epochs=1, seed=0
    )
    for packing in (False, True):
        computed = list(computed_positions(dataclasses.replace(plan, packing=packing), 0))
        real = positions_of_samples(sizes, plan.batch(0))
        assert sum(one.supervised for one in computed) == real.supervised
        assert sum(one.images for one in computed) == real.images
        assert real.tokens <= sum(one.tokens for one in computed) < 1.5 * real.tokens
