"""One rank of two that learn with and without overlapping communication; the first prints the losses as JSON.

``python -m tests.gpu.overlapping FOLDER STAGE`` with torch's RANK, WORLD_SIZE and MASTER_* set; FOLDER/base holds a
model of ``tests.benchmarks.gpu_model``.
"""

import json
import sys
from pathlib import Path

import torch

from llava_trainer.gang.world import World, join
from tests.benchmarks.gpu_model import Bench, configure_training, training_model
from tests.benchmarks.gpu_rows import Way, make_batch

STEPS = 4
ROWS = 2


def make_bench(device: torch.device) -> Bench:
    return Bench(
        device=device, layers=4, hidden=512, intermediate=1024, heads=4, vocabulary=2048, tower_layers=3,
        tower_hidden=64, image_px=56, rank=16, rows=ROWS, length=256,
    )  # fmt: skip


def main() -> None:
    root, stage = Path(sys.argv[1]), int(sys.argv[2])
    world = join("cuda")
    found = {str(overlaps): learn(root, stage, world, overlaps) for overlaps in (False, True)}
    if world.is_first:
        sys.stdout.write(json.dumps(found) + "\n")


def learn(root: Path, stage: int, world: World, overlaps: bool) -> list[float]:
    """Losses of a few steps, of two micro-batches each."""
    bench = make_bench(world.device)
    config = configure_training(root, bench, rows=ROWS, method="full", learningRate=1e-3, zero={"stage": stage})
    losses = []
    with training_model(config, world, overlap_communication=overlaps) as model:
        batch = make_batch(bench, Way(), ROWS).to(world.device)
        for _ in range(STEPS):
            for _ in range(2):
                loss = model.engine(**batch)
                model.engine.backward(loss * 1e-3, scale_wrt_gas=False)
            model.engine.step()
            losses.append(loss.item())
    return losses


if __name__ == "__main__":
    main()
