"""How a rank says why it ended, and how the launcher finds the cause among several that ended.

One rank that dies takes all others down: they lose their connection to it. Only the first is worth reporting.
"""

import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava_api.base import Lenient
from llava_api.failures import BY_EXIT_CODE, Reason, exit_code_of
from llava_api.report import StageFailure
from llava_api.run_config import RunConfig
from llava_trainer.files import write_whole
from llava_trainer.gang.nccl import explain_nccl_fault
from llava_trainer.logs import read_tail

_ASKED_TO_STOP = frozenset({signal.SIGTERM, signal.SIGHUP})
"""Signals with which launchers end processes."""


class RankFailure(Lenient):
    """Why one rank ended, in a file on the volume."""

    failure: StageFailure
    lost_peer: bool
    """It lost its connection to another rank, which knows the cause."""


@dataclass(frozen=True, kw_only=True)
class Exit:
    """A rank that ended with another code than 0."""

    rank: int
    """Global."""
    code: int
    """Exit code; minus the signal's number if it was killed."""
    time_s: float
    """When the launcher noticed; ordering only."""


def rank_log(config: RunConfig, rank: int) -> Path:
    """Log of one rank."""
    return config.volume.log_dir(config.run.stage, config.run.attempt) / f"rank-{rank}.log"


def rank_failure_file(config: RunConfig, rank: int) -> Path:
    """Where a rank says why it ended."""
    return ranks_dir(config) / f"rank-{rank}.json"


def evidence_file(config: RunConfig, rank: int) -> Path:
    """Where a rank that stands still says how far it is (``flight``)."""
    return ranks_dir(config) / f"rank-{rank}.evidence.json"


def flight_file(config: RunConfig, rank: int) -> Path:
    """Where everything is that torch's flight recorders of that rank hold."""
    return ranks_dir(config) / f"rank-{rank}.flight.json"


def write_rank_failure(config: RunConfig, rank: int, failure: RankFailure) -> None:
    """Record why this rank ends."""
    write_whole(rank_failure_file(config, rank), failure.model_dump_json())


def clear_failures(config: RunConfig, ranks: Iterable[int]) -> None:
    """Remove what these ranks left when this pod ran before."""
    for rank in ranks:
        rank_failure_file(config, rank).unlink(missing_ok=True)
        clear_evidence(config, rank)


def clear_evidence(config: RunConfig, rank: int) -> None:
    """Take back what a rank has left that stood still and goes on."""
    evidence_file(config, rank).unlink(missing_ok=True)
    flight_file(config, rank).unlink(missing_ok=True)


def read_failures(config: RunConfig, ranks: Iterable[int]) -> dict[int, RankFailure]:
    """Why these ranks ended, as they said themselves, by rank."""
    failures = {rank: _read_failure(rank_failure_file(config, rank)) for rank in ranks}
    return {rank: failure for rank, failure in failures.items() if failure}


def find_cause(config: RunConfig, exits: Sequence[Exit]) -> RankFailure:
    """The failure that made the others fail, among the ranks of one pod.

    A rank that says why it ended is believed before one that was killed, since launchers kill too; one that only lost
    its connection is believed last.
    """
    reported = read_failures(config, [exit_.rank for exit_ in exits])
    first = min(exits, key=lambda exit_: (_credibility(exit_, reported), exit_.time_s, exit_.rank))
    return reported.get(first.rank) or _explain_exit(config, first)


def fill_steps(
    config: RunConfig, failure: StageFailure, ranks: Iterable[int], find_step: Callable[[], int | None]
) -> StageFailure:
    """Say how many steps were done, where a rank was killed and could not say so itself.

    The others that lost it were as far; where none of them says so either, ``find_step`` may know.
    """
    if failure.step is not None:
        return failure
    reported = [found.failure for found in read_failures(config, ranks).values() if found.failure.step is not None]
    if reported:
        last = max(reported, key=lambda other: other.step or 0)
        return failure.model_copy(update={"step": last.step, "attempt_steps": last.attempt_steps})
    return failure.model_copy(update={"step": find_step()})


def _credibility(exit_: Exit, reported: Mapping[int, RankFailure]) -> int:
    if exit_.code == exit_code_of(Reason.SUPERSEDED):
        return 0
    failure = reported.get(exit_.rank)
    if failure and failure.lost_peer:
        return 2 if failure.failure.reason is Reason.NCCL_FAILED else 3
    if failure:
        return 0
    if exit_.code < 0:
        if -exit_.code in _ASKED_TO_STOP:
            return 4
        # NCCL's watchdog aborts a rank whose peer is gone.
        return 2 if -exit_.code == signal.SIGABRT else 1
    return 3 if exit_.code == exit_code_of(Reason.RENDEZVOUS_FAILED) else 2


def _explain_exit(config: RunConfig, exit_: Exit) -> RankFailure:
    tail = read_tail(rank_log(config, exit_.rank))
    fault = explain_nccl_fault(tail) if -exit_.code == signal.SIGABRT else None
    if exit_.code == exit_code_of(Reason.SUPERSEDED):
        reason, how = Reason.SUPERSEDED, "has ended because the attempt does not count any more: a later one has begun"
    elif fault is not None:
        reason, how = fault.reason, f"was ended by PyTorch's watchdog over NCCL: {fault.message}"
    elif exit_.code < 0:
        reason, how = Reason.WORKER_KILLED, f"was killed by {_signal_name(-exit_.code)}"
    elif (known := BY_EXIT_CODE.get(exit_.code)) is not None:
        reason, how = known.reason, f"ended with exit code {exit_.code} ({known.reason}) and could not write why"
    else:
        reason, how = Reason.INTERNAL_ERROR, f"ended with exit code {exit_.code} without saying why"
    message = f"rank {exit_.rank} {how}"
    # That watchdog also ends a rank whose peer is gone, whatever NCCL makes of it.
    return RankFailure(
        failure=StageFailure(reason=reason, message=message, rank=exit_.rank, log_tail=tail),
        lost_peer=fault is not None or reason is Reason.RENDEZVOUS_FAILED,
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _read_failure(file: Path) -> RankFailure | None:
    try:
        return RankFailure.model_validate_json(file.read_bytes())
    except (OSError, ValueError):
        # It died while it was saying why: its exit code has to do.
        return None


def ranks_dir(config: RunConfig) -> Path:
    """Where ranks report to the launchers of all pods."""
    return config.volume.attempt_dir(config.run.stage, config.run.attempt) / "ranks"
