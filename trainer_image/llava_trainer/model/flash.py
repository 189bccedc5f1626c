"""Whether flash-attn is there, and whether it runs.

Apart from everything else, because asking for the first must not import it, or torch.
"""

import importlib.util
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_HEAD_SIZE = 128
"""Of Vicuna's attention heads; each size has kernels of its own."""
_MAX_FAULT = 200


def has_flash_attention() -> bool:
    """Whether flash-attn is installed; on which GPUs it runs is another question."""
    return importlib.util.find_spec("flash_attn") is not None


@cache
def find_flash_fault(device: "torch.device") -> str | None:
    """Call flash-attn on a few numbers, forward and backward; what it says where it does not run there, else None.

    It is built for some GPUs only, and against one version of torch: a name that it brings along tells of neither.
    """
    import torch

    try:
        from flash_attn import flash_attn_func

        # Samples, positions, heads, numbers.
        states = torch.zeros(1, 2, 1, _HEAD_SIZE, dtype=torch.bfloat16, device=device, requires_grad=True)
        flash_attn_func(states, states, states, causal=True).sum().backward()
        if device.type == "cuda":
            # What a kernel fails of is told later.
            torch.cuda.synchronize(device)
    except (ImportError, OSError, RuntimeError) as error:
        return first_line(error)
    return None


def first_line(error: Exception) -> str:
    """What a library says first, and no more of it than can be told."""
    return str(error).partition("\n")[0][:_MAX_FAULT]
