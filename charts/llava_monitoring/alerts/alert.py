"""What an alert is, and how Prometheus is told of it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from llava_monitoring.alerts.limits import JOB, NAMESPACE, PAGES

OF_OPERATOR = f'job="{JOB}"'
"""Matcher of everything that one installation serves: of runs too, so that two installations do not tell of each
other's."""


class Severity(StrEnum):
    """Who has to look, and when."""

    CRITICAL = "critical"
    """Somebody, now: no run goes on, or nobody would see if one did not."""
    WARNING = "warning"
    """Somebody, today."""


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One alert. Its name is the name of its page in docs/runbooks, too."""

    name: str
    severity: Severity = Severity.WARNING
    expression: str
    hold: str
    """For how long the expression has to be true. Longer than a change of leader takes, and a few scrapes."""
    summary: str
    description: str
    of_runs: bool = True
    """Whether `namespace` and `name` are a run's; else `namespace` is the operator's, whatever the series have."""

    def build(self) -> dict[str, Any]:
        """The rule, with ``$(...)`` where Helm fills in."""
        labels = {"severity": str(self.severity)}
        return {
            "alert": self.name,
            "expr": self.expression,
            "for": self.hold,
            "labels": labels if self.of_runs else labels | {"namespace": NAMESPACE},
            "annotations": {
                "summary": self.summary,
                "description": self.description,
                "runbook_url": f"{PAGES}/{self.name}.md",
            },
        }
