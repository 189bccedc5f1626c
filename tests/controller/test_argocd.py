"""The health check for Argo CD that docs/gitops.md gives, run as Argo CD runs it: in Lua 5.1, without its libraries."""

import re
from pathlib import Path
from typing import Any

import lupa.lua51
import pytest

from tests.controller.lives import Life, list_lives

DOCUMENT = Path(__file__).parents[2] / "docs" / "gitops.md"
_UNSAFE = ("os", "io", "debug", "package", "require", "python", "dofile", "loadfile", "load", "loadstring")


def check_health(run: dict[str, Any]) -> tuple[str, str]:
    """Status and message."""
    script = re.search(r"```lua\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert script is not None
    lua = lupa.lua51.LuaRuntime(unpack_returned_tuples=True)
    for name in _UNSAFE:
        lua.globals()[name] = None
    lua.globals()["obj"] = lua.table_from(run, recursive=True)
    answer = lua.execute(script[1])
    return answer["status"], answer["message"]


LIVES = list_lives()


@pytest.mark.parametrize("life", LIVES.values(), ids=LIVES.keys())
def test_health_at_every_point_of_a_runs_life(life: Life) -> None:
    assert check_health(life.run)[0] == life.argocd


def test_message_says_why() -> None:
    told = check_health(LIVES["waits for an image"].run)[1]
    assert told == "ImageCannotBePulled: prepare: pod pod-0 waits: ImagePullBackOff: no such image"
    assert check_health(LIVES["failed for good"].run)[1].startswith("WorkerKilled: ")


def test_run_without_any_status_is_progressing() -> None:
    run = {key: value for key, value in LIVES["created"].run.items() if key != "status"}
    assert check_health(run) == ("Progressing", "waits for the operator")
