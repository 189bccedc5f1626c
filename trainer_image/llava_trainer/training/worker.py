"""One rank of training, as the launcher starts it: ``python -m llava_trainer.training.worker --config FILE``.

It records why it ends (``gang.failures``) and ends with the exit code of ``llava_api.failures``.
"""

import argparse
import logging
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from transformers.utils.logging import disable_progress_bar

from llava_api.failures import Reason, exit_code_of
from llava_api.report import StageFailure
from llava_api.run_config import RunConfig
from llava_trainer.attempts.folder import Fence
from llava_trainer.device_faults import explain_device_fault
from llava_trainer.errors import LOST_CONNECTION_SIGN, StageError
from llava_trainer.gang.failures import RankFailure, clear_evidence, write_rank_failure
from llava_trainer.gang.flight import write_evidence
from llava_trainer.gang.nccl import explain_nccl_fault
from llava_trainer.gang.stopping import StopRequest
from llava_trainer.gang.watchdog import Doing, Watchdog, stall_limit_s
from llava_trainer.gang.world import LostPeerError, World, join
from llava_trainer.logs import ProcessLog
from llava_trainer.outcome import explain
from llava_trainer.reporting import Reporter
from llava_trainer.training.curve import write_numbers
from llava_trainer.training.progress import Progress
from llava_trainer.training.train import train

_MEMORY_SIGNS = ("CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "Cuda failure 2 ")
"""How PyTorch, CUDA, cuBLAS and NCCL say that the GPU's memory does not suffice."""
_MAX_MEMORY_MESSAGE = 300
"""Characters: how much was asked for and how much there is; advice on PyTorch's settings follows."""

_LAST_WORDS_S = 10.0
"""How long a process that ends itself may take to say why."""

logger = logging.getLogger(__name__)


def main() -> int:
    """Train as one rank of many; returns the exit code."""
    parser = argparse.ArgumentParser(description="One training process; the train stage starts it.")
    parser.add_argument("--config", type=Path, required=True)
    config = RunConfig.model_validate_json(parser.parse_args().config.read_bytes())
    rank = int(os.environ["RANK"])
    disable_progress_bar()
    progress = Progress()
    with ProcessLog() as log, StopRequest() as stop:
        try:
            _run(config, stop, progress)
        except Exception as error:
            if is_superseded(error, config):
                # Nothing is written any more: not even why, nor a line of the log, which lies in the attempt's folder.
                return exit_code_of(Reason.SUPERSEDED)
            failure = explain_rank_failure(error, rank, log, progress)
            try:
                write_rank_failure(config, rank, failure)
            except OSError as trouble:
                # On a full volume, say; the exit code tells all the same.
                logger.warning("rank %d cannot leave word why it ends: %s", rank, trouble)
            return exit_code_of(failure.failure.reason)
    return 0


def is_superseded(error: BaseException, config: RunConfig) -> bool:
    """Whether this process ends because its attempt does not count any more; then it says nothing but its exit code."""
    if isinstance(error, StageError) and error.reason is Reason.SUPERSEDED:
        return True
    return Fence(config).find_reason() is not None


def explain_rank_failure(error: Exception, rank: int, log: ProcessLog, progress: Progress) -> RankFailure:
    """Say why this process cannot go on, and how far it was, and log it."""
    lost_peer = is_lost_peer(error)
    nccl_fault = explain_nccl_fault(str(error)) if isinstance(error, RuntimeError) else None
    if is_out_of_device_memory(error):
        lost_peer, error = False, StageError(Reason.OUT_OF_DEVICE_MEMORY, str(error)[:_MAX_MEMORY_MESSAGE])
    elif explain_device_fault(error):
        lost_peer = False
    elif nccl_fault is not None and nccl_fault.reason is Reason.NCCL_FAILED:
        # It may still be the other side that failed first: who knows a cause of its own is believed before.
        lost_peer, error = True, StageError(Reason.NCCL_FAILED, nccl_fault.message)
    elif lost_peer:
        error = StageError(Reason.RENDEZVOUS_FAILED, f"the connection to the other processes was lost: {error}")
    if isinstance(error, StageError) and error.reason is not Reason.INTERNAL_ERROR:
        logger.error("rank %d ends: %s: %s", rank, error.reason, error.message)
    else:
        logger.error("rank %d failed", rank, exc_info=error)
    particulars = {"rank": rank, "log_tail": log.tail(), **_steps_of(progress)}
    failure: StageFailure = explain(error, log.tail()).model_copy(update=particulars)
    return RankFailure(failure=failure, lost_peer=lost_peer)


def is_lost_peer(error: BaseException) -> bool:
    """Whether an operation failed because another rank has gone; gloo's errors have no type of their own."""
    return isinstance(error, dist.DistError | LostPeerError) or (
        isinstance(error, RuntimeError) and LOST_CONNECTION_SIGN in str(error)
    )


def is_out_of_device_memory(error: BaseException) -> bool:
    """Whether the GPU's memory did not suffice; cuBLAS and NCCL have no type of their own for it."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _MEMORY_SIGNS)
    )


def explain_stall(rank: int, doing: Doing, limit_s: float, progress: Progress) -> RankFailure:
    """Say that this process does not get any further."""
    failure = StageFailure(
        reason=Reason.WORKER_STALLED,
        message=f"rank {rank} has not gone on for {limit_s:.0f} s: it {doing}; the stacks are in its log",
        rank=rank,
        step=progress.step,
        attempt_steps=progress.attempt_steps,
    )
    # Whoever waits for the others is held up by one of them, which says so itself if it still can.
    return RankFailure(failure=failure, lost_peer=doing is Doing.WAITING)


def _steps_of(progress: Progress) -> dict[str, int | None]:
    return {"step": progress.step, "attempt_steps": progress.attempt_steps}


def _run(config: RunConfig, stop: StopRequest, progress: Progress) -> None:
    world = join(config.workers.device)
    stalling = _Stalling(config=config, world=world, progress=progress)
    try:
        with (
            Reporter(config) as reporter,
            Watchdog(
                lambda: stalling.limit_s, stalling.give_up, stalling.leave_evidence, stalling.take_back
            ) as watchdog,
        ):
            numbers = train(config, world, reporter, stop, watchdog.beat, progress)
        if numbers:
            write_numbers(config, numbers)
        world.barrier()
    finally:
        if sys.exc_info()[0] is None:
            dist.destroy_process_group()


@dataclass(kw_only=True)
class _Stalling:
    """What this process does about standing still."""

    config: RunConfig
    world: World
    progress: Progress
    is_superseded: bool = False

    @property
    def limit_s(self) -> float:
        return stall_limit_s(self.progress.slowest_step_s, self.config.workers.stall_limit_seconds)

    def leave_evidence(self, doing: Doing) -> None:
        rank, limit_s = self.world.rank, self.limit_s
        logger.warning("rank %d has not gone on for %.0f s: it %s", rank, limit_s / 2, doing)
        if self.world.world_size == 1:
            return
        try:
            write_evidence(self.config, rank, doing, limit_s)
        except OSError as error:
            logger.warning("how far rank %d is could not be written down: %s", rank, error)

    def take_back(self) -> None:
        try:
            clear_evidence(self.config, self.world.rank)
        except OSError as error:
            logger.warning("what rank %d has left as evidence stays: %s", self.world.rank, error)

    def give_up(self, doing: Doing) -> None:
        word = explain_stall(self.world.rank, doing, self.limit_s, self.progress)
        # The volume, where log and word go to, may be what hangs.
        telling = threading.Thread(target=self._tell, args=(word,), daemon=True)
        telling.start()
        telling.join(_LAST_WORDS_S)
        # The main thread hangs: nothing else ends this process.
        os._exit(exit_code_of(Reason.SUPERSEDED if self.is_superseded else word.failure.reason))

    def _tell(self, word: RankFailure) -> None:
        rank = self.world.rank
        if Fence(self.config).find_reason() is not None:
            # The attempt is over: its folder is another one's, and so is the log.
            self.is_superseded = True
            return
        logger.error("rank %d ends: %s: %s", rank, word.failure.reason, word.failure.message)
        write_rank_failure(self.config, rank, word)


if __name__ == "__main__":
    # One file for both streams, in the order in which they were written.
    os.dup2(sys.stdout.fileno(), sys.stderr.fileno())
    # Not sys.exit: after a failure, destructors of the process group would wait for processes that are gone.
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
