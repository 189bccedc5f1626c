"""Runs alerts' unit tests by the real promtool, on the rules as the chart renders them.

In the case files a few words in braces stand for labels as a ServiceMonitor with honorLabels leaves them.
"""

import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.rendering import NAMESPACE, render

CASES = Path(__file__).parent / "cases"
JOB = "llava-finetune-operator-metrics"


def _labels(job: str = JOB, pod: str = "operator-0", **more: str) -> str:
    return ",".join(f'{name}="{value}"' for name, value in {"job": job, "pod": pod, **more}.items())


_WORDS = {
    "run": _labels(namespace="team", name="invoices"),
    "next": _labels(pod="operator-1", namespace="team", name="invoices"),
    "other_run": _labels(namespace="team", name="receipts"),
    "third_run": _labels(namespace="team-b", name="invoices"),
    "fourth_run": _labels(namespace="team-b", name="receipts"),
    "operator": _labels(namespace=NAMESPACE),
    "standby": _labels(pod="operator-1", namespace=NAMESPACE),
    "elsewhere": _labels(job="other-metrics", namespace="other-system"),
}
"""`next` is a run as the pod tells of it that leads next; `elsewhere` is another installation."""
_WORD = re.compile(r"\$([a-z_]+)\b")


@cache
def render_rules(helm: Path, *arguments: str) -> dict[str, Any]:
    """What the PrometheusRule holds, by the chart's own values besides the arguments."""
    documents = yaml.safe_load_all(render(helm, "--set", "alerts.enabled=true", *arguments))
    [rule] = [document for document in documents if document and document["kind"] == "PrometheusRule"]
    spec: dict[str, Any] = rule["spec"]
    return spec


def load_cases(alert: str) -> list[dict[str, Any]]:
    """An alert's unit tests, as promtool takes them."""
    words = {**_WORDS, "firing": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})'}
    tests = yaml.safe_load((CASES / f"{alert}.yaml").read_text())["tests"]
    return [{"interval": "1m", **_expand(test, words)} for test in tests]


def _expand(value: Any, words: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _expand(held, words) for key, held in value.items()}
    if isinstance(value, list):
        return [_expand(held, words) for held in value]
    return _WORD.sub(lambda found: words[found[1]], value) if isinstance(value, str) else value


def run_cases(promtool: Path, folder: Path, rules: dict[str, Any], tests: list[dict[str, Any]]) -> str:
    """What promtool says against the tests; empty where they pass."""
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    asked = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}
    (folder / "tests.yaml").write_text(yaml.safe_dump(asked))
    done = subprocess.run(
        [promtool, "test", "rules", folder / "tests.yaml"], capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def check_rules(promtool: Path, folder: Path, rules: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """``promtool check rules``, with every lint it knows."""
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    return subprocess.run(
        [promtool, "check", "rules", "--lint=all", "--lint-fatal", folder / "rules.yaml"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
