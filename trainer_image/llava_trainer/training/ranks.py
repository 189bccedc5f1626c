"""How a training process says why it ended, and how the launcher finds the cause among several that ended.

One process that dies takes all others down: they lose their connection to it. Only the first is worth reporting.
"""

import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava_api.base import Lenient
from llava_api.failures import BY_EXIT_CODE, Reason, exit_code_of
from llava_api.report import StageFailure, TrainNumbers
from llava_api.run_config import RunConfig
from llava_trainer.files import write_whole
from llava_trainer.logs import read_tail
from llava_trainer.training.history import read_entries
from llava_trainer.training.nccl import explain_nccl_fault

_ASKED_TO_STOP = frozenset({signal.SIGTERM, signal.SIGHUP})
"""Signals with which launchers end processes."""


class RankFailure(Lenient):
    """Why one process ended, in a file on the volume."""

    failure: StageFailure
    lost_peer: bool
    """It lost its connection to another process, which knows the cause."""


@dataclass(frozen=True, kw_only=True)
class Exit:
    """A process that ended with another code than 0."""

    rank: int
    """Global."""
    code: int
    """Exit code; minus the signal's number if it was killed."""
    time_s: float
    """When the launcher noticed; ordering only."""


def rank_log(config: RunConfig, rank: int) -> Path:
    """Log of one process."""
    return config.volume.log_dir(config.run.stage, config.run.attempt) / f"rank-{rank}.log"


def rank_failure_file(config: RunConfig, rank: int) -> Path:
    """Where a process says why it ended."""
    return ranks_dir(config) / f"rank-{rank}.json"


def evidence_file(config: RunConfig, rank: int) -> Path:
    """Where a process that stands still says how far it is (``flight``)."""
    return ranks_dir(config) / f"rank-{rank}.evidence.json"


def flight_file(config: RunConfig, rank: int) -> Path:
    """Where everything is that torch's flight recorders of that process hold."""
    return ranks_dir(config) / f"rank-{rank}.flight.json"


def numbers_file(config: RunConfig) -> Path:
    """Where the first process says what training reached."""
    return ranks_dir(config) / "numbers.json"


def write_rank_failure(config: RunConfig, rank: int, failure: RankFailure) -> None:
    """Leave word why this process ends."""
    write_whole(rank_failure_file(config, rank), failure.model_dump_json())


def write_numbers(config: RunConfig, numbers: TrainNumbers) -> None:
    """Leave word what training reached."""
    write_whole(numbers_file(config), numbers.model_dump_json())


def clear_words(config: RunConfig, ranks: Iterable[int]) -> None:
    """Remove what processes of these ranks left when this pod ran before."""
    for rank in ranks:
        rank_failure_file(config, rank).unlink(missing_ok=True)
        clear_evidence(config, rank)


def clear_evidence(config: RunConfig, rank: int) -> None:
    """Take back what a process has left that stood still and goes on."""
    evidence_file(config, rank).unlink(missing_ok=True)
    flight_file(config, rank).unlink(missing_ok=True)


def read_words(config: RunConfig, ranks: Iterable[int]) -> dict[int, RankFailure]:
    """What processes of these ranks said about their end, by rank."""
    words = {rank: _read_word(rank_failure_file(config, rank)) for rank in ranks}
    return {rank: word for rank, word in words.items() if word}


def find_cause(config: RunConfig, exits: Sequence[Exit]) -> RankFailure:
    """The failure that made the others fail, among the processes of one pod.

    A process that says why it ended is believed before one that was killed, since launchers kill too; one that only
    lost its connection is believed last.
    """
    told = read_words(config, [exit_.rank for exit_ in exits])
    first = min(exits, key=lambda exit_: (_credibility(exit_, told), exit_.time_s, exit_.rank))
    return told.get(first.rank) or _explain_exit(config, first)


def fill_steps(config: RunConfig, failure: StageFailure, ranks: Iterable[int]) -> StageFailure:
    """Say how many steps were done, where a process was killed and could not say so itself.

    The others that lost it were as far, and the curve on the volume is that of the first process.
    """
    if failure.step is not None:
        return failure
    said = [word.failure for word in read_words(config, ranks).values() if word.failure.step is not None]
    if said:
        last = max(said, key=lambda other: other.step or 0)
        return failure.model_copy(update={"step": last.step, "attempt_steps": last.attempt_steps})
    try:
        entries = read_entries(config.volume.history_file(config.run.stage, config.run.attempt))
    except (OSError, ValueError, TypeError):
        # A damaged curve must not take the place of the failure.
        entries = []
    return failure.model_copy(update={"step": entries[-1].step}) if entries else failure


def _credibility(exit_: Exit, told: Mapping[int, RankFailure]) -> int:
    if exit_.code == exit_code_of(Reason.SUPERSEDED):
        return 0
    word = told.get(exit_.rank)
    if word and word.lost_peer:
        return 2 if word.failure.reason is Reason.NCCL_FAILED else 3
    if word:
        return 0
    if exit_.code < 0:
        if -exit_.code in _ASKED_TO_STOP:
            return 4
        # NCCL's watchdog aborts a process whose peer is gone.
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
    message = f"training process {exit_.rank} {how}"
    # That watchdog also ends a process whose peer is gone, whatever NCCL makes of it.
    return RankFailure(
        failure=StageFailure(reason=reason, message=message, rank=exit_.rank, log_tail=tail),
        lost_peer=fault is not None or reason is Reason.RENDEZVOUS_FAILED,
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _read_word(file: Path) -> RankFailure | None:
    try:
        return RankFailure.model_validate_json(file.read_bytes())
    except (OSError, ValueError):
        # It died while it was saying why: its exit code has to do.
        return None


def ranks_dir(config: RunConfig) -> Path:
    """Where processes leave word for the launchers of all pods."""
    return config.volume.attempt_dir(config.run.stage, config.run.attempt) / "ranks"
