"""What dashboards, alerts and people's own rules are made of stays, and everything that a page says of it is true."""

import re
import subprocess
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from llava_monitoring.promql import QueryError, check_query, metrics_of
from llava_operator.telemetry.contract import FAMILIES, Family
from llava_operator.telemetry.operator_metrics import OperatorMetrics
from llava_operator.telemetry.text_format import list_slices
from tests.controller.crowds import ended, training
from tests.controller.exposed import expose
from tests.controller.test_operator_metrics import note_everything
from tests.controller.test_run_metrics import lost, view

FROZEN = Path(__file__).parent / "metrics.txt"
"""Name, type, unit and labels of every metric that was ever promised."""


def test_every_metric_that_was_ever_promised_is_there_as_it_was() -> None:
    """One that goes or changes leaves people's dashboards empty and their alerts silent: add lines, and change none."""
    promised = FROZEN.read_text().splitlines()
    assert [
        f"{family.name} {family.kind} {family.unit or '-'} {','.join(family.labels) or '-'}" for family in FAMILIES
    ] == promised
    assert len({line.split()[0] for line in promised}) == len(promised)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_familys_own_query_is_one(family: Family) -> None:
    check_query(family.example)
    assert any(name.startswith(family.name) for name in metrics_of(family.example))


@pytest.mark.parametrize(
    "query", ["llava_run_nothing", 'llava_run_step{team="x"}', "sum by (team) (llava_run_step)", "sum(llava_run_step"]
)
def test_a_query_that_names_what_is_not_there_is_seen(query: str) -> None:
    with pytest.raises(QueryError):
        check_query(query)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_names_and_texts_are_of_the_usual_form(family: Family) -> None:
    assert family.help.endswith(".")
    assert family.name.endswith("_total") is (family.kind == "counter")
    assert family.name.endswith("_info") is (family.kind == "info")
    assert bool(family.buckets) is (family.kind == "histogram")
    assert family.unit in family.name


def test_promtool_finds_nothing_to_object_to(promtool: Path) -> None:
    """In everything that is exposed, with all families present."""
    registry = CollectorRegistry()
    metrics = OperatorMetrics(registry, queue_depth=lambda: 3, cached={"jobs": lambda: 5})
    note_everything(metrics)
    text = "".join(list_slices(registry)) + expose(*map(view, (training(), ended(), lost())))
    for family in FAMILIES:
        assert f"# TYPE {family.name} " in text
    silent = {
        family.name for family in FAMILIES if not re.search(rf"^{family.name}(_bucket)?[{{ ]", text, re.MULTILINE)
    }
    assert silent == set()
    assert check(promtool, text) == ""
    # As it was called before.
    wrong = "# HELP llava_run_steps_total Steps.\n# TYPE llava_run_steps_total gauge\nllava_run_steps_total 1.0\n"
    assert 'llava_run_steps_total non-counter metrics should not have "_total" suffix' in check(promtool, wrong)


def check(promtool: Path, text: str) -> str:
    """What promtool objects to."""
    checked = subprocess.run([promtool, "check", "metrics"], input=text, text=True, capture_output=True, check=False)
    assert bool(checked.returncode) is bool(checked.stderr)
    return checked.stderr
