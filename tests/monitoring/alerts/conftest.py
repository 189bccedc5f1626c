"""The real helm, by which the rules are rendered."""

from pathlib import Path

import pytest

from tests.localcluster.tools import HELM, ensure_tools


@pytest.fixture(scope="session")
def helm() -> Path:
    return ensure_tools((HELM,)).path("helm")
