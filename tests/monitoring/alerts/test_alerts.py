"""Alerts as the chart renders them: what real Prometheus says of them, what they name, what an installer may set."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from llava_api.failures import FAILURES
from llava_api.reasons import Reason
from llava_monitoring.alerts.alert import Alert
from llava_monitoring.alerts.limits import CERTIFICATE, FAILED, LIMITS
from llava_monitoring.alerts.rules import ALERTS, PATH, build_file
from llava_monitoring.alerts.runs import FOR_ROOM, FOR_SOMEBODY
from llava_monitoring.promql import check_query
from llava_operator.tls.certificates import AUTHORITY_RENEWAL, LEAF_LIFE, LEAF_RENEWAL
from tests.monitoring.alerts.promtool import CASES, JOB, check_rules, load_cases, render_rules, run_cases
from tests.rendering import CHART, NAMESPACE, ROOT, render

NAMES = [alert.name for alert in ALERTS]
PAGES = ROOT / "docs" / "runbooks"
ON = ("--set", "alerts.enabled=true")


@pytest.fixture(scope="session")
def rules(helm: Path) -> dict[str, dict[str, Any]]:
    """Rules by the chart's own values."""
    return {rule["alert"]: rule for group in render_rules(helm)["groups"] for rule in group["rules"]}


def only(name: str, rules: dict[str, Any]) -> dict[str, Any]:
    """One alert's rule: the others would take promtool their time, and say nothing."""
    found = [rule for group in rules["groups"] for rule in group["rules"] if rule["alert"] == name]
    return {"groups": [{"name": name, "rules": found}]}


def rule_object(helm: Path, *arguments: str) -> dict[str, Any]:
    [rule] = [one for one in yaml.safe_load_all(render(helm, *ON, *arguments)) if one["kind"] == "PrometheusRule"]
    return dict(rule)


def test_file_is_fresh() -> None:
    assert (ROOT / PATH).read_text() == build_file(), "run `make generate`"


def test_there_are_none_unless_they_are_wanted(helm: Path) -> None:
    assert "PrometheusRule" not in render(helm)
    assert "PrometheusRule" in render(helm, *ON)


def test_prometheus_has_nothing_against_them(helm: Path, promtool: Path, tmp_path: Path) -> None:
    done = check_rules(promtool, tmp_path, render_rules(helm))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{len(ALERTS)} rules found" in done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_unit_tests(name: str, helm: Path, promtool: Path, tmp_path: Path) -> None:
    assert run_cases(promtool, tmp_path, only(name, render_rules(helm)), load_cases(name)) == ""


@pytest.mark.parametrize("name", NAMES)
def test_each_is_seen_to_fire_to_be_silent_and_to_clear(name: str) -> None:
    tests = load_cases(name)
    kinds = [kind for test in tests for kind in ("fires", "does not fire", "clears") if test["name"].startswith(kind)]
    assert len(kinds) == len(tests), "a test's name begins with what it shows"
    assert set(kinds) == {"fires", "does not fire", "clears"}
    told = 0
    for test, kind in zip(tests, kinds, strict=True):
        asked = test.get("alert_rule_test", [])
        assert {one["alertname"] for one in asked} <= {name}
        counted = [one for one in test.get("promql_expr_test", []) if one["exp_samples"]]
        told += sum(bool(one["exp_alerts"]) for one in asked)
        # Firing first, and silent later.
        is_silent = bool(asked) and not asked[-1]["exp_alerts"]
        assert is_silent == (kind != "fires"), test["name"]
        assert bool(counted) or kind != "clears", test["name"]
        assert not (counted and kind == "does not fire"), test["name"]
    assert told, "what it says is held against what is expected"


def test_there_are_no_cases_of_others() -> None:
    assert sorted(path.stem for path in CASES.iterdir()) == sorted(NAMES)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"LlavaOperatorDown"}))
def test_another_installation_is_none_of_its_business(name: str, helm: Path, promtool: Path, tmp_path: Path) -> None:
    """What would make it fire, told by another installation's operator."""
    tests = [
        {**test, "alert_rule_test": [{**one, "exp_alerts": []} for one in asked], "promql_expr_test": []}
        for test in load_cases(name)
        if test["name"].startswith("fires") and (asked := test.get("alert_rule_test"))
    ]
    rules = only(name, render_rules(helm, "--set", "alerts.job=another"))
    assert run_cases(promtool, tmp_path, rules, tests) == ""


@pytest.mark.parametrize("alert", ALERTS, ids=NAMES)
def test_each_names_what_is_served_by_one_installation(alert: Alert, rules: dict[str, dict[str, Any]]) -> None:
    expression = rules[alert.name]["expr"]
    check_query(expression)
    selectors = re.findall(r"\b(?:llava_\w+|process_\w+|up)\b(\{[^}]*\})?", expression)
    assert selectors
    assert all(f'job="{JOB}"' in selector for selector in selectors), "each series is of one installation"


@pytest.mark.parametrize("alert", ALERTS, ids=NAMES)
def test_each_can_be_routed_and_read(alert: Alert, rules: dict[str, dict[str, Any]]) -> None:
    rule = rules[alert.name]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert ("namespace" in rule["labels"]) == (not alert.of_runs), "of a run's, the series has it"
    assert {"summary", "description", "runbook_url"} == set(rule["annotations"])
    assert rule["annotations"]["runbook_url"] == f"docs/runbooks/{alert.name}.md"
    for text in (rule["annotations"]["summary"], rule["annotations"]["description"]):
        assert text.endswith("."), text
        assert "$(" not in text
    if alert.of_runs:
        assert "{{ $labels.namespace }}/{{ $labels.name }}" in rule["annotations"]["summary"]


def test_there_is_an_alert_or_a_reason_for_none_for_whatever_a_run_waits_for() -> None:
    # The run goes on by itself with an older one.
    silent = {Reason.CHECKPOINT_DAMAGED}
    waits = {row.reason for row in FAILURES if row.waits} - silent
    assert waits <= {*FOR_ROOM, *FOR_SOMEBODY}


def test_limits_are_the_charts_values_with_bounds() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())["alerts"]
    assert values["limits"] == {limit.name: limit.default for limit in LIMITS}
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["alerts"]["properties"]
    for limit in LIMITS:
        kind = "integer" if limit.name.endswith("Seconds") or float(limit.least).is_integer() else "number"
        assert schema["limits"]["properties"][limit.name] == {
            "type": kind, "minimum": limit.least, "maximum": limit.most,
        }  # fmt: skip
    assert set(schema["limits"]["properties"]) == {limit.name for limit in LIMITS}
    assert sorted(schema["disabled"]["items"]["enum"]) == sorted(NAMES)


@pytest.mark.parametrize("bound", ["least", "most"])
def test_limits_reach_the_alerts_at_their_bounds(bound: str, helm: Path, promtool: Path, tmp_path: Path) -> None:
    """Prometheus takes the rules: large numbers are easily written as 1e+06, which is no duration."""
    values = {limit.name: getattr(limit, bound) for limit in LIMITS}
    shown = f"metrics.finishedRunSeconds={FAILED.most}"
    rules = render_rules(helm, "--set-json", f"alerts.limits={json.dumps(values)}", "--set", shown)
    assert check_rules(promtool, tmp_path, rules).returncode == 0
    text, plain = json.dumps(rules), build_file()
    for limit in LIMITS:
        assert str(limit) in plain
        assert re.search(rf"(?<![0-9.]){getattr(limit, bound)}(?![0-9.])", text), limit.name


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("alerts.limits.restarts=0", "minimum"),
        ("alerts.limits.volumeUsedRatio=2", "maximum"),
        ("alerts.limits.noProgressSeconds=1.5", "integer"),
        ("alerts.limits.other=1", "other"),
        ("alerts.disabled={LlavaNoSuchAlert}", "must be one of"),
        ('alerts.job=a"}', "pattern"),
        ("alerts.limits.restarts=null", r"alerts: $(restarts) has no value"),
    ],
)
def test_what_cannot_be_is_refused(setting: str, said: str, helm: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        render(helm, *ON, "--set", setting)
    assert said in str(caught.value.stderr)


OF_ENDED_RUNS = ("LlavaRunFailed", "LlavaRunsFailAlike", "LlavaRunGateFailed", "LlavaRunNotPublished")
SHORT = ("--set", "metrics.finishedRunSeconds=1800")


@pytest.mark.parametrize(
    ("disabled", "named"),
    [
        ([], f"{' and '.join(OF_ENDED_RUNS)} may end"),
        *(([other for other in OF_ENDED_RUNS if other != one], f"before {one} may end") for one in OF_ENDED_RUNS),
    ],
)
def test_alerts_about_failed_runs_are_not_cut_short_by_their_series(
    disabled: list[str], named: str, helm: Path
) -> None:
    """These go with the run's series, long before their time or before they were ever seen."""
    with pytest.raises(subprocess.CalledProcessError) as caught:
        render(helm, *ON, *SHORT, "--set-json", f"alerts.disabled={json.dumps(disabled)}")
    said = str(caught.value.stderr)
    assert "metrics.finishedRunSeconds is 1800, and alerts.limits.failedSeconds is 3600" in said
    assert "set metrics.finishedRunSeconds to 3600 or more, or alerts.limits.failedSeconds to 1800 or less" in said
    assert named in said


@pytest.mark.parametrize(
    "arguments",
    [
        (*ON, *SHORT, "--set", "alerts.limits.failedSeconds=1800"),
        (*ON, *SHORT, "--set", f"alerts.disabled={{{','.join(OF_ENDED_RUNS)}}}"),
        SHORT,
    ],
    ids=["as long", "disabled", "no alerts"],
)
def test_series_may_go_early_where_no_alert_goes_by_them(arguments: tuple[str, ...], helm: Path) -> None:
    assert render(helm, *arguments)


def test_what_the_operator_renews_in_time_fires_nowhere() -> None:
    assert CERTIFICATE.most < AUTHORITY_RENEWAL.total_seconds()
    assert (LEAF_LIFE - LEAF_RENEWAL) / LEAF_LIFE > 0.2


def test_labels_job_and_pages_are_the_installers(helm: Path) -> None:
    plain = rule_object(helm)
    assert (plain["metadata"]["name"], plain["metadata"]["namespace"]) == ("llava-finetune-operator", NAMESPACE)
    changed = rule_object(
        helm, "--set", "alerts.labels.release=prometheus", "--set", "alerts.alertLabels.team=ml",
        "--set", "alerts.job=scraped/otherwise", "--set", "alerts.runbookUrl=https://pages.example/runbooks/",
        "--set", "alerts.disabled={LlavaRunFailed}",
    )  # fmt: skip
    assert changed["metadata"]["labels"] == {**plain["metadata"]["labels"], "release": "prometheus"}
    rules = {rule["alert"]: rule for group in changed["spec"]["groups"] for rule in group["rules"]}
    assert sorted(rules) == sorted(set(NAMES) - {"LlavaRunFailed"})
    for name, rule in rules.items():
        assert rule["labels"]["team"] == "ml"
        assert rule["annotations"]["runbook_url"] == f"https://pages.example/runbooks/{name}.md"
        assert 'job="scraped/otherwise"' in rule["expr"]
        assert JOB not in rule["expr"]


def test_an_alerts_own_labels_come_first(helm: Path) -> None:
    """A severity for all of them would wake somebody for each, or nobody for any."""
    rules = render_rules(helm, "--set", "alerts.alertLabels.severity=none")
    assert "none" not in {rule["labels"]["severity"] for group in rules["groups"] for rule in group["rules"]}
