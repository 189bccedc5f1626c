"""Being asked to stop. SIGTERM reaches the processes of one pod only, so the loop agrees on it over all of them.

Between steps that comes with the count of the batch. A step of many micro-batches may take longer than a pod has, so
it is asked between those as well: over gloo, whose threads carry the question while the next micro-batch is computed,
and answered one micro-batch later, so that neither a GPU nor another process has to be waited for.
"""

import signal
from types import FrameType
from typing import Self

import torch
import torch.distributed as dist

from llava_api.memory import RESERVED_S
from llava_trainer.training.processes import Processes

_MIN_SAVING_S = 5


def saving_time_s(grace_period_s: int) -> int:
    """Seconds that training processes have to save a checkpoint after SIGTERM."""
    return max(grace_period_s - RESERVED_S, _MIN_SAVING_S)


class StopRequest:
    """Remembers that this process got SIGTERM, from the moment that the context is entered."""

    def __init__(self) -> None:
        self.received = False

    def __enter__(self) -> Self:
        signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(self, *exception: object) -> None:
        # A second SIGTERM while the process ends must not interrupt what it saves.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    @property
    def received_meanwhile(self) -> bool:
        """The same, as it is asked between the micro-batches of a step."""
        return self.received

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = True


class AskedToStopError(Exception):
    """Some process was asked to stop within a step; every process raises this before the same micro-batch."""


class StopAgreement:
    """Finds out whether any process was asked to stop. Every process calls the same in the same micro-batches."""

    def __init__(self, stop: StopRequest, processes: Processes) -> None:
        self._stop = stop
        self._group = processes.control
        self._asked: tuple[dist.Work, torch.Tensor] | None = None

    def ask(self) -> None:
        """Ask all processes, without waiting for any."""
        if self._group is not None:
            flag = torch.tensor(int(self._stop.received_meanwhile))
            work = dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group, async_op=True)
            assert work is not None
            self._asked = work, flag

    def check(self) -> None:
        """Look at the answers, which every process has given when it began its last micro-batch.

        Raises:
            AskedToStopError: one was.
            DistError, RuntimeError: a process is gone.
        """
        if self._group is None:
            asked = self._stop.received_meanwhile
        else:
            assert self._asked is not None, "nothing was asked"
            work, flag = self._asked
            self._asked = None
            work.wait()
            asked = bool(flag)
        if asked:
            raise AskedToStopError
