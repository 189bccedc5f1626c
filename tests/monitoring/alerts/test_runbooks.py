"""Each alert has a page to work with at night; what its commands do, tests/cluster/test_runbooks.py sees."""

import re
from pathlib import Path

import pytest
import yaml

from llava_monitoring.alerts.alert import Alert
from llava_monitoring.alerts.limits import LIMITS
from llava_monitoring.alerts.rules import ALERTS
from llava_monitoring.promql import check_query
from tests.monitoring.alerts.pages import INDEX, PAGES, SECTIONS, commands, languages, page_of, queries
from tests.monitoring.alerts.promtool import check_rules
from tests.rendering import CHART

NAMES = [alert.name for alert in ALERTS]


def test_each_alert_has_a_page_and_each_page_an_alert() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} == {*NAMES, INDEX.stem}


@pytest.mark.parametrize("name", NAMES)
def test_page_says_what_it_means_what_to_look_at_and_what_to_do(name: str) -> None:
    text = page_of(name).read_text()
    assert text.startswith(f"# {name}\n")
    assert [line for line in text.splitlines() if line.startswith("## ")] == list(SECTIONS)
    assert languages(name) <= {"sh", "promql"}
    assert commands(name)
    assert queries(name)


@pytest.mark.parametrize("name", NAMES)
def test_logs_are_asked_of_every_replica(name: str) -> None:
    """kubectl takes one pod of a Deployment, which may be one that stands by and has nothing to say."""
    asked = [command for command in commands(name) if " logs " in command]
    assert not [command for command in asked if "deploy/" in command]
    assert all(" -l " in command and " --prefix " in command for command in asked)


@pytest.mark.parametrize("alert", ALERTS, ids=NAMES)
def test_index_has_it_with_its_severity(alert: Alert) -> None:
    assert f"| [{alert.name}]({alert.name}.md) | {alert.severity} | " in INDEX.read_text()


@pytest.mark.parametrize("path", sorted(PAGES.glob("*.md")), ids=lambda path: path.stem)
def test_what_a_page_names_is_there(path: Path) -> None:
    text = path.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        # The page about monitoring as a whole is the dashboards', too.
        assert (path.parent / target).is_file(), target
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for setting in re.findall(r"`(alerts\.[A-Za-z.]+)`", text):
        held = values
        for part in setting.split("."):
            held = held[part]
    named = {limit.name for limit in LIMITS if f"alerts.limits.{limit.name}`" in text}
    if path != INDEX:
        expression = next(alert for alert in ALERTS if alert.name == path.stem)
        asked = {limit.name for limit in LIMITS if str(limit) in expression.expression + expression.hold}
        assert asked <= named, "a limit that the alert goes by is named where somebody looks for it"


@pytest.mark.parametrize("name", NAMES)
def test_queries_are_right_and_name_what_is_served(name: str, promtool: Path, tmp_path: Path) -> None:
    asked = [query.replace("NAMESPACE", "team").replace("NAME", "invoices") for query in queries(name)]
    for query in asked:
        check_query(query)
    rules = [{"record": f"asked:{number}", "expr": query} for number, query in enumerate(asked)]
    done = check_rules(promtool, tmp_path, {"groups": [{"name": "asked", "rules": rules}]})
    assert done.returncode == 0, done.stderr
