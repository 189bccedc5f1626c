"""The count of operations, against torch's own counter."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode

from llava_api.model_facts import ModelFacts, TransformerShape
from llava_api.spec import LORA_TARGETS, Lora
from llava_trainer.data.sample_file import SampleSizes
from llava_trainer.model.learning import train_projector, train_whole
from llava_trainer.model.lora import add_adapter
from llava_trainer.model.objective import SupervisedLoss
from llava_trainer.training.flops import count_flops, peak_of, positions_of_rows, positions_of_samples
from tests.trainer.checkpoints import build_llava

RANK = 4
BOTH = (False, True)
TINY = ModelFacts(
    language_model=TransformerShape(layers=2, hidden=32, intermediate=48, heads=4, key_value_heads=2),
    vocabulary=64,
    vision_tower=TransformerShape(layers=3, hidden=16, intermediate=24, heads=2, key_value_heads=2),
    image_size_px=28, patch_size_px=14, tokens_per_image=4, feature_layer=(-2,), feature_strategy="default",
)  # fmt: skip
LLAVA_7B = ModelFacts(
    language_model=TransformerShape(layers=32, hidden=4096, intermediate=11008, heads=32, key_value_heads=32),
    vocabulary=32_064,
    vision_tower=TransformerShape(layers=24, hidden=1024, intermediate=4096, heads=16, key_value_heads=16),
    image_size_px=336, patch_size_px=14, tokens_per_image=576, feature_layer=(-2,), feature_strategy="default",
)  # fmt: skip


FROZEN, TOWER = {"learns_projector": False}, {"learns_tower": True}
WAYS: list[tuple[str, bool, bool, dict[str, Any]]] = [
    *((method, checkpointing, False, {}) for method, checkpointing in product(("lora", "full", "projector"), BOTH)),
    ("lora", True, True, {}),
    ("full", False, True, {}),
    # What else learns, and below what nothing does.
    *(
        (method, checkpointing, checkpointing, beside)
        for method, checkpointing in product(("lora", "full"), BOTH)
        for beside in (FROZEN, TOWER, FROZEN | TOWER)
    ),
    ("lora", False, False, {"targets": ("q_proj",)}),
    ("lora", True, True, {"targets": ("k_proj", "down_proj")}),
    *(("lora", False, fused, {"targets": (target,)} | FROZEN) for target, fused in product(LORA_TARGETS, BOTH)),
    ("lora", True, True, {"targets": ("q_proj", "v_proj", "up_proj")} | FROZEN),
    ("lora", True, False, {"targets": ("down_proj",)} | FROZEN),
    ("lora", True, True, {"targets": ("down_proj",)} | FROZEN),
    ("lora", False, False, {"targets": ("v_proj",)} | FROZEN | TOWER),
]


@pytest.mark.parametrize(("method", "checkpointing", "fused", "beside"), WAYS)
def test_operations_are_those_that_torch_counts(method: str, checkpointing: bool, fused: bool, beside: dict[str, Any]):
    llava = build_llava()
    # Only what has a backward pass: torch counts a fused kernel's forward pass as it counts products.
    llava.set_attn_implementation("sdpa" if fused else "eager")
    learning = {name: value for name, value in beside.items() if name != "targets"}
    if method == "lora":
        lora = Lora(rank=RANK, alpha=8, dropout=0.0, targets=beside.get("targets", LORA_TARGETS))
        add_adapter(llava, lora, **learning)
    elif method == "full":
        train_whole(llava, **learning)
    else:
        train_projector(llava)
    module = SupervisedLoss(llava, gradient_checkpointing=checkpointing).train()
    ids = torch.randint(6, 60, (2, 12))
    ids[:, 2:6] = 5
    labels = torch.full_like(ids, -100)
    labels[:, 7:] = ids[:, 7:]
    # Else the last product of a layer is computed again or not, after what DeepSpeed has done to linear layers.
    with set_checkpoint_early_stop(False), FlopCounterMode(display=False) as counter:
        loss = module(input_ids=ids, labels=labels, pixel_values=torch.randn(2, 3, 28, 28))
        torch.autograd.backward(loss)
    flops = count_flops(
        TINY, method, positions_of_rows([12, 12], images=2, supervised=10), rank=RANK,
        gradient_checkpointing=checkpointing, fused_attention=fused, **beside,
    )  # fmt: skip
    assert flops.hardware == counter.get_total_flops()


def test_quantised_weights_multiply_as_whole_ones_do():
    positions = positions_of_rows([100], images=1, supervised=10)
    assert count_flops(TINY, "qlora", positions, rank=RANK) == count_flops(TINY, "lora", positions, rank=RANK)


@pytest.mark.parametrize("beside", [{}, FROZEN, TOWER], ids=str)
def test_what_is_done_twice_is_no_part_of_the_model(beside: dict[str, Any]):
    positions = positions_of_rows([100, 50], images=1, supervised=10)
    plain = count_flops(TINY, "lora", positions, rank=RANK, fused_attention=False, **beside)
    again = count_flops(TINY, "lora", positions, rank=RANK, gradient_checkpointing=True, **beside)
    assert plain.recomputed == 0
    assert again.model == plain.model == plain.hardware < again.hardware


def test_filling_is_computed_and_is_no_part_of_the_samples():
    sizes = SampleSizes(tokens=np.array([100, 30, 7]), images=np.array([1, 0, 2]), supervised=np.array([20, 5, 1]))
    real = positions_of_samples(sizes, [0, 2])
    assert real == positions_of_rows([100, 7], images=3, supervised=21)
    assert (real.tokens, real.pairs) == (107, 100**2 + 7**2)
    filled = positions_of_rows([100, 100], images=3, supervised=21)
    assert count_flops(TINY, "full", real).model < count_flops(TINY, "full", filled).model


def test_llava_7b_takes_what_was_counted_on_the_real_one():
    positions = positions_of_rows([2048] * 16, images=0, supervised=16 * 512)
    counted = count_flops(LLAVA_7B, "lora", positions, rank=128, gradient_checkpointing=True)
    without = count_flops(LLAVA_7B, "lora", positions, rank=128)
    assert without.hardware / positions.tokens == pytest.approx(31.7e9, rel=0.01)
    assert counted.hardware / positions.tokens == pytest.approx(46.3e9, rel=0.01)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A10", 125e12), ("NVIDIA A10G", 70e12), ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12), ("NVIDIA B200", 2250e12), ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12), ("NVIDIA L4", 121e12), ("NVIDIA L40", 181e12), ("NVIDIA L40S", 362e12),
        ("NVIDIA GB200", None), ("NVIDIA RTX A1000", None), ("NVIDIA GeForce GTX 970", None),
    ],
)  # fmt: skip
def test_cards_are_known_by_their_names(name: str, peak: float | None):
    assert peak_of(name) == peak
