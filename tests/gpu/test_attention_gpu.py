"""torch's varlen_attn itself, against the reference that stands for it on CPUs; and what ``auto`` takes here."""

import pytest
import torch
from torch.nn.attention.varlen import varlen_attn

from llava_trainer.data.collate import Batch, collate
from llava_trainer.model.attention import CAUSAL_SDPA, FLASH, VARLEN, register_attention, resolve_attention
from llava_trainer.model.flash import find_flash_fault, has_flash_attention
from llava_trainer.model.learning import train_whole
from llava_trainer.model.objective import SupervisedLoss
from llava_trainer.model.varlen import Heads, attend_packed, find_varlen_fault
from tests.trainer import reference_varlen
from tests.trainer.checkpoints import build_llava
from tests.trainer.test_attention import PAD, make_items

CUDA = torch.device("cuda", 0)
pytestmark = pytest.mark.gpu
LENGTHS = (700, 1, 33, 290)


def make_states(heads: Heads, device: str | torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(sum(LENGTHS), number, heads.size) for number in (heads.query, heads.key_value, heads.key_value)]
    # Rounded first, so that both compute from the same numbers.
    drawn = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    return [states.to(device, dtype).requires_grad_() for states in drawn]


def borders(device: str | torch.device) -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32, device=device)


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize(
    "heads",
    [
        Heads(query=4, key_value=4, size=128),
        Heads(query=4, key_value=2, size=128),
        Heads(query=2, key_value=1, size=64),
    ],
    ids=str,
)
def test_the_kernel_computes_what_the_reference_does(heads: Heads, scale: float | None):
    query, key, value = make_states(heads, CUDA, torch.bfloat16)
    attended = attend_packed(query, key, value, borders(CUDA), max(LENGTHS), scale=scale)
    upstream = torch.randn(attended.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    attended.backward(upstream.to(CUDA))
    reference = make_states(heads, "cpu", torch.float32)
    cu_seq_lens = borders("cpu")
    expected = reference_varlen.varlen_attn(
        *reference, cu_seq_lens, cu_seq_lens, max(LENGTHS), max(LENGTHS), scale=scale, window_size=(-1, 0),
        enable_gqa=True,
    )  # fmt: skip
    expected.backward(upstream.float())
    pairs = [(attended, expected), *((a.grad, b.grad) for a, b in zip((query, key, value), reference, strict=True))]
    for ours, theirs in pairs:
        error = (ours.float().cpu() - theirs).norm() / theirs.norm()
        assert error < 0.02, "bf16 has 8 bits"


def test_the_kernel_ends_at_borders():
    heads = Heads(query=4, key_value=4, size=128)
    query, key, value = make_states(heads, CUDA, torch.bfloat16)
    before = attend_packed(query, key, value, borders(CUDA), max(LENGTHS), scale=None).detach()
    with torch.no_grad():
        value[: LENGTHS[0]] = 100.0
    after = attend_packed(query, key, value, borders(CUDA), max(LENGTHS), scale=None).detach()
    assert torch.equal(before[LENGTHS[0] :], after[LENGTHS[0] :])
    assert not torch.equal(before[: LENGTHS[0]], after[: LENGTHS[0]])


def test_what_the_kernel_cannot_do_is_found_out_before_training():
    assert find_varlen_fault(CUDA, torch.bfloat16, Heads(query=32, key_value=32, size=128)) is None
    for dtype, heads in (
        (torch.bfloat16, Heads(query=2, key_value=2, size=12)),
        (torch.bfloat16, Heads(query=2, key_value=2, size=512)),
        (torch.float32, Heads(query=2, key_value=2, size=64)),
    ):
        assert find_varlen_fault(CUDA, dtype, heads)


def test_automatic_attention_needs_nothing_that_is_not_in_pytorch():
    heads = Heads(query=32, key_value=32, size=128)
    flash = has_flash_attention() and find_flash_fault(CUDA) is None
    assert resolve_attention("auto", CUDA, torch.bfloat16) == (FLASH if flash else CAUSAL_SDPA)
    assert resolve_attention("auto", CUDA, torch.bfloat16, packed=heads) == (FLASH if flash else VARLEN)
    assert varlen_attn.__module__ == reference_varlen.MODULE


def learn(attention: str, batch: Batch) -> tuple[float, torch.Tensor]:
    register_attention()
    llava = build_llava().to(CUDA, torch.bfloat16)
    llava.set_attn_implementation(attention)
    train_whole(llava)
    module = SupervisedLoss(llava, gradient_checkpointing=True).train()
    on_device = {
        name: value.to(CUDA, torch.bfloat16 if value.is_floating_point() else None)
        if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }  # fmt: skip
    loss = module(**on_device)
    torch.autograd.backward(loss)
    gradients = [parameter.grad.float().flatten() for parameter in module.parameters() if parameter.grad is not None]
    return loss.item(), torch.cat(gradients)


@pytest.mark.parametrize("attention", [CAUSAL_SDPA, VARLEN])
def test_padded_rows_without_a_mask_learn_what_written_out_attention_learns(attention: str):
    batch = collate(make_items(), PAD)
    loss, gradients = learn(attention, batch)
    expected_loss, expected = learn("eager", batch)
    assert loss == pytest.approx(expected_loss, rel=1e-2)
    assert torch.cosine_similarity(gradients, expected, dim=0) > 0.995


def test_padded_rows_take_the_flash_kernel():
    query = torch.randn(2, 4, 256, 64, device=CUDA, dtype=torch.bfloat16, requires_grad=True)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        # As transformers calls it without a mask; with one this kernel would be refused.
        torch.nn.functional.scaled_dot_product_attention(query, query, query, attn_mask=None, is_causal=True)
