"""What torch's flight recorder costs training: CPU time of an operation with it and without, and operations of a step.

The recorder's size is read once by a process, so each measurement is one of its own; processor time is measured, which
other processes on the machine do not change much. ``make bench-flight``
"""

import argparse
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist

from llava_trainer.gang import flight
from llava_trainer.gang.stopping import StopRequest
from llava_trainer.gang.world import World
from llava_trainer.reporting import Reporter
from llava_trainer.training.train import train
from tests.benchmarks.model import write_model
from tests.tiny.tasks import corpus
from tests.trainer.many import run_in_processes
from tests.trainer.trainings import make_dataset, make_training

OPERATIONS = 5_000
ROUNDS = 3
MARK = "microseconds:"
SIZES = ("0", "1000")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--operations", action="store_true", help="the part that the others start")
    if parser.parse_args().operations:
        print(MARK, _time_operations())
        return
    rounds = [[_start(size) for size in SIZES] for _ in range(ROUNDS)]
    without, recorded = (median(costs) for costs in zip(*rounds, strict=True))
    print(f"an all_reduce of one number: {without:.1f} µs of a processor, recorded {recorded:.1f} µs")
    steps, begun, seconds = count_operations()
    share = begun / steps * (recorded - without) * 1e-6 / (seconds / steps)
    print(
        f"a step of two processes: {begun / steps:.0f} operations, {seconds / steps * 1e3:.0f} ms: the "
        f"recorder takes {share:.3%} of it"
    )


def count_operations() -> tuple[int, int, float]:
    """Steps of a training in two processes, operations begun in them, and seconds of a processor that one took."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_model(root / "base", corpus(random.Random(0)))
        samples = make_dataset(root / "dataset")
        config = make_training(
            root, root / "base", samples, training={"epochs": 3, "batch": {"perDevice": 4, "global": 8}}
        )
        return run_in_processes(2, _train, config.model_dump_json())[0]


def _train(world: World, config_json: str) -> tuple[int, int, float]:
    from llava_api.run_config import RunConfig

    config = RunConfig.model_validate_json(config_json)
    began = time.process_time()
    numbers = train(config, world, Reporter(config), StopRequest())
    seconds = time.process_time() - began
    begun = sum(position.begun for position in flight.find_positions(flight.dump_recorders()))
    return (numbers.steps if numbers else 1), begun, seconds


def _start(size: str) -> float:
    environment = os.environ | {"TORCH_FR_BUFFER_SIZE": size, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.flight", "--operations"]
    told = subprocess.run(command, env=environment, capture_output=True, check=True, text=True).stdout
    # gloo writes there, too.
    return float(told.partition(MARK)[2].split()[0])


def _time_operations() -> float:
    """Microseconds of a processor that an operation takes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    number = torch.ones(1)
    for _ in range(100):
        dist.all_reduce(number)
    began = time.process_time()
    for _ in range(OPERATIONS):
        dist.all_reduce(number)
    return (time.process_time() - began) / OPERATIONS * 1e6


if __name__ == "__main__":
    main()
