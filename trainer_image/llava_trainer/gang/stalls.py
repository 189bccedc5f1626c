"""Which rank holds up the others where all stand still: the one that has not begun what they wait in.

Who says first that it stands still is chance, and what each was at is the same in all of them while they compute. So
the numbers of their operations decide (``flight``), and that one has left none while all others have.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from llava_api.failures import Reason
from llava_api.report import StageFailure
from llava_api.run_config import RunConfig
from llava_trainer.gang.failures import rank_log
from llava_trainer.gang.flight import Evidence, GroupPosition, read_evidence
from llava_trainer.logs import read_tail

_LATENESS = 0.1
"""Of the limit: how long to wait for the evidence of ranks that began to stand still later than the first."""
_POLL_S = 0.2

Group = tuple[str, str]
"""Backend and name of a process group."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Who holds the others up."""

    rank: int | None
    """None where no rank does."""
    finding: str
    """What speaks for it."""


def explain_stall_of_all(config: RunConfig) -> StageFailure | None:
    """What the evidence of all ranks comes to, waiting a moment for it; None if it does not tell."""
    workers = config.workers
    num_ranks = workers.num_nodes * workers.processes_per_node
    if num_ranks == 1:
        return None
    evidence = _await_evidence(config, num_ranks)
    verdict = judge(evidence, num_ranks)
    if verdict is None:
        return None
    limit_s = _limit_s(config, evidence)
    if verdict.rank is None:
        message = f"no rank has gone on for {limit_s:.0f} s: {verdict.finding}; the stacks are in their logs"
        return StageFailure(reason=Reason.WORKER_STALLED, message=message)
    return StageFailure(
        reason=Reason.WORKER_STALLED,
        message=f"rank {verdict.rank} has not gone on for {limit_s:.0f} s: {verdict.finding}",
        rank=verdict.rank,
        log_tail=read_tail(rank_log(config, verdict.rank)),
    )


def judge(evidence: Mapping[int, Evidence], num_ranks: int) -> Verdict | None:
    """Find the rank that holds the others up.

    Args:
        evidence: by rank.
        num_ranks: how many ranks there are.

    Returns:
        Whom somebody waits for while it waits for nobody itself; None if the evidence does not tell.
    """
    names = {(g.backend, g.number): g.name for one in evidence.values() for g in one.groups if g.name}
    positions: dict[int, dict[Group, GroupPosition]] = {
        rank: {(g.backend, g.name or names.get((g.backend, g.number), str(g.number))): g for g in one.groups}
        for rank, one in evidence.items()
    }
    waiting = [
        (rank, group, position)
        for rank, groups in positions.items()
        for group, position in groups.items()
        if position.waits_in is not None
    ]
    # (who is waited for, in which group, by whom): it has not begun what that one waits in.
    awaited = [
        (other, group, waits)
        for rank, group, waits in waiting
        for other in positions
        if other != rank and _begun(positions[other], group) < waits.begun
    ]
    held_up = {
        rank
        for rank, group, waits in waiting
        if any(_begun(positions[other], group) < waits.begun for other in positions if other != rank)
    }
    behind = sorted({other for other, _, _ in awaited} - held_up)
    in_operation = {rank for rank, _, _ in waiting}
    missing = sorted(set(range(num_ranks)) - evidence.keys())
    at_fault = [rank for rank in behind if rank not in in_operation] if missing else behind
    if at_fault:
        rank = at_fault[0]
        group, waits = max(
            ((group, waits) for other, group, waits in awaited if other == rank), key=lambda found: found[1].begun
        )
        return Verdict(
            rank=rank,
            finding=f"it {evidence[rank].doing}, and while others wait in operation {waits.begun} of process group "
            f"{group[1]} ({waits.waits_in}), it has begun {_begun(positions[rank], group)}; the stacks are in its log",
        )
    if missing and waiting:
        _, group, waits = waiting[0]
        return Verdict(
            rank=missing[0],
            finding=f"others wait in operation {waits.begun} of process group {group[1]} ({waits.waits_in}), and it "
            "does not even say where it is: it was stopped, or hangs in a driver",
        )
    return _judge_alike(waiting, num_ranks)


def _judge_alike(waiting: list[tuple[int, Group, GroupPosition]], num_ranks: int) -> Verdict | None:
    """All are in the same operation, or in operations of the same number that do not belong together."""
    for group in sorted({group for _, group, _ in waiting}):
        here = {rank: position for rank, other, position in waiting if other == group}
        if len(here) < num_ranks or len({position.begun for position in here.values()}) > 1:
            continue
        begun = here[0].begun
        # Sizes may differ: a rank may have nothing to give to a gather.
        kinds = {rank: str(position.waits_in).partition(" ")[0] for rank, position in here.items()}
        if len(set(kinds.values())) == 1:
            return Verdict(
                rank=None,
                finding=f"all wait in operation {begun} of process group {group[1]} ({here[0].waits_in}), so a GPU, or "
                "the network between them, does not answer",
            )
        differing = next(rank for rank in sorted(kinds) if kinds[rank] != kinds[0])
        return Verdict(
            rank=None,
            finding=f"operation {begun} of process group {group[1]} is {here[0].waits_in} on rank 0 and "
            f"{here[differing].waits_in} on rank {differing}",
        )
    return None


def _begun(positions: Mapping[Group, GroupPosition], group: Group) -> int:
    return positions[group].begun if group in positions else 0


def _limit_s(config: RunConfig, evidence: Mapping[int, Evidence]) -> float:
    """How long they may stand still; all have concluded the same."""
    return min((one.limit_s for one in evidence.values()), default=config.workers.stall_limit_seconds)


def _await_evidence(config: RunConfig, num_ranks: int) -> dict[int, Evidence]:
    began = time.monotonic()
    while True:
        found = {rank: read_evidence(config, rank) for rank in range(num_ranks)}
        evidence = {rank: one for rank, one in found.items() if one is not None}
        patience_s = _limit_s(config, evidence) * _LATENESS
        if len(evidence) == num_ranks or time.monotonic() > began + patience_s:
            return evidence
        time.sleep(_POLL_S)
