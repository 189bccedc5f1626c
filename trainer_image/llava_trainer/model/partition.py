"""Parameters that DeepSpeed's ZeRO-3 has shared out among processes: making them whole to read or to change them.

A parameter that is shared out looks empty (its shape is [0]): whoever saves it as it stands saves nothing.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def whole(parameters: Iterable[nn.Parameter], *, changed: bool = False) -> Iterator[None]:
    """Have ``parameters`` whole inside the context; every process enters it with the same ones, and all hold them.

    Args:
        parameters: where none is shared out, nothing happens.
        changed: the first process changes them, and the others get what it wrote.
    """
    sharded = [parameter for parameter in parameters if is_sharded(parameter)]
    if not sharded:
        yield
        return
    # Not at the top: most of what imports this module never meets DeepSpeed.
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded, modifier_rank=0 if changed else None):
        yield


def is_sharded(parameter: nn.Parameter) -> bool:
    """Whether ZeRO-3 manages the parameter."""
    return hasattr(parameter, "ds_id")


def num_elements(parameter: nn.Parameter) -> int:
    """Numbers in the whole parameter."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def shape_of(parameter: nn.Parameter) -> tuple[int, ...]:
    """Shape of the whole parameter."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def copy_whole(parameter: nn.Parameter) -> torch.Tensor:
    """A copy of the whole parameter in the node's memory; every process takes part where it is shared out."""
    with whole([parameter]):
        return parameter.detach().to("cpu", copy=True)
