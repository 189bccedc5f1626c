"""The dashboards in the chart: off by default, and where Grafana's sidecar finds them."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from llava_monitoring.generate import build_dashboards
from tests.rendering import ROOT, render

ON = ("--set", "dashboards.enabled=true")


def config_maps(helm: Path, *arguments: str) -> list[dict[str, Any]]:
    found = [one for one in yaml.safe_load_all(render(helm, *arguments)) if one]
    return [one for one in found if one["kind"] == "ConfigMap"]


def test_there_are_none_unless_asked_for(helm: Path) -> None:
    assert config_maps(helm) == []


def test_each_is_a_config_map_with_the_sidecars_label(helm: Path) -> None:
    found = config_maps(helm, *ON)
    assert {one["metadata"]["name"] for one in found} == {
        f"llava-finetune-operator-llava-{which}" for which in ("fleet", "run", "operator")
    }
    for one in found:
        assert one["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert one["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm"
        assert one["metadata"]["namespace"] == "llava-system"
        assert "annotations" not in one["metadata"]


def test_their_content_is_the_generated_one(helm: Path) -> None:
    """Grafana's own ``{{label}}`` is not taken for the chart's."""
    content = {name: text for one in config_maps(helm, *ON) for name, text in one["data"].items()}
    assert content == build_dashboards()
    assert all("{{" in text for text in content.values())


def test_label_folder_and_namespace_are_the_installers(helm: Path) -> None:
    found = config_maps(
        helm, *ON, "--set", "dashboards.namespace=monitoring", "--set", "dashboards.annotations.grafana_folder=LLaVA",
        "--set", "dashboards.labels.grafana_dashboard=null", "--set-string", "dashboards.labels.dashboards=yes",
    )  # fmt: skip
    assert len(found) == 3
    for one in found:
        assert one["metadata"]["namespace"] == "monitoring"
        assert one["metadata"]["annotations"] == {"grafana_folder": "LLaVA"}
        assert "grafana_dashboard" not in one["metadata"]["labels"]
        assert one["metadata"]["labels"]["dashboards"] == "yes"


@pytest.mark.parametrize("setting", ["enabled=perhaps", "label=x", "labels=x", "annotations=x", "namespace={}"])
def test_wrong_values_are_refused_by_name(helm: Path, setting: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        render(helm, "--set", f"dashboards.{setting}")
    assert setting.partition("=")[0] in str(caught.value.stderr)


def test_make_writes_them_as_files(tmp_path: Path) -> None:
    folder = tmp_path / "to import"
    command = ["make", "--no-print-directory", "dashboards", f"FOLDER={folder}"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert str(folder) in done.stdout
    assert {path.name: path.read_text() for path in folder.iterdir()} == build_dashboards()
    assert all(json.loads(path.read_text())["uid"] == path.stem for path in folder.iterdir())
