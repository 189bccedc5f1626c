"""The dashboards as they are shipped: fresh, complete, laid out without holes, and asking for nothing unknown."""

import json
from pathlib import Path
from typing import Any

import pytest

from llava_monitoring.generate import DASHBOARDS, build_files
from llava_monitoring.promql import BUILT_IN, QueryError, check_query, expand, metrics_of
from llava_monitoring.reading import check_dashboard, names_of_variables, panels_of, queries_of
from tests.rendering import ROOT

GRID = 24
FILES = sorted((ROOT / DASHBOARDS).glob("*.json"))
BOARDS: dict[str, dict[str, Any]] = {path.stem: json.loads(path.read_text()) for path in FILES}
PANELS = [(name, panel) for name, board in BOARDS.items() for panel in panels_of(board) if panel["type"] != "row"]
IDS = [f"{name}: {panel['title']}" for name, panel in PANELS]


@pytest.mark.parametrize(("path", "content"), build_files().items(), ids=lambda value: Path(str(value)[:90]).name)
def test_generated_files_are_fresh(path: Path, content: str) -> None:
    assert (ROOT / path).read_text() == content, f"{path} is stale: run `make generate`"


def test_no_dashboard_is_left_over() -> None:
    assert {path.relative_to(ROOT) for path in FILES} == {path for path in build_files() if path.parent == DASHBOARDS}


def test_there_are_three_and_they_lead_to_each_other() -> None:
    assert set(BOARDS) == {"llava-fleet", "llava-operator", "llava-run"}
    for name, board in BOARDS.items():
        assert board["uid"] == name
        assert board["links"][0]["tags"] == board["tags"]
        assert "datasource" in names_of_variables(board)


@pytest.mark.parametrize(("name", "panel"), PANELS, ids=IDS)
def test_every_panel_has_a_unit_and_a_description(name: str, panel: dict[str, Any]) -> None:
    assert panel["description"].strip()[-1:] in (".", ")"), "a sentence"
    if panel["type"] == "text":
        return
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["targets"]
    for target in panel["targets"]:
        assert target["datasource"] == panel["datasource"]


@pytest.mark.parametrize("name", BOARDS)
def test_panels_fill_the_grid_and_do_not_overlap(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels_of(BOARDS[name]):
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert not cells & taken, panel["title"]
        taken |= cells
    assert taken == {(x, y) for x in range(GRID) for y in range(max(y for _, y in taken) + 1)}


@pytest.mark.parametrize("name", BOARDS)
def test_every_panel_is_in_a_row_and_has_a_number_of_its_own(name: str) -> None:
    assert BOARDS[name]["panels"][0]["type"] == "row"
    numbers = [panel["id"] for panel in panels_of(BOARDS[name])]
    assert len(set(numbers)) == len(numbers)
    assert 0 not in numbers


@pytest.mark.parametrize("name", BOARDS)
def test_every_query_names_what_exists(name: str) -> None:
    board = BOARDS[name]
    chosen = {**dict.fromkeys(names_of_variables(board), "1"), **BUILT_IN}
    asked = [expand(query.expression, chosen) for query in queries_of(board)]
    for query in asked:
        check_query(query)
    assert len(asked) > 20
    central = "llava_operator_info" if name == "llava-operator" else "llava_run_phase"
    assert central in set().union(*map(metrics_of, asked))


def test_a_dashboard_that_asks_for_what_is_not_there_is_not_made() -> None:
    board = json.loads(json.dumps(BOARDS["llava-run"]))
    board["annotations"]["list"][-1]["expr"] = "llava_run_paused"
    with pytest.raises(QueryError, match="llava_run_paused"):
        check_dashboard(json.dumps(board))


def test_nothing_about_one_run_is_asked_of_all() -> None:
    """A panel that forgot to choose would show somebody else's run."""
    for query in queries_of(BOARDS["llava-run"]):
        if "annotation" in query.where or "panel" in query.where:
            assert 'namespace="$namespace"' in query.expression, query.where
            assert "$run" in query.expression, query.where
    for query in queries_of(BOARDS["llava-fleet"]):
        if "llava_run" in query.expression and "variable" not in query.where:
            assert 'namespace=~"$namespace"' in query.expression, query.where
