"""Being asked to stop. SIGTERM reaches the ranks of one pod only, so all of them agree on it.

Between steps that comes with the count of the batch. A step of many micro-batches may take longer than a pod has, so
it is asked between those as well: over gloo, whose threads carry the question while the next micro-batch is computed,
and answered one micro-batch later, so that neither a GPU nor another rank has to be waited for.
"""

import signal
from types import FrameType
from typing import Self

import torch
import torch.distributed as dist

from llava_api.memory import RESERVED_S
from llava_trainer.gang.world import World

_MIN_SAVING_S = 5


def saving_time_s(grace_period_s: int) -> int:
    """Seconds that ranks have to save a checkpoint after SIGTERM."""
    return max(grace_period_s - RESERVED_S, _MIN_SAVING_S)


class StopRequest:
    """Remembers that this rank got SIGTERM, from the moment that the context is entered."""

    def __init__(self) -> None:
        self.received = False

    def __enter__(self) -> Self:
        signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(self, *exception: object) -> None:
        # A second SIGTERM while the rank ends must not interrupt what it saves.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    @property
    def received_meanwhile(self) -> bool:
        """The same, as it is asked between the micro-batches of a step."""
        return self.received

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = True


class AskedToStopError(Exception):
    """Some rank was asked to stop within a step; every rank raises this before the same micro-batch."""


class StopAgreement:
    """Finds out whether any rank was asked to stop. Every rank calls the same in the same micro-batches."""

    def __init__(self, stop: StopRequest, world: World) -> None:
        self._stop = stop
        self._group = world.control
        self._asked: tuple[dist.Work, torch.Tensor] | None = None

    def ask(self) -> None:
        """Ask all ranks, without waiting for any."""
        if self._group is not None:
            flag = torch.tensor(int(self._stop.received_meanwhile))
            work = dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group, async_op=True)
            assert work is not None
            self._asked = work, flag

    def check(self) -> None:
        """Look at the answers, which every rank has given when it began its last micro-batch.

        Raises:
            AskedToStopError: one was.
            DistError, RuntimeError: a rank is gone.
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
