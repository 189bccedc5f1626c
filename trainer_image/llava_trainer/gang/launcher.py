"""Process 1 of a pod of a gang: starts this pod's ranks and answers for them. What they run it is told (``Worker``).

Built on torch's elastic agent (what torchrun is built on). What it adds: the exit code and the reason of the rank that
failed first (torchrun makes every code a 1), an end within seconds when another pod fails, time to save after SIGTERM,
and one log file a rank on the run's volume.
"""

import logging
import math
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.api import LogsDest, LogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from llava_api.constants import ENV_COMPLETION_INDEX
from llava_api.failures import Reason
from llava_api.report import StageFailure
from llava_api.run_config import RunConfig
from llava_trainer.errors import StageError
from llava_trainer.files import make_folder
from llava_trainer.gang.failures import Exit, clear_failures, fill_steps, find_cause, rank_log, read_failures
from llava_trainer.gang.heartbeats import HeartbeatMonitor
from llava_trainer.gang.rendezvous import Patience, Rendezvous
from llava_trainer.gang.stalls import explain_stall_of_all
from llava_trainer.gang.stopping import saving_time_s

_CAUSE_WAIT_S = 10.0
"""How long a pod whose ranks only lost their peers waits for another pod to report the cause."""

logger = logging.getLogger(__name__)


class PeerFailedError(Exception):
    """Another pod failed before this one's ranks were started."""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """What every rank runs."""

    module: str
    """Started as ``python -m MODULE --config FILE``."""
    find_step: Callable[[], int | None]
    """How many steps are known to be done; asked where a rank was killed and none says so itself."""


def launch(config: RunConfig, rendezvous: Rendezvous, patience: Patience, worker: Worker) -> None:
    """Run this pod's ranks to their end.

    Raises:
        StageError: the reason of the rank that failed first, in this pod or another one, with its rank and the
            end of its log; Interrupted after SIGTERM.
    """
    clear_failures(config, _ranks(config))
    peer_failures: list[StageFailure] = []

    def end_processes(failure: StageFailure) -> None:
        peer_failures.append(failure)
        # torch's agent hands these signals on: SIGTERM lets the ranks save, SIGHUP ends them at once, since they
        # may be waiting in an operation that will never end.
        is_drain = failure.reason is Reason.INTERRUPTED
        os.kill(os.getpid(), signal.SIGTERM if is_drain else signal.SIGHUP)

    try:
        with _signals_restored(), HeartbeatMonitor(rendezvous, patience, end_processes):
            _run_agent(config, patience, worker.module)
    except ChildFailedError as error:
        failure = _judge(config, error, rendezvous)
    except (SignalException, PeerFailedError):
        failure = peer_failures[0] if peer_failures else _interrupted(config)
    except (DistError, RendezvousError) as error:
        failure = StageFailure(
            reason=Reason.RENDEZVOUS_FAILED, message=f"the training pods' agents did not find each other: {error}"
        )
    else:
        return
    raise _to_stage_error(rendezvous.report_failure(fill_steps(config, failure, _ranks(config), worker.find_step)))


def node_rank() -> int:
    """This pod's index among the gang's."""
    return int(os.environ.get(ENV_COMPLETION_INDEX, "0"))


class RankLogs(LogsSpecs):
    """One log file a rank on the run's volume; what is written there also goes to the pod's log."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        self._config = config

    def reify(self, envs: Mapping[int, Mapping[str, str]]) -> LogsDest:
        """Files for ranks with these environments, by local rank."""
        files = {local: str(rank_log(self._config, int(env["RANK"]))) for local, env in envs.items()}
        nothing = dict.fromkeys(envs, "")
        # The ranks join stderr to stdout themselves: opened twice, one stream would overwrite the other.
        return LogsDest(stdouts=files, stderrs=nothing, tee_stdouts=files, error_files=nothing)

    @property
    def root_log_dir(self) -> str:
        """Folder of the files."""
        return str(rank_log(self._config, 0).parent)


def _run_agent(config: RunConfig, patience: Patience, module: str) -> None:
    workers = config.workers
    make_folder(rank_log(config, 0).parent)
    with tempfile.TemporaryDirectory(prefix="llava-train-") as folder:
        file = Path(folder) / "run.json"
        file.write_text(config.model_dump_json(), encoding="utf-8")
        settings = LaunchConfig(
            min_nodes=workers.num_nodes,
            max_nodes=workers.num_nodes,
            nproc_per_node=workers.processes_per_node,
            logs_specs=RankLogs(config),
            log_line_prefix_template="[rank ${rank}] ",
            run_id=f"{config.run.uid}-{config.run.attempt}",
            role=config.run.stage.value,
            # Static: ranks follow the pods' indices, so that rank 0 is in the pod that may report progress.
            rdzv_backend="static",
            rdzv_endpoint=f"{workers.rendezvous_host}:{workers.rendezvous_port}",
            rdzv_configs={"rank": node_rank(), "timeout": math.ceil(patience.agents_s)},
            max_restarts=0,
            shutdown_timeout=saving_time_s(workers.grace_period_seconds),
        )
        elastic_launch(settings, sys.executable)("-u", "-m", module, "--config", str(file))


def _judge(config: RunConfig, error: ChildFailedError, rendezvous: Rendezvous) -> StageFailure:
    """The cause of a failure of this pod's ranks, which may lie in another pod."""
    found = find_cause(
        config,
        [Exit(rank=rank, code=failure.exitcode, time_s=failure.timestamp) for rank, failure in error.failures.items()],
    )
    if found.failure.reason is Reason.WORKER_STALLED:
        stalled = explain_stall_of_all(config)
        if stalled is not None:
            return stalled
    if found.lost_peer and config.workers.num_nodes > 1:
        return rendezvous.find_failure(wait_s=_CAUSE_WAIT_S) or found.failure
    return found.failure


def _interrupted(config: RunConfig) -> StageFailure:
    """What SIGTERM to this pod came to: what its ranks report, if they still could."""
    reported = [found.failure for found in read_failures(config, _ranks(config)).values() if not found.lost_peer]
    if reported:
        return reported[0]
    return StageFailure(reason=Reason.INTERRUPTED, message="the pod was asked to stop (SIGTERM)")


def _to_stage_error(failure: StageFailure) -> StageError:
    return StageError(
        failure.reason, failure.message, rank=failure.rank, log_tail=failure.log_tail, step=failure.step,
        attempt_steps=failure.attempt_steps,
    )  # fmt: skip


def _ranks(config: RunConfig) -> range:
    first = node_rank() * config.workers.processes_per_node
    return range(first, first + config.workers.processes_per_node)


@contextmanager
def _signals_restored() -> Iterator[None]:
    """Raise PeerFailedError on SIGHUP until torch's agent takes over; put back afterwards what was there before."""

    def fail(number: int, frame: FrameType | None) -> None:
        raise PeerFailedError

    # Those that torch's agent takes for itself and never gives back.
    previous = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    }
    signal.signal(signal.SIGHUP, fail)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
