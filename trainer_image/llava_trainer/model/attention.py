"""Which attention a model is trained with: the one place that chooses, and that registers it with transformers.

Rows that are filled up on the right need no mask: attention is causal, so that no token sees what stands behind it, and
nobody looks at what the filling itself has seen. Without a mask PyTorch's sdpa takes its flash kernel, and no
rows x length² numbers exist. Packed rows need to end attention at the borders between samples, which flash-attn and
torch's ``varlen_attn`` do by themselves; the others are given a mask.

transformers makes a mask, or reads a tensor to find that none is needed, for each implementation that it has a maker of
masks for. What is registered here has none, so that no GPU is waited for. It is for training alone: generation fills up
on the left, and needs its mask.
"""

import logging
from typing import Any, Literal

import torch
from transformers import AttentionInterface, LlavaConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from llava_trainer.model.flash import find_flash_fault, has_flash_attention
from llava_trainer.model.varlen import Heads, find_varlen_fault, varlen_attention_forward

Attention = Literal["auto", "flash_attention_2", "sdpa", "eager"]
"""``training.attention``."""

FLASH = "flash_attention_2"
CAUSAL_SDPA = "causal_sdpa"
"""PyTorch's sdpa without a maker of masks."""
VARLEN = "varlen_attn"
"""Packed rows by torch's kernel of this name, all else as ``CAUSAL_SDPA``."""
_SHOWN = {CAUSAL_SDPA: "sdpa"}
_AMPERE = (8, 0)
"""The oldest compute capability that both flash kernels run on."""

logger = logging.getLogger(__name__)


def resolve_attention(
    attention: Attention, device: torch.device, dtype: torch.dtype, *, packed: Heads | None = None
) -> str:
    """Implementation to ask transformers for; ``register_attention`` makes it known there.

    ``auto`` takes flash-attn where it is installed and runs; else ``varlen_attn`` for packed rows where that runs; else
    sdpa. Both compute in bf16 and fp16 only.

    Args:
        attention: what is asked for.
        device: where the model is trained.
        dtype: number format of the model.
        packed: the model's heads where rows are packed; None where each row is one sample.
    """
    if attention == "sdpa":
        return CAUSAL_SDPA
    if attention != "auto":
        return attention
    if device.type != "cuda" or dtype == torch.float32 or torch.cuda.get_device_capability(device) < _AMPERE:
        return CAUSAL_SDPA
    if has_flash_attention():
        fault = find_flash_fault(device)
        if fault is None:
            return FLASH
        logger.warning("attention is not flash-attn's: it is installed, but does not run on this GPU: %s", fault)
    if packed is not None:
        fault = find_varlen_fault(device, dtype, packed)
        if fault is None:
            return VARLEN
        logger.warning("attention is sdpa with masks: torch's varlen_attn does not run on this GPU: %s", fault)
    return CAUSAL_SDPA


def register_attention() -> None:
    """Make what is ours known to transformers; any number of times."""
    AttentionInterface.register(CAUSAL_SDPA, sdpa_attention_forward)
    AttentionInterface.register(VARLEN, varlen_attention_forward)


def attention_of(config: LlavaConfig) -> str:
    """Name of the implementation that a model's language model has, to be told to a person."""
    implementation: str = config.text_config._attn_implementation
    return _SHOWN.get(implementation, implementation)


def packing_arguments(
    config: LlavaConfig, position_ids: torch.Tensor, cu_seq_lens: torch.Tensor | None, max_seq_len: int | None
) -> dict[str, Any]:
    """What the language model is called with so that packed samples do not see each other.

    Args:
        config: the model's.
        position_ids: (rows, length), beginning at 0 with each sample, and where a row is filled up.
        cu_seq_lens: int32 (samples + 1,): where each begins in all rows laid end to end, and their end. Found by
            ``position_ids`` where left out, for which a GPU has to be waited for.
        max_seq_len: tokens of the longest sample; as ``cu_seq_lens``.
    """
    implementation = config.text_config._attn_implementation
    if implementation == CAUSAL_SDPA:
        return {"position_ids": position_ids, "attention_mask": packing_mask(position_ids)}
    if implementation not in (FLASH, VARLEN):
        # transformers tells samples apart by this, where no mask is given.
        return {"position_ids": position_ids}
    if cu_seq_lens is None or max_seq_len is None:
        begins = (position_ids.flatten() == 0).nonzero().squeeze(1)
        cu_seq_lens = torch.cat((begins, begins.new_tensor([position_ids.numel()]))).to(torch.int32)
        max_seq_len = int(cu_seq_lens.diff().max())
    borders = {"cu_seq_lens_q": cu_seq_lens, "cu_seq_lens_k": cu_seq_lens}
    return {"position_ids": position_ids, **borders, "max_length_q": max_seq_len, "max_length_k": max_seq_len}


def packing_mask(position_ids: torch.Tensor) -> torch.Tensor:
    """Who may see whom in packed rows: bool (rows, 1, length, length), queries before keys."""
    length = position_ids.shape[1]
    samples = (position_ids == 0).cumsum(1)
    mask = samples[:, :, None] == samples[:, None, :]
    mask &= torch.ones(length, length, dtype=torch.bool, device=mask.device).tril_()
    return mask[:, None]
