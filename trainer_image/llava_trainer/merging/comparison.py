"""How alike two tensors are, and two models' logits. Pure functions; what they hold beside their arguments is bounded.

Rounding to a number format keeps order. So the values that come of rounding anything within ``noise`` of an exact one
are those between the two rounded ends, and without noise (0) the comparison is bit for bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

_CHUNK_ELEMENTS = 2**22
"""Numbers compared at a time: 16 MiB in fp32."""


@dataclass(frozen=True, kw_only=True)
class TensorComparison:
    """How a tensor on the disk compares with the exact one in fp32."""

    num_different: int
    """Values that are not the rounded value of anything within the noise."""
    num_varying: int
    """Values that are, but not of the exact value itself."""
    largest: float
    """Largest difference of a value from the exact one."""


@torch.no_grad()
def compare_and_round(found: torch.Tensor, exact: torch.Tensor, noise: float) -> TensorComparison:
    """Compare ``found`` with ``exact``, both of one shape and contiguous, and round ``exact`` in place.

    Args:
        found: as it was stored, in its number format.
        exact: in fp32.
        noise: how far from the exact value what was rounded may be, in units of the largest exact one.
    """
    assert found.shape == exact.shape
    found, exact = found.reshape(-1), exact.view(-1)
    if not exact.numel():
        return TensorComparison(num_different=0, num_varying=0, largest=0.0)
    allowed = noise * max(abs(end.item()) for end in exact.aminmax())
    different = varying = 0
    largest = 0.0
    for mine, wanted in zip(torch.split(found, _CHUNK_ELEMENTS), torch.split(exact, _CHUNK_ELEMENTS), strict=True):
        rounded = wanted.to(mine.dtype)
        is_other = mine != rounded
        if is_other.any():
            low, high = (wanted - allowed).to(mine.dtype), (wanted + allowed).to(mine.dtype)
            outside = int((~((low <= mine) & (mine <= high))).sum())
            different += outside
            varying += int(is_other.sum()) - outside
            largest = max(largest, (mine.float() - wanted).abs().max().item())
        wanted.copy_(rounded)
    return TensorComparison(num_different=different, num_varying=varying, largest=largest)


def largest_difference(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> float:
    """Largest difference of two lists of logits, (tokens, vocabulary) each; not a number if any is not."""
    return torch.stack([(a - b).abs().max() for a, b in zip(first, second, strict=True)]).max().item()


def largest_size(logits: Sequence[torch.Tensor]) -> float:
    """Size of the largest logit."""
    return max(one.abs().max().item() for one in logits)


def kl_divergences(exact: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> torch.Tensor:
    """KL(exact || other) of what is predicted next, in nats, for each token.

    Args:
        exact: logits, (tokens, vocabulary) each.
        other: the same of another model.

    Returns:
        (tokens of all,), at least 0.
    """
    divergences = []
    for a, b in zip(exact, other, strict=True):
        known, guessed = a.log_softmax(dim=-1), b.log_softmax(dim=-1)
        divergences.append((known.exp() * (known - guessed)).sum(dim=-1).clamp_min_(0))
    return torch.cat(divergences)
