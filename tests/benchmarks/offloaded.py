"""torch's fused AdamW on the CPU, which steps offloaded optimiser states, against DeepSpeed's cpu_adam.

``python -m tests.benchmarks.offloaded`` compiles cpu_adam on the spot, for this machine's processor (g++ and ninja; one
to two minutes). Both get what DeepSpeed gives the optimiser of offloaded states: a flat fp32 tensor a parameter group,
and its gradient in fp32 whatever the model computes in (cpu_adam takes no other: it reads the gradient in the
parameter's format). They take turns a step at a time; what is compared is the ratio within a turn. Each step moves
28 bytes a number, so the rate says how near it is to what the memory can do.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial

import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.ops.op_builder import CPUAdamBuilder

from tests.benchmarks.trainer import describe_machine

SIZES = (10_000_000, 100_000_000)
FUSED, DEEPSPEED, FOREACH = "torch, fused", "DeepSpeed, cpu_adam", "torch, foreach"
SETTINGS = {"lr": 2e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
BUILDERS = {
    FUSED: partial(torch.optim.AdamW, fused=True, **SETTINGS),
    DEEPSPEED: partial(DeepSpeedCPUAdam, **SETTINGS),
    FOREACH: partial(torch.optim.AdamW, foreach=True, **SETTINGS),
}
_BYTES_A_NUMBER = 28
"""Parameter, gradient and both moments read, all but the gradient written."""


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="turns that each side gets")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    print(describe_machine(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCH_EXTENSIONS_DIR"] = folder
        began = time.monotonic()
        CPUAdamBuilder().load(verbose=False)
        print(f"cpu_adam compiled in {time.monotonic() - began:.0f} s\n")
        print("| numbers | threads | | a step | GB/s | fused's time over its own, turn by turn |")
        print("| --- | --- | --- | --- | --- | --- |")
        for size in SIZES:
            for threads in arguments.threads:
                for line in compare(size, threads, arguments.rounds):
                    print(line, flush=True)


def compare(size: int, threads: int, rounds: int) -> Iterator[str]:
    """Lines of the table for tensors of ``size`` numbers."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    begin, gradient = torch.randn(size), torch.randn(size) / 100
    parameters = {name: torch.nn.Parameter(begin.clone()) for name in BUILDERS}
    steps = {}
    for name, build in BUILDERS.items():
        parameters[name].grad = gradient
        steps[name] = build([parameters[name]]).step
    seconds: dict[str, list[float]] = {name: [] for name in BUILDERS}
    order = random.Random(0)
    for turn in range(rounds + 2):
        for name in order.sample(list(BUILDERS), len(BUILDERS)):
            began = time.perf_counter()
            steps[name]()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - began)
    for name, taken in seconds.items():
        ratios = [fused / own for fused, own in zip(seconds[FUSED], taken, strict=True)]
        tenths = statistics.quantiles(ratios, n=10)
        median = statistics.median(taken)
        yield (
            f"| {size // 10**6} M | {threads} | {name} | {median * 1e3:.1f} ms | "
            f"{size * _BYTES_A_NUMBER / median / 1e9:.0f} | "
            f"{statistics.median(ratios):.2f} ({tenths[0]:.2f} to {tenths[-1]:.2f}) |"
        )


if __name__ == "__main__":
    main()
