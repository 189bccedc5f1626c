"""The metrics of runs.

They come from the runs' status at the moment of asking, so they survive a restart and a change of leader. Values never
stand in labels.
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Final

from llava_operator.cache.runs import RunView
from llava_operator.telemetry.contract import PREFIX_RUN, RUN_FAMILIES, Family
from llava_operator.telemetry.run_samples import SAMPLERS
from llava_operator.telemetry.text_format import write_head, write_sample

_SLICE: Final = 32
"""Runs that are asked in one go, whether they have something to tell or not: 1 or 2 ms on a busy machine."""


class RunMetrics:
    """Makes the metrics of all runs from what is cached of them. Nothing of it is kept: 10,000 may be 50 MB of text."""

    def __init__(self, runs: Iterable[RunView], now: Callable[[], datetime], *, finished_run_s: float) -> None:
        """Tell of ``runs``, and of those that have ended for so many seconds after that."""
        self._runs = runs
        self._now = now
        self._finished_run_s = finished_run_s

    def list_slices(self) -> Iterator[str]:
        """Every family, all as of the instant at which the first is asked for."""
        now = self._now()
        shown_from = now.timestamp() - self._finished_run_s
        runs = tuple(run for run in self._runs if run.ended_at is None or run.ended_at > shown_from)
        for family in RUN_FAMILIES:
            yield write_head(family.name, family.kind, family.help)
            for start in range(0, len(runs), _SLICE):
                yield "".join(_write_samples(family, runs[start : start + _SLICE], now))


def _write_samples(family: Family, runs: Iterable[RunView], now: datetime) -> Iterator[str]:
    sample_run = SAMPLERS[family.name.removeprefix(PREFIX_RUN)]
    # By their names, as the client writes them.
    ordered = sorted((label, index) for index, label in enumerate(family.labels))
    for run in runs:
        for own, value in sample_run(run, now):
            values = (run.key.namespace, run.key.name, *own)
            yield write_sample(family.name, [(label, values[index]) for label, index in ordered], value)
