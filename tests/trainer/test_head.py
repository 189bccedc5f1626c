"""The head a piece at a time: the same loss and gradients as the plain way, for a fraction of its memory and no more
work than is asked for."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from llava_trainer.data.encode import IGNORED
from llava_trainer.model import head
from llava_trainer.model.head import add_loss, summed_cross_entropy
from llava_trainer.model.objective import find_predicting
from tests.benchmarks.head import TOKENS, peak_bytes
from tests.benchmarks.head import VOCABULARY as LLAVAS_VOCABULARY

NUM_TOKENS, VOCABULARY, WIDTH = 37, 101, 16


def draw(
    dtype: torch.dtype = torch.float32, *, trained: bool = True
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(NUM_TOKENS, WIDTH, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, VOCABULARY, (NUM_TOKENS,), generator=generator)


def plain(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy((hidden @ weight.T).float(), targets, reduction="sum")


def ours(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return summed_cross_entropy(hidden, weight, targets)[0]


@pytest.mark.parametrize("tokens_at_a_time", [1, 10, 37, 1000])
def test_loss_and_gradients_are_those_of_the_plain_way(tokens_at_a_time: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", tokens_at_a_time * VOCABULARY)
    results = []
    for compute in (ours, plain):
        hidden, weight, targets = draw()
        loss = compute(hidden, weight, targets) / NUM_TOKENS
        torch.autograd.backward(loss)
        results.append((loss.detach(), hidden.grad, weight.grad))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tokens_at_a_time", [1, 10, 1000])
def test_what_is_summed_up_is_told_without_a_graph(tokens_at_a_time: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", tokens_at_a_time * VOCABULARY)
    hidden, weight, targets = draw()
    _, losses = summed_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(losses, cross_entropy(hidden @ weight.T, targets, reduction="none").detach())
    assert not losses.requires_grad


def test_in_bf16_the_gradients_are_as_good_as_the_plain_ways(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 10 * VOCABULARY)
    exact = draw(torch.bfloat16)
    exact = (*(tensor.detach().double().requires_grad_() for tensor in exact[:2]), exact[2])
    torch.autograd.backward(cross_entropy(exact[0] @ exact[1].T, exact[2], reduction="sum"))
    errors = []
    for compute in (ours, plain):
        hidden, weight, targets = draw(torch.bfloat16)
        torch.autograd.backward(compute(hidden, weight, targets))
        errors.append([(found.grad.double() - truth.grad).norm() / truth.grad.norm()
                       for found, truth in ((hidden, exact[0]), (weight, exact[1]))])  # fmt: skip
    assert all(found < 1.5 * plainly for found, plainly in zip(*errors, strict=True)), errors


def test_without_tokens_the_loss_is_zero_and_has_a_graph():
    hidden, weight, targets = draw()
    loss, losses = summed_cross_entropy(hidden[:0], weight, targets[:0])
    assert losses.shape == (0,)
    torch.autograd.backward(loss)
    assert loss.item() == 0.0
    assert not weight.grad.any()


@pytest.mark.parametrize(("trained", "products"), [(False, 2), (True, 3)])
def test_a_frozen_head_costs_no_gradient_of_its_weight(trained: bool, products: int):
    linear = torch.nn.Linear(WIDTH, VOCABULARY, bias=False).requires_grad_(trained)
    add_loss(linear)
    hidden, _, targets = draw()
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(linear(hidden, targets)[0])
    assert counter.get_total_flops() == products * 2 * NUM_TOKENS * VOCABULARY * WIDTH
    assert (linear.weight.grad is not None) == trained
    assert linear(hidden).shape == (NUM_TOKENS, VOCABULARY)


def test_a_token_is_predicted_from_the_one_before_it_in_its_row():
    labels = torch.tensor([[IGNORED, 4, IGNORED, 5], [7, IGNORED, 8, IGNORED]])
    assert find_predicting(labels).tolist() == [0, 2, 5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("fraction", "limit"), [(0.25, 0.35), (1.0, 0.5)])
def test_memory_stays_far_below_the_plain_ways(dtype: torch.dtype, fraction: float, limit: float):
    expected = peak_bytes(dtype, fraction=None)
    # Logits and log-probabilities at least.
    assert expected > 2 * TOKENS * LLAVAS_VOCABULARY * 4
    assert peak_bytes(dtype, fraction=fraction) / expected < limit
