"""Writes files that are made from code, for ``make generate``: each package says which, this is how."""

import sys
from collections.abc import Mapping
from pathlib import Path


def write_files(files: Mapping[Path, str]) -> None:
    """Write files below the folder that is the program's only argument, or the current one.

    Args:
        files: content by path from there; folders are made.
    """
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    for path, content in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
