"""One training process, as the launcher starts it: ``python -m llava_trainer.training.worker --config FILE``.

It leaves word why it ends (``ranks``) and ends with the exit code of ``llava_api.failures``.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers.utils.logging import disable_progress_bar

from llava_api.failures import Reason, exit_code_of
from llava_api.report import StageFailure
from llava_api.run_config import RunConfig
from llava_trainer.errors import StageError
from llava_trainer.logs import ProcessLog
from llava_trainer.outcome import explain
from llava_trainer.reporting import Reporter
from llava_trainer.training.loop import train
from llava_trainer.training.processes import join
from llava_trainer.training.ranks import RankFailure, write_numbers, write_rank_failure
from llava_trainer.training.stopping import StopRequest

_MAX_MEMORY_MESSAGE = 300
"""Characters: how much was asked for and how much there is; advice on PyTorch's settings follows."""

logger = logging.getLogger(__name__)


def main() -> int:
    """Train as one process of many; returns the exit code."""
    parser = argparse.ArgumentParser(description="One training process; the train stage starts it.")
    parser.add_argument("--config", type=Path, required=True)
    config = RunConfig.model_validate_json(parser.parse_args().config.read_bytes())
    rank = int(os.environ["RANK"])
    disable_progress_bar()
    with ProcessLog() as log, StopRequest() as stop:
        try:
            _run(config, stop)
        except Exception as error:
            failure = explain_rank_failure(error, rank, log)
            write_rank_failure(config, rank, failure)
            return exit_code_of(failure.failure.reason)
    return 0


def explain_rank_failure(error: Exception, rank: int, log: ProcessLog) -> RankFailure:
    """Say why this process cannot go on, and log it."""
    lost_peer = is_lost_peer(error)
    if isinstance(error, torch.OutOfMemoryError):
        error = StageError(Reason.OUT_OF_DEVICE_MEMORY, str(error)[:_MAX_MEMORY_MESSAGE])
    elif lost_peer:
        error = StageError(Reason.RENDEZVOUS_FAILED, f"the connection to the other processes was lost: {error}")
    if isinstance(error, StageError) and error.reason is not Reason.INTERNAL_ERROR:
        logger.error("process %d ends: %s: %s", rank, error.reason, error.message)
    else:
        logger.error("process %d failed", rank, exc_info=error)
    failure: StageFailure = explain(error, log.tail()).model_copy(update={"rank": rank, "log_tail": log.tail()})
    return RankFailure(failure=failure, lost_peer=lost_peer)


def is_lost_peer(error: BaseException) -> bool:
    """Whether an operation failed because another process has gone; gloo's errors have no type of their own."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/transport" in str(error))


def _run(config: RunConfig, stop: StopRequest) -> None:
    processes = join(config.workers.device)
    try:
        with Reporter(config) as reporter:
            numbers = train(config, processes, reporter, stop)
        if numbers:
            write_numbers(config, numbers)
        processes.barrier()
    finally:
        if sys.exc_info()[0] is None:
            dist.destroy_process_group()


if __name__ == "__main__":
    # One file for both streams, in the order in which they were written.
    os.dup2(sys.stdout.fileno(), sys.stderr.fileno())
    # Not sys.exit: after a failure, destructors of the process group would wait for processes that are gone.
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
