"""The real helm and kustomize."""

from pathlib import Path

import pytest

from tests.localcluster.tools import HELM, KUSTOMIZE, ensure_tools


@pytest.fixture(scope="session")
def helm() -> Path:
    return ensure_tools((HELM,)).path("helm")


@pytest.fixture(scope="session")
def kustomize() -> Path:
    return ensure_tools((KUSTOMIZE,)).path("kustomize")
