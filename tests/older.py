"""The version before runs had attempts: its own code, run with today's libraries."""

import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from tests.rendering import ROOT

COMMIT = "c6cf947"
"""The last one that knew one attempt a stage, and results at the volume's root."""


def extract_older(folder: Path, *paths: str) -> Path:
    """Write files of that version below ``folder``; the test fails where the clone does not reach back to it."""
    made = subprocess.run(["git", "-C", str(ROOT), "archive", COMMIT, *paths], capture_output=True, check=False)
    if made.returncode:
        pytest.fail(f"commit {COMMIT} is needed (git fetch --unshallow): {made.stderr.decode()}")
    with tarfile.open(fileobj=BytesIO(made.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder
