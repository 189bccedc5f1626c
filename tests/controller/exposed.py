"""The text of metrics, as the operator makes it and as Prometheus' client would."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from llava_operator.cache.runs import RunView
from llava_operator.telemetry.contract import PREFIX_RUN, RUN_FAMILIES
from llava_operator.telemetry.run_metrics import RunMetrics
from llava_operator.telemetry.run_samples import SAMPLERS
from tests.controller.makers import NOW

SHOWN_S = 3600
"""For so many seconds ended runs are told of in tests."""


def expose(*runs: RunView, now: datetime = NOW) -> str:
    """What the operator tells of runs."""
    return "".join(RunMetrics(runs, lambda: now, finished_run_s=SHOWN_S).list_slices())


@dataclass(frozen=True, eq=False)
class AllAtOnce(Collector):
    """The same samples of all runs for the client's own exposition, which wants them all at the same time."""

    runs: Iterable[RunView]
    now: datetime = NOW

    def collect(self) -> Iterator[Metric]:
        for family in RUN_FAMILIES:
            metric = Metric(family.name.removesuffix("_info") if family.kind == "info" else family.name, family.help,
                            family.kind)  # fmt: skip
            for run in self.runs:
                for own, value in SAMPLERS[family.name.removeprefix(PREFIX_RUN)](run, self.now):
                    values = (run.key.namespace, run.key.name, *own)
                    metric.add_sample(family.name, dict(zip(family.labels, values, strict=True)), value)
            yield metric
