"""Proves what the memory plan says of ZeRO against what DeepSpeed allocates, on two real processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llava_api.memory import Workload, plan_activations, plan_states
from llava_api.memory import states as states_module
from tests.trainer.memory_states import BUCKET_ELEMENTS, MODEL, make_work

WORLD_SIZE = 2
CASES = (
    "full:2:2", "full:2:2:v", "full:3:2", "full:3:2:v", "lora:2:2:o", "full:1:2", "full:1:2:v", "full:0:4", "full:2:4",
    "full:2:2:o", "full:0:2:o", "lora:3:2:op", "lora-frozen:2:2", "full-frozen:3:2", "lora-tower:2:2", "full-tower:3:2",
    "lora-tower:0:4",
)  # fmt: skip
"""Method, ZeRO stage, bytes a number, what is offloaded or overlaps (``make_work`` of memory_states). Who is compared
stands side by side: after a case with ZeRO-3, DeepSpeed's linear layer, which rounds in other places, stays."""
_ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, Any]]:
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


def on_device(moment: dict[str, int], work: Workload) -> int:
    """Bytes on the device. Under ZeRO-3 DeepSpeed puts much beside other tensors, and those do not say where they are.

    What is not offloaded is on the device then.
    """
    if work.zero_stage < 3:
        return moment["device"]
    return moment["device"] + moment["host"] - plan_states(MODEL, work).offloaded


@pytest.mark.parametrize("case", [case for case in CASES if case.endswith(("o", "p"))])
def test_what_is_offloaded_is_within_a_twentieth_of_the_plan(measured: dict[str, dict[str, Any]], case: str):
    work, found = make_work(case, WORLD_SIZE), measured[case]["steady"]
    states = plan_states(MODEL, work)
    # See on_device: this rank's weights are counted as well.
    weights = states.weights if work.zero_stage == 3 else 0
    assert states.offloaded + weights == pytest.approx(found["host"], rel=0.05)


@pytest.mark.parametrize("case", CASES)
def test_the_plan_is_what_deepspeed_allocates_or_a_little_more(
    measured: dict[str, dict[str, Any]], case: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(states_module, "BUCKET_ELEMENTS", BUCKET_ELEMENTS)
    work, found = make_work(case, WORLD_SIZE), measured[case]
    states, activations = plan_states(MODEL, work), plan_activations(MODEL, work)
    peak = states.steady + states.buffers + states.gathered + activations.total
    # Buckets are full, and all weights gathered, when activations are already gone: the plan counts them together.
    seen = on_device(found["peak"], work)
    assert 0.95 * seen < peak < 1.20 * seen
    seen_in_step = on_device(found["step"], work)
    assert seen_in_step - 0.05 * seen < states.steady + states.stepping < 1.20 * seen_in_step


@pytest.mark.parametrize("case", [case for case in CASES if case.endswith("v")])
def test_gradients_that_travel_while_others_are_computed_are_the_same(measured: dict[str, dict[str, Any]], case: str):
    overlapping, plain = measured[case], measured[case.removesuffix(":v")]
    assert overlapping["losses"] == plain["losses"]
    assert len(set(plain["losses"])) == 2, "of the first step and of the second"
    # From stage 2 on there is a second bucket; what a GPU frees late in stage 3 a CPU does not show.
    work = make_work(case, WORLD_SIZE)
    more = overlapping["peak"]["device"] - plain["peak"]["device"]
    assert more == (work.number_bytes * BUCKET_ELEMENTS if work.zero_stage == 2 else 0)
