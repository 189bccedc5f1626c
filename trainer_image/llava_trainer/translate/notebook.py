"""A Jupyter notebook's code cells as text."""

import json
from typing import Any

_BETWEEN = "```"
"""A line that ends whatever the cell before it has begun."""


def unwrap_notebook(text: str) -> str:
    """Code cells of ``text`` one after the other; what is no notebook comes back as it is."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        cells = json.loads(text)["cells"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return text
    sources = [_source(cell) for cell in cells] if isinstance(cells, list) else []
    return f"\n{_BETWEEN}\n".join(source for source in sources if source)


def _source(cell: Any) -> str:
    if not isinstance(cell, dict) or cell.get("cell_type") != "code":
        return ""
    source = cell.get("source", "")
    return "".join(str(line) for line in source) if isinstance(source, list) else str(source)
