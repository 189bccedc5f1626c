"""Tests that documentation names: whether they exist, and what they say."""

import ast
from functools import cache
from pathlib import Path

from tests.rendering import ROOT


@cache
def functions(path: Path) -> dict[str, str]:
    """Source of every function of a module, by its name."""
    text = path.read_text()
    found = (one for one in ast.walk(ast.parse(text)) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef))
    return {one.name: ast.get_source_segment(text, one) or "" for one in found}


def source_of(test: str) -> str:
    """Source of a test that is named as pytest is told (``tests/…/test_x.py::test_y``).

    Raises:
        AssertionError: there is none.
    """
    path, _, name = test.partition("::")
    assert name.startswith("test_"), f"{test} is no test"
    assert (ROOT / path).is_file(), f"{path} is not there"
    assert name in functions(ROOT / path), f"{path} has no {name}"
    return functions(ROOT / path)[name]
