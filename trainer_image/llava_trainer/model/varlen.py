"""Attention over packed rows by torch's own ``varlen_attn``: flash attention that ends at the borders between samples.

PyTorch's wheel brings the kernels along for GPUs of compute capability 8.0 and newer, in bf16 and fp16 and for heads
of up to 256 numbers that are a multiple of 8; there is none for CPUs. ``torch.nn.attention.varlen`` loads torch's
compiler, which takes seconds, so that it is imported only where it is used.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from transformers import LlavaConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from llava_trainer.model.flash import first_line

_TRIED_LENGTHS = (5, 3)
"""Of two samples in one row: borders and the causal diagonal both count."""


@dataclass(frozen=True, kw_only=True)
class Heads:
    """What a kernel has to know of a model's attention."""

    query: int
    key_value: int
    size: int
    """Numbers of each."""


def heads_of(config: LlavaConfig) -> Heads:
    """Those of the language model."""
    text = config.text_config
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Heads(query=text.num_attention_heads, key_value=text.num_key_value_heads, size=size)


def varlen_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it (``AttentionInterface``): causal, and within each packed sample only.

    Args:
        module: the layer; nothing of it is used where samples are packed.
        query: (rows, heads, length, size), bf16 or fp16.
        key: (rows, key-value heads, length, size).
        value: as ``key``.
        attention_mask: none is needed; only rows of one sample each may have one.
        scaling: of the scores.
        cu_seq_lens_q: int32 (samples + 1,), where each sample begins in all rows laid end to end, and their end; None
            where every row is one sample, as in held-out batches, or in the vision tower.
        max_length_q: of the longest sample.
        others: what transformers hands to every implementation.

    Returns:
        (rows, length, heads, size), and no weights.
    """
    if cu_seq_lens_q is None:
        attended: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **others
        )
        return attended
    assert max_length_q is not None
    rows, heads, length, _ = query.shape
    flat_query, flat_key, flat_value = (states.transpose(1, 2).flatten(0, 1) for states in (query, key, value))
    packed = attend_packed(flat_query, flat_key, flat_value, cu_seq_lens_q, max_length_q, scale=scaling)
    return packed.view(rows, length, heads, -1), None


def attend_packed(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_lens: torch.Tensor,
    max_length: int,
    *,
    scale: float | None,
) -> torch.Tensor:
    """Causal attention within each sample: (positions, heads, size) each, key and value with fewer heads or as many."""
    from torch.nn.attention.varlen import varlen_attn

    # The same tensor twice: by that cuDNN's kernel knows that queries and keys have the same lengths.
    attended = varlen_attn(
        query, key, value, cu_seq_lens, cu_seq_lens, max_length, max_length,
        scale=scale, window_size=(-1, 0), enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    assert isinstance(attended, torch.Tensor), "log-sum-exp was not asked for"
    return attended


@cache
def find_varlen_fault(device: torch.device, dtype: torch.dtype, heads: Heads) -> str | None:
    """Call the kernel on a few numbers, forward and backward; what it says where it does not run there, else None."""
    positions = sum(_TRIED_LENGTHS)
    try:
        query, key, value = (
            torch.zeros(positions, number, heads.size, dtype=dtype, device=device, requires_grad=True)
            for number in (heads.query, heads.key_value, heads.key_value)
        )
        borders = torch.tensor([0, _TRIED_LENGTHS[0], positions], dtype=torch.int32, device=device)
        attended = attend_packed(query, key, value, borders, max(_TRIED_LENGTHS), scale=None)
        torch.autograd.backward(attended.sum())
        if device.type == "cuda":
            # What a kernel fails of is told later.
            torch.cuda.synchronize(device)
    except (ImportError, RuntimeError, ValueError) as error:
        return first_line(error)
    return None
