"""``make bench-memory``: the memory plan against a trace of the real modules, over models of full depth.

Nothing is computed and no memory is taken: tensors have shapes only (tests/trainer/memory_trace.py).
"""

import sys
import time
from collections.abc import Iterator
from itertools import product

from llava_api.memory import Method, Workload, plan_activations, plan_states
from llava_api.model_facts import ModelFacts
from llava_api.quantities import GIB
from tests.trainer.memory_shapes import make_13b, make_shape, make_small
from tests.trainer.memory_trace import trace

MODELS = {"7B": make_shape(32, tower_layers=24), "13B": make_13b(40, tower_layers=24), "small": make_small()}
MIDDLE = (4, 1024)
SIZES = ((1, 640), MIDDLE, (16, 2048))
"""Rows and tokens; an image of 576 has to find its place."""


def works() -> Iterator[tuple[str, Workload]]:
    """Every model and method, with and without checkpointing; LoRA in three sizes, and once without dropout."""
    for name, checkpointing in product(MODELS, (True, False)):
        yield name, _work("lora", *MIDDLE, checkpointing, dropout=0.0)
        for size in SIZES:
            yield name, _work("lora", *size, checkpointing)
        for method in ("qlora", "full", "projector"):
            yield name, _work(method, *MIDDLE, checkpointing)


def _work(method: Method, rows: int, length: int, checkpointing: bool, *, dropout: float = 0.05) -> Workload:
    return Workload(
        method=method, rows=rows, length=length, pictures=rows, supervised=rows * length // 4, dropout=dropout,
        gradient_checkpointing=checkpointing, zero_stage=0,
    )  # fmt: skip


def main() -> None:
    print("| model | method | checkpointing | dropout | batch | plan, GiB | trace, GiB | plan / trace |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    began, ratios = time.monotonic(), []
    for name, work in works():
        planned, traced = _compare(MODELS[name], work)
        ratios.append(planned / traced)
        print(
            f"| {name} | {work.method} | {'yes' if work.gradient_checkpointing else 'no'} | {work.dropout:g} | "
            f"{work.rows} x {work.length:,} | {planned / GIB:.2f} | {traced / GIB:.2f} | {ratios[-1]:.3f} |",
            flush=True,
        )
    print(f"\n{len(ratios)} workloads in {time.monotonic() - began:.0f} s; the plan is {min(ratios):.3f} to "
          f"{max(ratios):.3f} times the trace")  # fmt: skip
    sys.exit(0 if all(0.9 <= ratio <= 1.1 for ratio in ratios) else "a plan is off by more than a tenth")


def _compare(model: ModelFacts, work: Workload) -> tuple[int, int]:
    """Bytes beyond weights: planned and traced. Weights have to agree to the byte."""
    traced = trace(model, work)
    weights = plan_states(model, work).weights
    if abs(weights - traced.weights) > 1e-4 * traced.weights:
        sys.exit(f"the plan says {weights:,} bytes of weights, the trace {traced.weights:,}: {work}")
    return plan_activations(model, work).total, traced.peak


if __name__ == "__main__":
    main()
