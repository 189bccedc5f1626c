"""How far this rank is in every process group, by torch's flight recorder, left on the volume while it stands still.

torch numbers the operations of a group, in every rank alike. Where all wait, their stacks look the same, whoever is
at fault; the numbers tell who has not begun what the others wait in (``stalls`` compares them). The recorder's own
JSON is kept beside, for people; its pickle is never used.
"""

import json
import logging
from collections.abc import Mapping

from pydantic import Field, ValidationError
from torch._C import _distributed_c10d as c10d

from llava_api.base import Lenient
from llava_api.run_config import RunConfig
from llava_trainer.files import write_whole
from llava_trainer.gang.failures import evidence_file, flight_file
from llava_trainer.gang.watchdog import Doing

CHECKPOINT_GROUP = "checkpoints"
"""Description of the group over which threads agree on checkpoints: nobody's training waits in it."""
_BACKENDS = ("gloo", "nccl", "nccl2")
"""Each has a recorder of its own; torch 2.15 makes nccl2 of nccl, unless TORCH_DIST_USE_NCCL2 is 0."""
_MAX_BYTES = 1 << 20

logger = logging.getLogger(__name__)


class GroupPosition(Lenient):
    """How far one rank is in one process group."""

    backend: str
    number: int
    """By which torch counts the groups of a rank; every rank here makes the same ones in the same order."""
    name: str = ""
    """torch's; empty where the recorder has forgotten the group's operations."""
    begun: int
    """Number of the last operation that was begun."""
    ended: int
    """Number of the last operation that has ended."""
    waits_in: str | None = None
    """The last operation, like ``gloo:all_reduce [[4096]]``, if training waits for it to end."""


class Evidence(Lenient):
    """What a rank that stands still says of itself."""

    doing: Doing
    limit_s: float
    """How long it may stand still, in seconds; every rank concludes the same from the steps that it was told of."""
    groups: tuple[GroupPosition, ...]


class _Status(Lenient):
    last_enqueued_collective: int
    last_completed_collective: int


class _Entry(Lenient):
    pg_id: int
    process_group: tuple[str, str]
    profiling_name: str
    is_p2p: bool
    input_sizes: tuple[tuple[int, ...], ...] = ()


class _Recording(Lenient):
    """The part of a recorder's JSON that is understood here."""

    pg_status: Mapping[int, _Status] = Field(default_factory=dict)
    entries: tuple[_Entry, ...] = ()


def write_evidence(config: RunConfig, rank: int, doing: Doing, limit_s: float) -> None:
    """Leave word of how far this rank is, and that it may stand still for ``limit_s`` seconds.

    Raises:
        OSError: it cannot be written.
    """
    recordings = dump_recorders()
    evidence = Evidence(doing=doing, limit_s=limit_s, groups=find_positions(recordings))
    write_whole(evidence_file(config, rank), evidence.model_dump_json())
    write_whole(flight_file(config, rank), json.dumps({name: json.loads(text) for name, text in recordings.items()}))


def read_evidence(config: RunConfig, rank: int) -> Evidence | None:
    """What a rank has said of itself; None if nothing that can be read."""
    try:
        with evidence_file(config, rank).open("rb") as stream:
            return Evidence.model_validate_json(stream.read(_MAX_BYTES))
    except (OSError, ValueError):
        return None


def find_positions(recordings: Mapping[str, bytes]) -> tuple[GroupPosition, ...]:
    """How far a rank is in every group that has begun something, by what its recorders hold (JSON, by backend)."""
    positions = []
    for backend, text in recordings.items():
        try:
            recording = _Recording.model_validate_json(text)
        except ValidationError as error:
            logger.warning("torch's flight recorder of %s cannot be read: %s", backend, error)
            continue
        # The recorder holds the newest: what a rank waits in now is among them.
        last = {entry.pg_id: entry for entry in recording.entries if not entry.is_p2p}
        positions += [
            _position(backend, number, status, last.get(number)) for number, status in recording.pg_status.items()
        ]
    return tuple(positions)


def _position(backend: str, number: int, status: _Status, last: _Entry | None) -> GroupPosition:
    # -1 where there was none.
    begun, ended = max(0, status.last_enqueued_collective), max(0, status.last_completed_collective)
    waits_in = None
    if last is not None and begun > ended and last.process_group[1] != CHECKPOINT_GROUP:
        waits_in = f"{last.profiling_name} {[list(sizes) for sizes in last.input_sizes]}"
    name = last.process_group[0] if last is not None else ""
    return GroupPosition(backend=backend, number=number, name=name, begun=begun, ended=ended, waits_in=waits_in)


def dump_recorders() -> dict[str, bytes]:
    """What torch's recorders hold, as JSON, by backend."""
    recordings = {name: c10d._dump_fr_trace_json(backend=name) for name in _BACKENDS}
    if hasattr(c10d, "_dump_nccl_trace_json"):
        recordings["nccl-legacy"] = c10d._dump_nccl_trace_json()
    return recordings
