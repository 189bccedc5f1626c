"""The training curve, as far as the report draws it."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llava_api.constants import StageName
from llava_api.volume import RunVolume


@dataclass(frozen=True, kw_only=True)
class History:
    """Logged steps of the training attempt that made the adapter."""

    steps: Sequence[int]
    losses: Sequence[float]
    """Loss per supervised token; not a number where it is missing."""
    learning_rates: Sequence[float]
    """Learning rate of the adapter."""


def find_history(volume: RunVolume) -> Path | None:
    """History file of the newest training attempt that wrote one."""
    attempts = {
        int(found[1]): folder
        for folder in (volume.root / "attempts").glob(f"{StageName.TRAIN}-*")
        if (found := re.fullmatch(rf"{StageName.TRAIN}-(\d+)", folder.name))
    }
    for attempt in sorted(attempts, reverse=True):
        if volume.history_file(attempt).is_file():
            return volume.history_file(attempt)
    return None


def read_history(path: Path) -> History:
    """Read a history; a last line that was cut off when training was killed is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return History(
        steps=[row["step"] for row in rows],
        losses=[_number(row.get("loss")) for row in rows],
        learning_rates=[_number(row.get("learning_rate")) for row in rows],
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value
