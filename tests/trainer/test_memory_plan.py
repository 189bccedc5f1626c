"""Proves the memory plan against a trace of the real modules: activations within 10 %, weights to the byte.

What ZeRO keeps besides is proven in test_memory_states.py; a larger grid with models of full depth is
``make bench-memory``.
"""

import pytest

from llava_api.memory import Workload, plan_activations, plan_states
from llava_api.model_facts import ModelFacts
from tests.trainer.memory_shapes import make_13b, make_shape, make_small
from tests.trainer.memory_trace import trace

TOLERANCE = 0.10


def make_work(method: str, rows: int, length: int, **changes) -> Workload:
    return Workload(
        **{
            "method": method, "rows": rows, "length": length, "pictures": rows, "supervised": rows * length // 4,
            "zero_stage": 0, **changes,
        }
    )  # fmt: skip


GRID = [
    (make_shape(2), make_work("lora", 16, 2048)),
    (make_shape(2), make_work("lora", 4, 1024, dropout=0.0)),
    (make_shape(2), make_work("lora", 2, 1024, gradient_checkpointing=False)),
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
]


@pytest.mark.parametrize(("model", "work"), GRID, ids=lambda part: getattr(part, "method", None))
def test_the_plan_is_within_a_tenth_of_a_trace(model: ModelFacts, work: Workload):
    traced = trace(model, work)
    assert plan_activations(model, work).total == pytest.approx(traced.peak, rel=TOLERANCE)
    assert plan_states(model, work).weights == pytest.approx(traced.weights, rel=1e-4)


def test_the_trace_sees_what_is_kept_and_what_is_given_back():
    """The oracle's own control: checkpointing saves, and twice the rows take twice the memory."""
    model = make_small()
    kept = trace(model, make_work("lora", 2, 512, gradient_checkpointing=False)).peak
    again = trace(model, make_work("lora", 2, 512)).peak
    twice = trace(model, make_work("lora", 4, 512)).peak
    assert again < kept / 3
    assert twice == pytest.approx(2 * again, rel=0.02)
