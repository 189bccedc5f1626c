"""The file that the chart makes its PrometheusRule from."""

from pathlib import Path

import yaml

from llava_monitoring.alerts.alert import Alert
from llava_monitoring.alerts.limits import fill
from llava_monitoring.alerts.operators import OPERATOR_ALERTS
from llava_monitoring.alerts.runs import RUN_ALERTS
from llava_monitoring.promql import check_query

PATH = Path("charts/llava-finetune-operator/files/alerts.yaml")
GROUPS: dict[str, tuple[Alert, ...]] = {"llava-runs": RUN_ALERTS, "llava-operator": OPERATOR_ALERTS}
ALERTS = (*RUN_ALERTS, *OPERATOR_ALERTS)
_HEADER = (
    "# Made from charts/llava_monitoring/alerts by `make generate`: change that, not this file. Helm replaces $(...).\n"
)


def build_file() -> str:
    """Groups of rules as YAML, with ``$(...)`` where the chart's values go.

    Raises:
        QueryError: an expression names what does not exist.
    """
    for alert in ALERTS:
        check_query(fill(alert.expression))
    groups = [{"name": name, "rules": [alert.build() for alert in alerts]} for name, alerts in GROUPS.items()]
    return _HEADER + yaml.safe_dump({"groups": groups}, sort_keys=False, width=120, allow_unicode=True)
