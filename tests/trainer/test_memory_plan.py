"""Proves the memory plan against a trace of the real modules: activations within 10 %, weights to the byte.

What ZeRO keeps besides is proven in test_memory_states.py; a larger grid with models of full depth is
``make bench-memory``.
"""

from dataclasses import replace

import numpy as np
import pytest

from llava_api.constants import StageName
from llava_api.memory import Prepared, Workload, plan_activations, plan_states, workload_of
from llava_api.model_facts import ModelFacts
from llava_api.spec import Spec
from llava_trainer.data.sample_file import SampleSizes
from llava_trainer.training.batch_plan import BatchPlan
from tests.trainer.memory_shapes import make_13b, make_shape, make_small
from tests.trainer.memory_trace import trace

TOLERANCE = 0.10
SOURCE = {"source": "pvc://data/set", "format": "llava", "file": "train.json"}


def make_work(method: str, rows: int, length: int, **changes) -> Workload:
    return Workload(
        **{
            "method": method, "rows": rows, "length": length, "pictures": rows, "supervised": rows * length // 4,
            "zero_stage": 0, **changes,
        }
    )  # fmt: skip


def make_narrow() -> ModelFacts:
    """A small model behind LLaVA-1.5's tower, whose images are the larger part."""
    return make_shape(2, hidden=512, intermediate=1408, heads=8, key_value_heads=8, vocabulary=8192)


GRID = [
    (make_shape(2), make_work("lora", 16, 2048)),
    (make_shape(2), make_work("lora", 4, 1024, dropout=0.0)),
    (make_shape(2), make_work("lora", 2, 1024, gradient_checkpointing=False)),
    (make_shape(2), make_work("lora", 8, 4096, masked=True)),
    (make_shape(2), make_work("lora", 2, 2048, gradient_checkpointing=False, masked=True)),
    (make_shape(2, key_value_heads=8), make_work("full", 2, 2048, gradient_checkpointing=False, masked=True)),
    (make_shape(2, key_value_heads=8), make_work("full", 2, 2048, gradient_checkpointing=False)),
    (make_shape(2), make_work("qlora", 4, 1024)),
    (make_shape(2), make_work("qlora", 1, 512, gradient_checkpointing=False, double_quantization=False)),
    (make_shape(2), make_work("full", 1, 512)),
    (make_shape(2), make_work("projector", 16, 640)),
    (make_13b(2), make_work("lora", 8, 2048)),
    (make_13b(2), make_work("full", 4, 2048, gradient_checkpointing=False)),
    (make_small(), make_work("lora", 2, 512, gradient_checkpointing=False, number_bytes=4)),
    (make_small(), make_work("full", 2, 512, number_bytes=4)),
    (make_small(), make_work("projector", 1, 512, gradient_checkpointing=False)),
    (make_shape(2, key_value_heads=8), make_work("lora", 4, 1024)),
    # A projector that is frozen, and adapters on some layers only.
    (make_shape(2), make_work("lora", 4, 1024, learns_projector=False)),
    (make_shape(2), make_work("full", 1, 512, learns_projector=False)),
    (make_shape(2), make_work("qlora", 2, 1024, learns_projector=False, gradient_checkpointing=False)),
    (make_shape(2), make_work("lora", 4, 1024, targets=("q_proj", "v_proj"))),
    (make_shape(4), make_work("lora", 2, 1024, targets=("q_proj", "v_proj"), gradient_checkpointing=False)),
    (make_shape(2), make_work("lora", 2, 1024, targets=("down_proj",), dropout=0.0, gradient_checkpointing=False)),
    (make_shape(2), make_work("lora", 4, 1024, targets=("o_proj", "up_proj"), dropout=0.0)),
    # A tower that learns: beside a large language model, and where it is the larger part.
    (make_shape(2, tower_layers=6), make_work("lora", 4, 1024, learns_tower=True)),
    (make_shape(2), make_work("lora", 2, 1024, learns_tower=True, gradient_checkpointing=False)),
    (make_narrow(), make_work("lora", 4, 600, pictures=8, learns_tower=True)),
    (make_narrow(), make_work("lora", 4, 600, pictures=8, learns_tower=True, gradient_checkpointing=False)),
    (make_narrow(), make_work("full", 4, 600, pictures=8, learns_tower=True, number_bytes=4)),
    (make_narrow(), make_work("lora", 4, 600, pictures=8, learns_tower=True, learns_projector=False)),
    (make_narrow(), make_work("lora", 4, 600, pictures=8, learns_tower=True, eager=True)),
    (make_shape(2), make_work("qlora", 2, 1024, learns_tower=True)),
    (make_13b(2), make_work("full", 2, 1024, learns_tower=True)),
    # Eager attention: the last layer's MLP is the peak, its softmax, all layers together, and the tower's softmax.
    (make_shape(2), make_work("lora", 4, 1024, eager=True)),
    (make_shape(2), make_work("lora", 4, 2048, eager=True)),
    (make_shape(2, key_value_heads=8), make_work("full", 8, 1024, eager=True)),
    (make_13b(2), make_work("qlora", 2, 1024, gradient_checkpointing=False, dropout=0.0, eager=True)),
    (make_small(), make_work("full", 2, 2048, gradient_checkpointing=False, number_bytes=4, eager=True)),
    (make_small(), make_work("projector", 2, 2048, eager=True)),
    (make_narrow(), make_work("lora", 4, 600, pictures=8, eager=True)),
    (make_narrow(), make_work("lora", 4, 600, pictures=8, number_bytes=4, eager=True)),
]


@pytest.mark.parametrize(("model", "work"), GRID, ids=lambda part: getattr(part, "method", None))
def test_the_plan_is_within_a_tenth_of_a_trace(model: ModelFacts, work: Workload):
    traced = trace(model, work)
    assert plan_activations(model, work).total == pytest.approx(traced.peak, rel=TOLERANCE)
    assert plan_states(model, work).weights == pytest.approx(traced.weights, rel=1e-4)


def test_what_prepare_finds_in_packed_captions_is_planned_within_a_tenth_of_what_the_largest_micro_batch_takes():
    """Short captions: packed, a micro-batch of 4 samples holds a dozen of them with their images."""
    model = make_shape(2)
    rng = np.random.default_rng(0)
    captions = rng.integers(8, 120, 96)
    one_each = np.ones(96, dtype=np.int64)
    sizes = SampleSizes(tokens=model.tokens_per_image + captions, images=one_each, supervised=captions)
    spec = Spec.model_validate(
        {
            "model": {"languageModel": "pvc://models/llm", "visionTower": "pvc://models/clip"},
            "dataset": SOURCE, "workers": {"gpus": 1}, "training": {"packing": True},
            "alignment": {"dataset": SOURCE, "batch": {"perDevice": 4, "global": 48}},
        }
    )  # fmt: skip
    plan = BatchPlan(sizes=sizes, global_batch=48, per_device_batch=4, max_length=2048, world_size=1, epochs=1, seed=0,
                packing=True)  # fmt: skip
    largest = plan.find_largest()
    work = workload_of(spec, StageName.ALIGN, model, Prepared(largest=largest))
    assert work.pictures >= 10
    rows = plan.find_extremes()[0].rows
    held = [index for row in rows for index in row]
    real = replace(
        work, rows=len(rows), length=max(int(sizes.tokens[list(row)].sum()) for row in rows), pictures=len(held),
        supervised=int(captions[held].sum()),
    )  # fmt: skip
    assert plan_activations(model, work).total == pytest.approx(trace(model, real).peak, rel=TOLERANCE)
    assert plan_activations(model, work).total >= plan_activations(model, real).total


def test_the_trace_sees_what_is_kept_and_what_is_given_back():
    """The oracle's own control: checkpointing saves, and twice the rows take twice the memory."""
    model = make_small()
    kept = trace(model, make_work("lora", 2, 512, gradient_checkpointing=False)).peak
    again = trace(model, make_work("lora", 2, 512)).peak
    twice = trace(model, make_work("lora", 4, 512)).peak
    assert again < kept / 3
    assert twice == pytest.approx(2 * again, rel=0.02)
