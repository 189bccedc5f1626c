"""Communication that overlaps with the backward pass changes nothing that is learned, on the streams of real GPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.benchmarks.gpu_model import write_model
from tests.gpu.overlapping import make_bench
from tests.ports import free_port

pytestmark = [pytest.mark.gpu, pytest.mark.needs_gpus(2)]
_ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("stage", [2, 3])
def test_overlapping_communication_learns_the_same(tmp_path: Path, stage: int):
    write_model(tmp_path / "base", make_bench(torch.device("cuda", 0)))
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-W", "ignore", "-m", "tests.gpu.overlapping", str(tmp_path), str(stage)]
    ranks = [
        subprocess.Popen(
            command, cwd=_ROOT, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        output = ranks[0].communicate(timeout=300)[0]
        assert [rank.wait(60) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    losses = json.loads(next(line for line in output.splitlines() if line.startswith('{"False"')))
    assert losses["True"] == pytest.approx(losses["False"], rel=1e-3)
    assert losses["False"][-1] < losses["False"][0]
