"""``python -m llava_monitoring.generate``: writes every file that is made from this package."""

from pathlib import Path

from llava_api.generated import write_files
from llava_monitoring.alerts import rules
from llava_monitoring.dashboards.fleet import build_fleet
from llava_monitoring.dashboards.operator import build_operator
from llava_monitoring.dashboards.run import build_run
from llava_monitoring.reading import as_json, check_dashboard

CHART = Path("charts/llava-finetune-operator")
DASHBOARDS = CHART / "files" / "dashboards"


def build_dashboards() -> dict[str, str]:
    """The dashboards as Grafana imports them, by name of the file.

    Raises:
        QueryError: a query of theirs names what does not exist.
    """
    files = {}
    for made in (build_fleet(), build_run(), build_operator()):
        content = as_json(made)
        check_dashboard(content)
        files[f"{made.uid}.json"] = content
    return files


def build_files() -> dict[Path, str]:
    """Content of every generated file, by its path from the repository's root."""
    dashboards = {DASHBOARDS / name: content for name, content in build_dashboards().items()}
    return {rules.PATH: rules.build_file(), **dashboards}


def main() -> None:
    """Write them."""
    write_files(build_files())


if __name__ == "__main__":
    main()
