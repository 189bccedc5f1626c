"""Memory of the node that a GPU can read by itself, and failing to get it.

PyTorch raises ``OutOfMemoryError`` for the GPU's memory ("CUDA out of memory. Tried to allocate ...", c10's
CUDACachingAllocator). For pinned memory it hands on what ``cudaHostAlloc`` or ``cudaHostRegister`` say: an
``AcceleratorError`` (before 2.9 a plain RuntimeError) "CUDA error: out of memory" (c10_cuda_check_implementation in
c10/cuda/CUDAException.cpp), which a GPU without room for CUDA's own context gives as well. So what is said does not
tell them apart, but what was being done does.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from llava_api.failures import Reason
from llava_trainer.errors import StageError

_SIGNS = ("CUDA error: out of memory", "CUDA error: unknown error", "can't allocate memory", "Cannot allocate memory")
"""Of the node's memory: CUDA for pinned memory (an "unknown error" where the system forbids so much of it), the CPU's
allocator of PyTorch, and the system."""


@contextmanager
def allocating_on_node(what: str) -> Iterator[None]:
    """Say that the node's memory did not suffice, where that is why something fails that is done inside.

    Raises:
        StageError: OutOfMemory, naming ``what`` was to be put there.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in _SIGNS):
            raise
        told = str(error).partition("\n")[0] or "MemoryError"
        raise StageError(
            Reason.OUT_OF_MEMORY,
            f"the node's memory does not suffice for {what} ({told}): raise spec.workers.resources.limits.memory, or "
            "take nodes with more memory",
        ) from error
