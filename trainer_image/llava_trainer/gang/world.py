"""This rank among the others: its number, its device, and what all of them agree on."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeVar

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others in one operation. One that died is noticed by the launchers long
before, and one that hangs by its watchdog (``gang.watchdog``)."""
CONTROL_TIMEOUT = timedelta(hours=1)
"""The same where files are read or written meanwhile, over a volume that may be slow."""

T = TypeVar("T")


class LostPeerError(Exception):
    """This rank cannot go on because another one failed, which knows why."""


@dataclass(frozen=True, kw_only=True)
class World:
    """Where this rank stands; made by ``join``."""

    rank: int
    world_size: int
    device: torch.device
    control: dist.ProcessGroup | None = None
    """The same ranks over gloo, through the nodes' memory: for what must not wait for a GPU. None if alone."""

    @property
    def is_first(self) -> bool:
        """Whether this rank writes files and reports for all."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every rank is here."""
        dist.barrier(device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def sum(self, *values: float) -> list[float]:
        """Sums over all ranks, in fp64: counts stay exact up to 2^53. Over gloo, so that no GPU is waited for."""
        total = torch.tensor(values, dtype=torch.float64)
        if self.control is not None:
            dist.all_reduce(total, group=self.control)
        return total.tolist()

    @property
    def peak_gpu_memory_bytes(self) -> int:
        """Most memory that torch has reserved on this rank's GPU so far; 0 without one."""
        return torch.cuda.max_memory_reserved(self.device) if self.device.type == "cuda" else 0

    def broadcast(self, value: T) -> T:
        """The first rank's value, in every rank; the others' do not count."""
        if self.control is None:
            return value
        values = [value]
        # Pickled by one rank of this gang and read by another.
        dist.broadcast_object_list(values, src=0, group=self.control, device=torch.device("cpu"))
        return values[0]

    def gather(self, value: T) -> list[T] | None:
        """Every rank's value by its number, in the first rank; None in the others."""
        if self.control is None:
            return [value]
        # Pickled by ranks of this gang and read by another.
        values = [value] * self.world_size if self.is_first else None
        dist.gather_object(value, values, dst=0, group=self.control)
        return values

    def all_agree(self, value: bool) -> bool:
        """``all_true`` where files are read meanwhile, which may take one rank much longer than another."""
        if self.control is None:
            return value
        agreed = torch.tensor(int(value))
        dist.all_reduce(agreed, dist.ReduceOp.MIN, group=self.control)
        return bool(agreed)

    def all_true(self, value: bool) -> bool:
        """Whether ``value`` is true in every rank."""
        return self.sum(float(value))[0] == self.world_size


def join(device_type: Literal["cuda", "cpu"]) -> World:
    """Join the other ranks, as torch's elastic agent has laid it down in the environment."""
    local_rank = int(os.environ["LOCAL_RANK"])
    if device_type == "cuda":
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        # TF32 for what is left in fp32, as in LLaVA's recipe.
        torch.set_float32_matmul_precision("high")
        backend = "nccl"
    else:
        device = torch.device("cpu")
        backend = "gloo"
        # DeepSpeed would compile an operation for reductions in shared memory, for half a minute and only with a
        # compiler at hand; plain gloo computes the same. Reading the table of operations would probe for all of
        # them, again with a compiler, so it is replaced.
        deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    deepspeed.init_distributed(dist_backend=backend, timeout=COLLECTIVE_TIMEOUT, verbose=False)
    world_size = dist.get_world_size()
    control = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT) if world_size > 1 else None
    assert control is None or isinstance(control, dist.ProcessGroup)
    return World(rank=dist.get_rank(), world_size=world_size, device=device, control=control)
