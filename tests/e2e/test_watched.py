"""Every query of the dashboards against a real Prometheus that has scraped a real operator through real runs.

The runs are those of the session: what was restarted, suspended and finished in other tests is found here again. The
module is the last of its folder by name. RENEW_PICTURES=1 keeps the pictures that are drawn in docs/pictures.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from llava_monitoring.alerts.alert import Alert
from llava_monitoring.alerts.limits import fill
from llava_monitoring.alerts.rules import ALERTS
from llava_monitoring.generate import build_dashboards
from llava_monitoring.promql import metrics_of
from llava_monitoring.reading import Asked, queries_of
from tests.demo.target import OPERATOR_NAMESPACE
from tests.e2e.lives import (
    GPU_RUN,
    Watching,
    ask_for_a_gpu,
    find_eventful_run,
    get_one_in_name,
    live_eventfully,
    trouble_the_operator,
)
from tests.e2e.runs import Runs
from tests.kubectl import wait_for
from tests.localcluster.cluster import LocalCluster
from tests.monitoring.drawing import Drawing
from tests.monitoring.prometheus import SCRAPE_INTERVAL_S
from tests.monitoring.proof import Missing, find_faults
from tests.rendering import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

PICTURES = ROOT / "docs" / "pictures"
MAX_PICTURE_BYTES = 200_000
BOARDS: dict[str, dict[str, Any]] = {
    Path(name).stem: json.loads(content) for name, content in build_dashboards().items()
}
EXCEPTIONS = (
    Missing("panel 'Memory of a GPU', A", "torch reserves memory of a GPU on a GPU alone"),
    Missing("panel 'Held back by a gate', A", "no gate of these runs holds anything back"),
    Missing("panel 'Model FLOPs utilisation (MFU)', A", "only of GPUs is the peak known"),
)


@pytest.fixture(scope="module")
def eventful(runs: Runs, watching: Watching, cluster: LocalCluster) -> str:
    """Name of a run that was restarted, suspended and has ended well; others have failed meanwhile, one on a GPU."""
    wait_for(
        "Prometheus to scrape everything",
        lambda: watching.prometheus.why_not_scraping("operator", "kubelet", "kube-state-metrics", "dcgm") is None,
        timeout_s=60,
    )
    name = find_eventful_run(watching) or live_eventfully(runs)
    ask_for_a_gpu(runs)
    # While its first stage reports: a pass that cannot reach the API server is one that fails.
    trouble_the_operator(runs, cluster)
    get_one_in_name(runs)
    wait_for("the failure to be scraped", lambda: has_failed(watching), timeout_s=60)
    # A query over all of the time looks at an instant every few seconds: the last may lie before the failure.
    time.sleep(2 * SCRAPE_INTERVAL_S)
    return name


@pytest.fixture(scope="module")
def choices(eventful: str, runs: Runs) -> dict[str, list[dict[str, str]]]:
    """What a person would choose at the top of each dashboard, one after the other."""
    namespace = runs.kubectl.namespace
    return {
        "llava-fleet": [{"namespace": ".*", "team": ".*", "price": "2.50"}],
        "llava-run": [{"namespace": namespace, "run": run} for run in (eventful, GPU_RUN)],
        "llava-operator": [{"namespace": OPERATOR_NAMESPACE}],
    }


def has_failed(watching: Watching) -> bool:
    query = f'llava_run_phase{{name="{GPU_RUN}",phase="Failed"}}'
    return bool(watching.prometheus.query(query, watching.span().end))


@pytest.mark.parametrize("board", BOARDS)
def test_every_query_finds_something(
    board: str, watching: Watching, choices: dict[str, list[dict[str, str]]], record_property: Any
) -> None:
    queries = list(queries_of(BOARDS[board]))
    exceptions = [one for one in EXCEPTIONS if any(one.where in asked.where for asked in queries)]
    faults = find_faults(watching.prometheus, queries, watching.span(), choices[board], exceptions)
    assert not faults, "\n".join(faults)
    record_property("queries", len(queries))


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_every_series_that_an_alert_looks_at_is_there(alert: Alert, eventful: str, watching: Watching) -> None:
    """That it fires when it should is told by promtool's unit tests; that such series are scraped, by this."""
    names = sorted(metrics_of(fill(alert.expression)))
    assert names
    queries = [Asked(where=f"alert {alert.name}, {name}", expression=name) for name in names]
    faults = find_faults(watching.prometheus, queries, watching.span(), [{}], [])
    assert not faults, "\n".join(faults)


def test_every_exception_is_about_a_query() -> None:
    everything = [asked.where for board in BOARDS.values() for asked in queries_of(board)]
    for one in EXCEPTIONS:
        assert any(one.where in where for where in everything), one.where


def test_the_runs_own_namespace_is_kept(eventful: str, watching: Watching, runs: Runs) -> None:
    """Without honorLabels it would be the operator's, and every panel empty."""
    now = watching.span().end
    assert watching.prometheus.query('{exported_namespace!=""}', now) == []
    created = f'llava_run_created_timestamp_seconds{{name="{GPU_RUN}"}}'
    [labels] = [series.labels for series in watching.prometheus.query(created, now)]
    assert labels["namespace"] == runs.kubectl.namespace
    assert labels["pod"].startswith("llava-finetune-operator-")
    assert labels["job"] == labels["service"] == "llava-finetune-operator-metrics"


@pytest.mark.parametrize("board", BOARDS)
def test_panels_can_be_drawn(
    board: str, watching: Watching, choices: dict[str, list[dict[str, str]]], tmp_path: Path
) -> None:
    folder = PICTURES if os.environ.get("RENEW_PICTURES") else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    drawing = Drawing(
        prometheus=watching.prometheus, dashboard=BOARDS[board], span=watching.span(), chosen=choices[board][0]
    )
    path = folder / f"{board}.png"
    drawing.save(path)
    assert 10_000 < path.stat().st_size < MAX_PICTURE_BYTES
    assert len(drawing.empty) < len(BOARDS[board]["panels"]) / 2, drawing.empty
