"""torch's ``varlen_attn`` written out, for machines without a GPU: same arguments, each sample by itself."""

import sys
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

MODULE = "torch.nn.attention.varlen"


def varlen_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Softmax over scores, sample by sample; refuses what the kernel refuses, and what it would read past its end."""
    assert query.ndim == key.ndim == value.ndim == 3
    assert cu_seq_q is cu_seq_k, "cuDNN's kernel takes causal attention of packed samples only so"
    assert cu_seq_q.dtype == torch.int32
    assert window_size == (-1, 0), "causal"
    assert enable_gqa or query.shape[1] == key.shape[1]
    borders = cu_seq_q.tolist()
    assert (borders[0], borders[-1]) == (0, len(query))
    lengths = [end - begin for begin, end in pairwise(borders)]
    assert min(lengths) > 0
    assert max(lengths) == max_q == max_k
    groups = query.shape[1] // key.shape[1]
    pieces = []
    for begin, end in pairwise(borders):
        q, k, v = (states[begin:end].transpose(0, 1) for states in (query, key, value))
        k, v = (states.repeat_interleave(groups, dim=0) for states in (k, v))
        scores = q @ k.transpose(1, 2) * (query.shape[-1] ** -0.5 if scale is None else scale)
        later = torch.ones(end - begin, end - begin, dtype=torch.bool).triu(1)
        pieces.append((scores.masked_fill(later, -torch.inf).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(pieces)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put it where torch's own is imported from."""
    monkeypatch.setitem(sys.modules, MODULE, SimpleNamespace(varlen_attn=varlen_attn))
