"""Proves what the memory plan says of ZeRO against what DeepSpeed allocates, on two real processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from llava_api.memory import plan_activations, plan_states
from tests.trainer.memory_states import MODEL, make_work

WORLD_SIZE = 2
CASES = ("full:2:2", "full:3:2", "lora:2:2", "full:1:2", "full:0:4")
"""Method, ZeRO stage, bytes a number."""
_ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, int]]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    common = {**os.environ, "WORLD_SIZE": str(WORLD_SIZE), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, "-W", "ignore", "-m", "tests.trainer.memory_states", *CASES]
    ranks = [
        subprocess.Popen(
            command, cwd=_ROOT, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(WORLD_SIZE)
    ]  # fmt: skip
    try:
        outputs = [rank.communicate(timeout=300)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * WORLD_SIZE, outputs[0][-4000:]
    lines = [json.loads(line) for line in outputs[0].splitlines() if line.startswith('{"case"')]
    return {line["case"]: line for line in lines}


@pytest.mark.parametrize("case", CASES)
def test_what_deepspeed_allocates_is_within_a_tenth_of_the_plan(measured: dict[str, dict[str, int]], case: str):
    method, stage, number_bytes = case.split(":")
    work = make_work(method, int(stage), int(number_bytes), WORLD_SIZE)
    states, activations = plan_states(MODEL, work), plan_activations(MODEL, work)
    peak = states.steady + states.buffers + states.gathered + activations.total
    assert peak == pytest.approx(measured[case]["peak"], rel=0.10)
