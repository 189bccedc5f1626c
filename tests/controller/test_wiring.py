"""What an operator begins with, before it has talked to anybody."""

from collections.abc import AsyncIterator

import pytest
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from llava_operator.wiring import Operator
from tests.controller.test_settings import read


@pytest.fixture
async def operator() -> AsyncIterator[Operator]:
    async with ApiClient(Configuration()) as api:
        yield Operator(settings=read(), api=api)


@pytest.mark.parametrize(
    ("series", "labels"),
    [
        ("stage_duration_seconds_count", {"stage": "evaluate", "state": "Succeeded"}),
        ("stage_duration_seconds_count", {"stage": "train", "state": "Failed"}),
        ("reports_refused_total", {"reason": "not_current"}),
        ("relists_total", {"outcome": "failed"}),
        ("notifications_total", {"event": "Failed", "outcome": "undelivered"}),
        ("watch_failures_total", {"resource": "pods"}),
    ],
)
async def test_series_that_are_known_begin_at_0(operator: Operator, series: str, labels: dict[str, str]) -> None:
    """increase() is 0, and the median of a histogram is NaN, over a series that begins with its first event."""
    assert operator.registry.get_sample_value(f"llava_operator_{series}", labels) == 0
