"""How much memory the head takes, traced without computing anything."""

import weakref
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers.loss.loss_utils import ForCausalLMLoss

from llava_trainer.model.head import add_loss

TOKENS, VOCABULARY = 4096, 32_064


class Peak(TorchDispatchMode):
    """Counts the bytes of tensors that are made while it is on, and alive together at most."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._alive = 0
        self._seen: dict[weakref.ref, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._count, result)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        key = weakref.ref(tensor.untyped_storage(), self._forget)
        if key not in self._seen:
            self._seen[key] = tensor.untyped_storage().nbytes()
            self._alive += self._seen[key]
            self.peak = max(self.peak, self._alive)

    def _forget(self, key: weakref.ref) -> None:
        self._alive -= self._seen.pop(key)


def peak_bytes(dtype: torch.dtype, *, fraction: float | None) -> int:
    """Peak of a LLaVA's frozen head on 4,096 tokens, loss and gradients included.

    Hidden states and weight were there before and are not counted.

    Args:
        dtype: of hidden states and weight.
        fraction: of the tokens that are supervised; None: the plain way, which computes all of them.
    """
    width = 256
    with FakeTensorMode():
        hidden = torch.empty(1, TOKENS, width, dtype=dtype, requires_grad=True)
        linear = torch.nn.Linear(width, VOCABULARY, bias=False, dtype=dtype).requires_grad_(False)
        labels = torch.zeros(1, TOKENS, dtype=torch.int64)
        with Peak() as tracker:
            if fraction is None:
                loss = ForCausalLMLoss(linear(hidden), labels, VOCABULARY)
            else:
                chosen = labels[0, : round(TOKENS * fraction)]
                add_loss(linear)
                loss, _ = linear(hidden.flatten(0, 1)[chosen], chosen)
            torch.autograd.backward(loss)
    return tracker.peak
