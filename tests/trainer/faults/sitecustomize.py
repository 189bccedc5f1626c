"""Read by Python at its start where this folder is on PYTHONPATH: something goes wrong in one training process.

``FAULT`` says what (a function below), ``FAULT_RANK`` in which process, ``FAULT_AT`` in which of its backward passes,
where it is one of these. ``STALL_SHORTEST_S`` takes the place of the watchdog's shortest limit, in every rank;
``IMPATIENT`` takes the waiting out of trying again; ``DESTINATIONS`` is where claims to publish to are.
"""

import os
import time
from typing import NoReturn

OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.61 GiB is free."
)
NCCL_ERROR = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3763, unhandled system error (run with "
    "NCCL_DEBUG=INFO for details), NCCL version 2.28.9\nncclSystemError: System call (e.g. socket, malloc) or external "
    "library call failed or device error.\nLast error:\nError while creating shared memory segment /dev/shm/nccl-7FyPQ9"
)
TOO_OLD = "The NVIDIA driver on your system is too old (found version 12080). Please update your GPU driver"


def hang(grad: object) -> None:
    time.sleep(3600)


def out_of_device_memory(grad: object) -> NoReturn:
    import torch

    raise torch.OutOfMemoryError(OUT_OF_MEMORY)


def nccl_abort(grad: object) -> NoReturn:
    """As PyTorch's watchdog over NCCL does it, from C++."""
    os.write(1, f"[Rank 1] Process group watchdog thread terminated with exception: {NCCL_ERROR}\n".encode())
    os.abort()


def driver_too_old() -> None:
    """Where PyTorch asks the driver for the first time."""
    import torch

    def refuse() -> NoReturn:
        raise RuntimeError(TOO_OLD)

    torch._C._cuda_init = refuse


def out_of_memory() -> None:
    """A checkpoint's copy is to be a million times as large: PyTorch's own allocator says no."""
    import torch

    from llava_trainer.training.saving import Saver

    copy, empty = Saver._copy, torch.empty

    def copy_a_lot(self, slices):
        torch.empty = lambda shape, **settings: empty((*shape, 1 << 40), **settings)
        try:
            return copy(self, slices)
        finally:
            torch.empty = empty

    Saver._copy = copy_a_lot


IN_BACKWARD = {function.__name__: function for function in (hang, out_of_device_memory, nccl_abort)}
AT_START = {function.__name__: function for function in (driver_too_old, out_of_memory)}


def break_backward(fault) -> None:
    from deepspeed.runtime.engine import DeepSpeedEngine

    backward = DeepSpeedEngine.backward
    passes = iter(range(1, 1_000_000))

    def backward_that_fails(self, loss, *arguments, **settings):
        if next(passes) == int(os.environ["FAULT_AT"]):
            loss.register_hook(fault)
        return backward(self, loss, *arguments, **settings)

    DeepSpeedEngine.backward = backward_that_fails


if "RANK" in os.environ:
    if shortest := os.environ.get("STALL_SHORTEST_S"):
        from llava_trainer.gang import watchdog

        watchdog._SHORTEST_S = float(shortest)
    name = os.environ.get("FAULT", "")
    if os.environ["RANK"] == os.environ.get("FAULT_RANK", "0") and name:
        if name in AT_START:
            AT_START[name]()
        else:
            break_backward(IN_BACKWARD[name])
if os.environ.get("IMPATIENT"):
    from llava_trainer.retrying import Patience

    Patience.wait_s = lambda self, failures, asked_s=None: 0.01
if claims := os.environ.get("DESTINATIONS"):
    from llava_api import constants

    constants.DESTINATIONS_PATH = claims
