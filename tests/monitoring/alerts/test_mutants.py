"""Each part of each alert matters to its unit tests: whatever is broken in an expression, one of them fails."""

import re
from pathlib import Path
from typing import Any

import pytest

from llava_monitoring.alerts.rules import ALERTS
from tests.monitoring.alerts.mutants import break_expression, break_hold
from tests.monitoring.alerts.promtool import load_cases, render_rules, run_cases


def _broken(rule: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        *({**rule, "expr": wrong} for wrong in break_expression(rule["expr"])),
        *({**rule, "for": wrong} for wrong in break_hold(rule["for"])),
    ]


def _renamed(value: Any, name: str, new: str) -> Any:
    if isinstance(value, dict):
        return {key: _renamed(held, name, new) for key, held in value.items()}
    if isinstance(value, list):
        return [_renamed(held, name, new) for held in value]
    # Not in the page's address, which goes by the alert that was broken.
    return re.sub(rf"(?<!/){name}\b", new, value) if isinstance(value, str) else value


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [alert.name for alert in ALERTS])
def test_whatever_is_broken_in_an_alert_its_unit_tests_notice(
    name: str, helm: Path, promtool: Path, tmp_path: Path
) -> None:
    [rule] = [rule for group in render_rules(helm)["groups"] for rule in group["rules"] if rule["alert"] == name]
    # All of them in one run, each under a name of its own: promtool says by name what it finds wrong.
    mutants = {f"{name}__{number}": mutant for number, mutant in enumerate(_broken(rule))}
    rules = [{**mutant, "alert": new} for new, mutant in mutants.items()]
    tests = [_asking_for(test, name, list(mutants)) for test in load_cases(name)]
    said = run_cases(promtool, tmp_path, {"groups": [{"name": "mutants", "rules": rules}]}, tests)
    noticed = set(re.findall(rf"{name}__[0-9]+", said))
    survivors = [mutant for new, mutant in mutants.items() if new not in noticed]
    assert len(mutants) > 3
    assert "\n".join(f"{one['expr']} for {one['for']}" for one in survivors) == ""


def _asking_for(test: dict[str, Any], name: str, mutants: list[str]) -> dict[str, Any]:
    asked = {key: test[key] for key in ("alert_rule_test", "promql_expr_test") if key in test}
    return {
        **test,
        **{key: [_renamed(one, name, mutant) for one in held for mutant in mutants] for key, held in asked.items()},
    }
