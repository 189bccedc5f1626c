"""Cross-entropy of the language model's head, a piece at a time: the logits of a whole batch are never held.

At LLaVA's vocabulary of 32,064 the logits of 4,096 tokens take 0.5 GB in fp32, and the plain way holds them three
times: as they come out, as log-probabilities, and as gradients. Here a piece of them is turned into its share of the
loss and of the gradients at once, so that only gradients of the hidden states (and of the weight, where it is trained)
are kept. Nothing is computed twice.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 2**24
"""Logits held at a time: 64 MiB in fp32, 523 tokens at a vocabulary of 32,064. Fewer would leave a GPU waiting for the
weight to be read, more would only take memory."""


def summed_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of -log p(target) over tokens, with logits = hidden @ weight.T.

    Args:
        hidden: (tokens, width), of the positions that are learned only.
        weight: (vocabulary, width), the head's; its gradient is computed only if it asks for one.
        targets: (tokens,) ids.

    Returns:
        Scalar in fp32, zero without tokens; and what it is the sum of, (tokens,) in fp32, without a graph.
    """
    loss, losses = _SummedCrossEntropy.apply(hidden, weight, targets)
    return loss, losses


@torch.no_grad()
def judge_tokens(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """How well each target is predicted; nothing is learned from it.

    Args:
        hidden: (tokens, width).
        weight: (vocabulary, width), the head's.
        targets: (tokens,) ids.

    Returns:
        (tokens, 2) in fp32: -log p(target), and 1 where the target is the likeliest token, else 0. Of several that are
        equally likely the first counts, as in greedy decoding.
    """
    size = max(1, CHUNK_ELEMENTS // weight.shape[0])
    pieces = [hidden.new_zeros(0, 2, dtype=torch.float32)]
    for begin in range(0, hidden.shape[0], size):
        logits = (hidden[begin : begin + size] @ weight.T).float()
        goals = targets[begin : begin + size]
        loss = logits.logsumexp(dim=1) - logits.gather(1, goals[:, None]).squeeze(1)
        pieces.append(torch.stack((loss, (logits.argmax(dim=1) == goals).float()), dim=1))
    return torch.cat(pieces)


def add_loss(head: nn.Linear) -> None:
    """Make ``head(hidden, targets)`` the sum above with its parts, and ``each=True`` what is known of each token.

    ``head(hidden)`` gives logits as ever. The loss is computed inside the head's own call because DeepSpeed's ZeRO-3
    has its weight at hand only there.
    """
    logits_of = head.forward

    def forward(
        hidden: torch.Tensor, targets: torch.Tensor | None = None, *, each: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if targets is None:
            return logits_of(hidden)
        compute = judge_tokens if each else summed_cross_entropy
        return compute(hidden, head.weight, targets)

    head.forward = forward  # type: ignore[assignment]


class _SummedCrossEntropy(torch.autograd.Function):
    """Computes the gradients with the loss; the backward pass only multiplies them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        learns_hidden, learns_weight, _ = ctx.needs_input_grad
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        losses = torch.zeros(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if learns_hidden else None
        # Summed over pieces in fp32: in bf16 a small share would be lost beside a large sum.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if learns_weight else None
        size = max(1, CHUNK_ELEMENTS // weight.shape[0])
        for begin in range(0, hidden.shape[0], size):
            end = begin + size
            losses[begin:end] = _add_piece(
                hidden[begin:end], weight, targets[begin:end, None],
                None if grad_hidden is None else grad_hidden[begin:end], grad_weight,
            )  # fmt: skip
            loss += losses[begin:end].sum()
        ctx.weight_dtype = weight.dtype
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.mark_non_differentiable(losses)
        return loss, losses

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_loss: torch.Tensor, _: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * grad_loss,
            None if grad_weight is None else (grad_weight * grad_loss).to(ctx.weight_dtype),
            None,
        )


def _add_piece(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    goals: torch.Tensor,
    grad_hidden: torch.Tensor | None,
    grad_weight: torch.Tensor | None,
) -> torch.Tensor:
    """Losses of a piece's tokens, and its gradients into where they belong; what it takes in between is free again."""
    logits = (hidden @ weight.T).float()
    losses = _turn_into_slope(logits, goals)
    slope = logits.to(hidden.dtype)
    if grad_hidden is not None:
        torch.mm(slope, weight, out=grad_hidden)
    if grad_weight is not None:
        grad_weight += slope.T @ hidden
    return losses


def _turn_into_slope(logits: torch.Tensor, goals: torch.Tensor) -> torch.Tensor:
    """Replace logits by the derivative of -log p(goal) by them: softmax less one at the goal.

    Returns:
        -log p(goal) of each token.
    """
    logits -= logits.amax(dim=1, keepdim=True)
    goal_logits = logits.gather(1, goals)
    total = logits.exp_().sum(dim=1, keepdim=True)
    logits /= total
    logits.scatter_add_(1, goals, torch.full_like(total, -1.0))
    return (total.log() - goal_logits).squeeze(1)
