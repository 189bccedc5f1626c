"""What the memory plan says, against what PyTorch's allocator has handed out on a real GPU.

The modules are those of the trace that proves the plan on a CPU: LLaVA 7B's widths with eight layers, random weights.
What ZeRO keeps besides has its own proof (tests/trainer/test_memory_states.py).
"""

import gc

import pytest
import torch

from llava_api.memory import Workload, plan_activations, plan_states
from tests.trainer.memory_shapes import make_shape
from tests.trainer.memory_trace import build_module, forget_gradient

pytestmark = pytest.mark.gpu

MODEL = make_shape(8, tower_layers=24)
DEVICE = "cuda"
WORKS = [
    ("lora", {}),
    ("lora", {"dropout": 0.0}),
    ("lora", {"rows": 2, "pictures": 2, "gradient_checkpointing": False}),
    ("lora", {"rows": 2, "pictures": 2, "gradient_checkpointing": False, "masked": True}),
    ("full", {"rows": 4, "pictures": 4}),
    ("projector", {"length": 640}),
    ("qlora", {}),
]


def make_work(method: str, changes: dict) -> Workload:
    whole = {"method": method, "rows": 8, "length": 2048, "pictures": 8, "supervised": 4096, "zero_stage": 0}
    return Workload(**{**whole, **changes})


@pytest.mark.parametrize(("method", "changes"), WORKS)
def test_the_plan_is_within_a_tenth_of_what_a_gpu_hands_out(method: str, changes: dict):
    work = make_work(method, changes)
    torch.manual_seed(0)
    with torch.device("cpu" if method == "qlora" else DEVICE):
        module = build_module(MODEL, work)
    # bitsandbytes quantises on the way to the device.
    module.to(DEVICE)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(forget_gradient)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    module(**_batch(work)).backward()
    peak = torch.cuda.max_memory_allocated() - before
    assert before == pytest.approx(plan_states(MODEL, work).weights, rel=0.02)
    assert peak == pytest.approx(plan_activations(MODEL, work).total, rel=0.10)


def _batch(work: Workload) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, MODEL.vocabulary, (work.rows, work.length), device=DEVICE)
    # 0 is the image's token in this shape.
    ids[:, : MODEL.tokens_per_image] = 0
    # Packed, so that attention is given a mask as the plan has it.
    positions = torch.arange(work.length // 2, device=DEVICE).repeat(work.rows, 2)
    side = MODEL.image_size_px
    return {
        "input_ids": ids,
        "labels": ids,
        "position_ids": positions if work.masked else None,
        "pixel_values": torch.randn(work.pictures, 3, side, side, device=DEVICE, dtype=torch.bfloat16),
        "predicting": torch.arange(work.supervised, device=DEVICE) + MODEL.tokens_per_image,
    }
