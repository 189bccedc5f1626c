"""Which operations this process has begun with the others, from torch's flight recorder.

When every process waits inside an operation, what each of them is at says nothing, and neither does who gives up
first. But operations of a process group are begun in the same order everywhere: whoever has begun fewer of them is the
one that the others wait for. The recorder keeps the last operations of each group in memory, over gloo as over NCCL.
"""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch._C._distributed_c10d import _dump_fr_trace_json

from llava_trainer.files import write_whole

ENV_ENTRIES = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")
"""How many operations are kept; the second is what it was called before."""
_ENTRIES = "2000"

Positions = Mapping[str, int]
"""Operations begun in each process group, by backend and the group's number, like ``nccl 0``."""

logger = logging.getLogger(__name__)


def keep_records() -> None:
    """Have operations recorded; before the first process group is made."""
    if not os.environ.keys() & set(ENV_ENTRIES):
        os.environ[ENV_ENTRIES[0]] = _ENTRIES


def write_records(file: Path, device: torch.device) -> dict[str, int]:
    """Write what was recorded; returns how far this process has come, and nothing where that cannot be had.

    Called when nothing goes on any more: whatever fails here must not hide why.
    """
    try:
        records = {name: json.loads(_dump_fr_trace_json(True, False, name)) for name in _backends(device)}
        write_whole(file, json.dumps(records) + "\n")
        return {
            f"{backend} {group}": int(status["last_enqueued_collective"])
            for backend, record in records.items()
            for group, status in record["pg_status"].items()
        }
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        logger.warning("what was done with the other processes cannot be written to %s: %s", file, error)
        return {}


def find_behind(positions: Mapping[int, Positions], ranks: Iterable[int]) -> tuple[int, str] | None:
    """The process that the others wait for, and how that shows; None if nothing tells.

    Args:
        positions: of each process that has said anything; empty where it ended for another reason, like a lost
            connection to one that gave up before.
        ranks: of all processes.
    """
    known = {rank: mine for rank, mine in positions.items() if mine}
    for group in sorted({group for mine in known.values() for group in mine}):
        begun = {rank: mine.get(group, 0) for rank, mine in known.items()}
        first, last = max(begun.values()), min(begun.values())
        if first != last:
            rank = min(rank for rank, count in begun.items() if count == last)
            return rank, f"it has begun {last:,} operations with the others (process group {group}), and they {first:,}"
    silent = [rank for rank in ranks if rank not in positions]
    if known and silent:
        return silent[0], "all others wait in the same operation, and it does not say where it is"
    return None


def _backends(device: torch.device) -> tuple[str, ...]:
    return ("nccl", "gloo") if device.type == "cuda" else ("gloo",)
