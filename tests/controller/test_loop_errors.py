"""What the event loop itself has to complain of, on its way into the log."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from llava_operator import main
from llava_operator.settings import Settings
from llava_operator.telemetry.logs import PlainFormatter

SETTINGS = Settings(namespace="system", pod_name="op", pod_ip="192.0.2.1", trainer_image="t")


class ConnectError(Exception):
    """There is no cluster."""


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(**_: Any) -> None:
        raise ConnectError

    monkeypatch.setattr(main, "connect", refuse)


async def watch() -> AsyncIterator[int]:
    """Like kopf's: it is at an await when it is closed, and what it closes itself fails."""
    try:
        yield 1
    finally:
        raise RuntimeError("Session is closed\nforged line")


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What stands in the operator's log."""
    formatter = PlainFormatter("%(levelname)s %(name)s: %(message)s")
    return [line for record in caplog.records for line in formatter.format(record).splitlines()]


def test_a_watch_that_is_cut_off_at_the_end_is_a_line(caplog: pytest.LogCaptureFixture) -> None:
    watches = [watch(), watch()]

    async def operate() -> None:
        for one in watches:
            assert await anext(one) == 1
        with pytest.raises(ConnectError):
            await main.run_operator(SETTINGS)

    with caplog.at_level(logging.INFO):
        asyncio.run(operate())
    assert [line for line in lines(caplog) if "cut off" in line] == [
        "WARNING llava_operator.main: watch was cut off when the process ended: "
        r"RuntimeError('Session is closed\nforged line')"
    ] * len(watches)
    assert "Traceback" not in "\n".join(lines(caplog))


def test_other_errors_of_the_loop_are_told_whole(caplog: pytest.LogCaptureFixture) -> None:
    async def operate() -> None:
        with pytest.raises(ConnectError):
            await main.run_operator(SETTINGS)
        context = {"message": "a callback failed", "exception": ValueError("out of range")}
        asyncio.get_running_loop().call_exception_handler(context)

    asyncio.run(operate())
    said = lines(caplog)
    assert said[0] == "ERROR asyncio: a callback failed"
    assert said[-1] == "ValueError: out of range"
