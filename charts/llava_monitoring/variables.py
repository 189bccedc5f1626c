"""What can be chosen at the top of a dashboard."""

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as models

from llava_monitoring.panels import SOURCE

Variable = Builder[models.VariableModel]
_EVERYTHING = ".*"


def source() -> Variable:
    """Which Prometheus is asked."""
    return dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")


def choice(name: str, label: str, query: str) -> Variable:
    """One of the values that ``label_values(SELECTOR, LABEL)`` finds."""
    return _query(name, label, query).refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)


def choices(name: str, label: str, query: str) -> Variable:
    """Any of them, or all."""
    everything = models.VariableOption(text="All", value="$__all", selected=True)
    made = _query(name, label, query).multi(True).include_all(True).all_value(_EVERYTHING)
    return made.current(everything).refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)


def entry(name: str, label: str, default: str) -> Variable:
    """What a person types."""
    option = models.VariableOption(text=default, value=default, selected=True)
    return dashboard.TextBoxVariable(name).label(label).default_value(default).current(option).options([option])


def _query(name: str, label: str, query: str) -> dashboard.QueryVariable:
    made = dashboard.QueryVariable(name).label(label).query(query).datasource(SOURCE)
    return made.sort(models.VariableSort.ALPHABETICAL_CASE_INSENSITIVE_ASC)
