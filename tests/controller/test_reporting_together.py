"""The trainer's client against the operator's endpoint, over real TLS."""

import asyncio
from pathlib import Path

from llava_api.constants import StageName
from llava_api.run_config import Reporting, RunConfig, RunIdentity
from llava_operator.serving.connections import Limits
from llava_trainer.reporting import Pace, Reporter
from tests.controller.desk import GOOD, Client, Desk
from tests.controller.makers import KEY, RUN_UID
from tests.trainer.exports import prepare_config

ONE_CONNECTION = Limits(new_per_source_at_once=1, new_per_source_per_s=1e-6)
"""Whoever wants a second one is turned away."""


def config_for(client: Client, folder: Path) -> RunConfig:
    (folder / "ca.crt").write_text(client.roots)
    (folder / "token").write_text(GOOD)
    run = RunIdentity(namespace=KEY.namespace, name=KEY.name, uid=RUN_UID, stage=StageName.TRAIN, attempt=1)
    url = f"https://localhost:{client.port}/v1/progress"
    reporting = Reporting(url=url, ca_file=folder / "ca.crt", token_file=folder / "token")
    return prepare_config(folder, folder).model_copy(update={"run": run, "reporting": reporting})


async def report(desk: Desk, reporter: Reporter, step: int) -> None:
    """Report a step and wait until the operator has it."""
    desk.clock.now += 10
    before = len(desk.codes)
    reporter.update(step, 100)
    async with asyncio.timeout(20):
        while len(desk.codes) == before:
            await desk.answered.wait()
            desk.answered.clear()


async def test_one_tcp_connection_carries_all_reports_of_a_stage(tmp_path: Path) -> None:
    desk = Desk(interval_s=0.05)
    async with desk.serve(ONE_CONNECTION) as client:
        with Reporter(config_for(client, tmp_path), Pace(interval_s=0.01)) as reporter:
            for step in range(1, 13):
                await report(desk, reporter, step)
        assert desk.codes == [200] * 12
        assert desk.closed == {}
    newest = desk.progress.newest(RUN_UID, StageName.TRAIN, 1)
    assert newest is not None
    assert newest.step == 12


async def test_the_trainer_comes_when_it_is_welcome_and_with_its_last_report(tmp_path: Path) -> None:
    """Every 200 seconds, with a thousand runs: too long to keep a connection for, and the last report comes at once."""
    desk = Desk(interval_s=200)
    async with desk.serve() as client:
        with Reporter(config_for(client, tmp_path), Pace(interval_s=0.01)) as reporter:
            await report(desk, reporter, 1)
            for step in range(2, 40):
                reporter.update(step, 100)
                await asyncio.sleep(0.01)
            assert desk.codes == [200]
            # Closing waits for its thread, and this loop has to answer it.
            await asyncio.to_thread(reporter.close)
        assert desk.codes == [200, 200]
    newest = desk.progress.newest(RUN_UID, StageName.TRAIN, 1)
    assert newest is not None
    assert newest.step == 39
    assert desk.closed == {}
