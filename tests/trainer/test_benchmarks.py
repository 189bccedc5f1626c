"""What the benchmarks calculate by themselves: operations against torch's counter, lengths, filling."""

import pytest
import torch
from torch.utils.checkpoint import set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode

from llava_api.memory import Workload
from llava_api.model_facts import ModelFacts, TransformerShape
from llava_api.spec import Lora
from llava_trainer.model.lora import add_adapter
from llava_trainer.model.objective import SupervisedLoss
from tests.benchmarks.flops import BACKWARD_PRODUCTS_EAGER, count_flops, peak_of
from tests.benchmarks.mixture import draw_shapes, encode_shape, max_length
from tests.trainer.checkpoints import build_llava

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


@pytest.mark.parametrize("checkpointing", [False, True])
def test_operations_are_those_that_torch_counts(checkpointing: bool):
    llava = build_llava()
    llava.set_attn_implementation("eager")
    add_adapter(llava, Lora(rank=4, alpha=8, dropout=0.0))
    module = SupervisedLoss(llava, gradient_checkpointing=checkpointing).train()
    ids = torch.randint(6, 60, (2, 12))
    ids[:, 2:6] = 5
    labels = torch.full_like(ids, -100)
    labels[:, 7:] = ids[:, 7:]
    # Else the last product of a layer is computed again or not, after what DeepSpeed has done to linear layers.
    with set_checkpoint_early_stop(False), FlopCounterMode(display=False) as counter:
        loss = module(
            input_ids=ids, labels=labels, attention_mask=torch.ones_like(ids), pixel_values=torch.randn(2, 3, 28, 28)
        )
        torch.autograd.backward(loss)
    work = Workload(
        method="lora", rows=2, length=12, pictures=2, supervised=10, rank=4, gradient_checkpointing=checkpointing
    )
    assert count_flops(TINY, work, backward_products=BACKWARD_PRODUCTS_EAGER).hardware == counter.get_total_flops()


def test_llava_7b_takes_what_was_counted_on_the_real_one():
    work = Workload(method="lora", rows=16, length=2048, pictures=0, supervised=16 * 512, rank=128)
    flops = count_flops(LLAVA_7B, work)
    assert flops.model / work.tokens == pytest.approx(31.7e9, rel=0.01)
    assert flops.hardware / work.tokens == pytest.approx(46.3e9, rel=0.01)


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


def test_the_mixture_shrinks_in_proportion_and_stays_as_it_is():
    whole, quarter = draw_shapes(512, seed=0), draw_shapes(512, seed=0, image_tokens=144)
    assert whole == draw_shapes(512, seed=0)
    assert max(shape.tokens for shape in whole) <= max_length() == 2048
    assert max_length(144) == 512
    for large, small in zip(whole, quarter, strict=True):
        assert (large.image_tokens == 576) == (small.image_tokens == 144)
        assert small.text_tokens == pytest.approx(large.text_tokens / 4, abs=4)
    # LLaVA's 665K: 6 % without an image, 60 % of a padded random batch of 16 is real.
    assert 0.04 < sum(shape.image_tokens == 0 for shape in whole) / 512 < 0.09


def test_a_shape_becomes_a_sample_as_long():
    (shape,) = draw_shapes(1, seed=3, image_tokens=144)
    encoded = encode_shape(shape, image_token_id=5, first_id=10, last_id=20, seed=0)
    assert encoded.num_tokens == shape.tokens
    assert encoded.input_ids.count(5) == shape.image_tokens == 144
    assert encoded.num_supervised == shape.answer_tokens
