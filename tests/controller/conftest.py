"""An operator and its API server, in memory, for every test of passes."""

import pytest

from tests.controller.in_memory import ApiServer, Operator


@pytest.fixture
def server() -> ApiServer:
    """With one run, which nothing has been done about."""
    made = ApiServer()
    made.put_run()
    return made


@pytest.fixture
def operator(server: ApiServer) -> Operator:
    return Operator(server)
