"""``make bench-trainer ARGS=--gpu``: LLaVA 7B's shape with random weights on this machine's GPUs.

What runs is the trainer's own: model loading, objective, DeepSpeed engine, with the recipe's LoRA of rank 128 in bf16.
Operations are counted by ``llava_trainer.training.flops``: MFU by what the samples need, HFU by what is computed.
"""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from llava_trainer.data.model_facts import read_model_facts
from llava_trainer.gang.world import World, join
from llava_trainer.training.flops import peak_of
from tests.benchmarks.gpu_mixture import mixture_table
from tests.benchmarks.gpu_model import Bench, write_model
from tests.benchmarks.gpu_rows import rows_table
from tests.trainer.trainings import environment_of_one

GOAL = "On one H200 the goal is 45 % MFU without recomputation."
_ROOT = Path(__file__).parents[2]


def tables() -> Iterator[str]:
    """All tables, on the first GPU; with several, what overlapping communication gains on all of them."""
    with tempfile.TemporaryDirectory() as folder:
        with environment_of_one(_free_port()):
            yield from tables_on(Bench(), join("cuda"), Path(folder))
        if torch.cuda.device_count() > 1:
            yield ""
            yield from _overlap_table(Path(folder))


def tables_on(bench: Bench, world: World, root: Path) -> Iterator[str]:
    """The tables of one device, the model written into ``root``/base."""
    write_model(root / "base", bench)
    facts = read_model_facts(root / "base")
    name = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else "a CPU"
    peak = peak_of(name)
    known = f"{peak / 1e12:.0f} TFLOP/s in dense bf16" if peak else "the card's peak is not known"
    yield f"{name} ({known}), CUDA {torch.version.cuda}"
    yield ""
    yield from rows_table(root, bench, world, facts, peak)
    yield GOAL
    yield ""
    yield from mixture_table(root, bench, world, facts, peak)


def _overlap_table(root: Path) -> Iterator[str]:
    """In processes of their own, one a GPU: this one has its process group already."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.overlap", str(root)]
    count = torch.cuda.device_count()
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    ranks = [
        subprocess.Popen(
            command, cwd=_ROOT, env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE if rank == 0 else None, text=True,
        )
        for rank in range(count)
    ]  # fmt: skip
    output = ranks[0].communicate()[0]
    yield from output.splitlines()
    if any(rank.wait() for rank in ranks):
        yield "a process of this table failed: see above"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
