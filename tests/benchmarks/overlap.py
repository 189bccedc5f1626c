"""One rank of several that train with and without overlapping communication; the first prints the table.

``python -m tests.benchmarks.overlap FOLDER`` with torch's RANK, WORLD_SIZE and MASTER_* set; FOLDER/base holds the
model of ``gpu_model``.
"""

import sys
import time
from pathlib import Path

from llava_trainer.gang.world import World, join
from tests.benchmarks.gpu_model import Bench, configure_training, synchronize, training_model
from tests.benchmarks.gpu_rows import Way, make_batch

ROWS = 4
"""A process's micro-batch: the smaller it is, the more of a step is communication."""


def main() -> None:
    """Entry point."""
    root, world = Path(sys.argv[1]), join("cuda")
    bench = Bench(device=world.device)
    if world.is_first:
        print(f"Overlapping communication, {world.world_size} GPUs, {ROWS} x {bench.length:,} tokens each:")
        print("| method, ZeRO | a step without | with | gain |\n| --- | --- | --- | --- |")
    for method in ("lora", "full"):
        for stage in (2, 3):
            plain, overlapping = (time_step(root, bench, world, method, stage, overlaps) for overlaps in (False, True))
            if world.is_first:
                print(
                    f"| {method}, {stage} | {plain:.3f} s | {overlapping:.3f} s | {plain / overlapping - 1:.1%} |",
                    flush=True,
                )


def time_step(root: Path, bench: Bench, world: World, method: str, stage: int, overlaps: bool) -> float:
    """Seconds of a step: the same micro-batch in every process, an optimiser step after each."""
    config = configure_training(root, bench, rows=ROWS, method=method, zero={"stage": stage})
    with training_model(config, world, overlap_communication=overlaps) as model:
        batch = make_batch(bench, Way(), ROWS).to(bench.device)
        for step in range(bench.warm_up_steps + bench.timed_steps):
            if step == bench.warm_up_steps:
                synchronize(bench.device)
                began = time.perf_counter()
            model.engine.backward(model.engine(**batch) * 1e-4, scale_wrt_gas=False)
            model.engine.step()
        synchronize(bench.device)
        return (time.perf_counter() - began) / bench.timed_steps


if __name__ == "__main__":
    main()
