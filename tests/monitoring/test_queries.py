"""Every query of the dashboards finds what the contract promises, also while one operator takes over from another.

The data is made up: what is really served is asked in tests/e2e/test_watched.py.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from llava_monitoring.generate import build_dashboards
from llava_monitoring.promql import expand
from llava_monitoring.reading import queries_of
from tests.monitoring import synthetic
from tests.monitoring.drawing import Drawing
from tests.monitoring.prometheus import Prometheus
from tests.monitoring.proof import find_faults, values_for

BOARDS = {Path(name).stem: json.loads(content) for name, content in build_dashboards().items()}
CHOSEN = {
    "llava-fleet": {"namespace": ".*", "team": ".*", "price": "2.50"},
    "llava-run": {"namespace": synthetic.NAMESPACE, "run": "invoices"},
    "llava-operator": {"namespace": synthetic.OPERATOR_NAMESPACE},
}


@pytest.fixture(scope="module")
def server(prometheus: Path, promtool: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with synthetic.serve(prometheus, promtool, tmp_path_factory.mktemp("prometheus")) as running:
        yield running


@pytest.mark.parametrize("board", BOARDS)
def test_every_query_finds_something(board: str, server: Prometheus) -> None:
    faults = find_faults(server, list(queries_of(BOARDS[board])), synthetic.SPAN, [CHOSEN[board]], [])
    assert not faults, "\n".join(faults)


def test_a_run_that_two_pods_tell_of_is_counted_once(server: Prometheus) -> None:
    while_both_tell = synthetic.START + 950
    [running] = [asked for asked in queries_of(BOARDS["llava-fleet"]) if "panel 'Running'" in asked.where]
    expression = expand(running.expression, values_for(synthetic.SPAN, **CHOSEN["llava-fleet"]))
    [count] = server.query(expression, while_both_tell)
    assert count.points[0][1] == 1


@pytest.mark.parametrize("board", BOARDS)
def test_every_panel_can_be_drawn(board: str, server: Prometheus, tmp_path: Path) -> None:
    drawing = Drawing(prometheus=server, dashboard=BOARDS[board], span=synthetic.SPAN, chosen=CHOSEN[board])
    drawing.save(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000
    assert drawing.empty == []
