"""The election, against a Lease in memory and on a virtual clock."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from llava_operator.kube.errors import (
    AlreadyExistsError,
    ConflictError,
    KubeError,
    NotFoundError,
    RetryableError,
)
from llava_operator.kube.kinds import Kind
from llava_operator.kube.leader import LeadershipLostError, Lease, LeaseTimes
from llava_operator.kube.objects import Key, Object
from llava_operator.loop.health import Health
from tests.controller.virtual import run_virtually

TIMES = LeaseTimes(duration_s=15, renew_deadline_s=10, retry_s=2)
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class LeaseServer:
    """An API server that knows one Lease; ``trouble`` is raised instead of an answer, ``is_hanging`` gives none."""

    def __init__(self) -> None:
        self.lease: Object | None = None
        self.trouble: KubeError | None = None
        self.is_hanging = False
        self._version = 0

    async def _answer(self) -> None:
        if self.is_hanging:
            await asyncio.sleep(3600)
        if self.trouble:
            raise self.trouble

    async def get(self, kind: Kind, namespace: str, name: str) -> Object:
        await self._answer()
        if self.lease is None:
            raise NotFoundError("no lease")
        return self.lease

    async def create(self, kind: Kind, namespace: str, body: Object) -> Object:
        await self._answer()
        if self.lease is not None:
            raise AlreadyExistsError("there is one")
        return self._store(body)

    async def replace(self, kind: Kind, namespace: str, name: str, body: Object) -> Object:
        await self._answer()
        assert self.lease is not None
        if body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise ConflictError("changed")
        return self._store(body)

    def _store(self, body: Object) -> Object:
        self._version += 1
        self.lease = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self._version)}}
        return self.lease

    @property
    def spec(self) -> Any:
        assert self.lease is not None
        return self.lease["spec"]


def make_lease(server: LeaseServer, identity: str) -> Lease:
    def now() -> datetime:
        return EPOCH + timedelta(seconds=asyncio.get_running_loop().time())

    return Lease(server, Key("system", "operator"), identity=identity, times=TIMES, now=now)  # type: ignore[arg-type]


async def acquire(lease: Lease) -> float:
    await lease.acquire(on_try=lambda: None, on_answer=lambda: None)
    return asyncio.get_running_loop().time()


def test_first_process_makes_the_lease_and_leads() -> None:
    async def scenario() -> LeaseServer:
        server = LeaseServer()
        assert await acquire(make_lease(server, "a")) == 0
        return server

    assert run_virtually(scenario()).spec == {
        "holderIdentity": "a",
        "leaseDurationSeconds": 15,
        "acquireTime": "2026-01-01T00:00:00.000000Z",
        "renewTime": "2026-01-01T00:00:00.000000Z",
        "leaseTransitions": 1,
    }


def test_standby_waits_while_the_lease_is_renewed_and_takes_it_when_it_is_not() -> None:
    async def scenario() -> tuple[float, Any]:
        server = LeaseServer()
        leader = make_lease(server, "a")
        await acquire(leader)
        holding = asyncio.create_task(leader.hold())
        standby = asyncio.create_task(acquire(make_lease(server, "b")))
        await asyncio.sleep(100)
        assert not standby.done()
        holding.cancel()
        return await standby, server.spec

    at, spec = run_virtually(scenario())
    assert 100 + 15 - 2 <= at <= 100 + 15 + 4
    assert (spec["holderIdentity"], spec["leaseTransitions"]) == ("b", 2)


def test_standby_lives_without_the_api_server() -> None:
    """A restart would not bring it back; that it answers is only what readiness asks for."""

    async def scenario() -> tuple[Health, float]:
        server = LeaseServer()
        server.trouble = RetryableError("down")
        health = Health(heartbeat_s=10, longest_pass_s=60, clock=asyncio.get_running_loop().time)
        waiting = asyncio.create_task(make_lease(server, "a").acquire(on_try=health.beat, on_answer=health.note_ready))
        await asyncio.sleep(1000)
        assert health.is_alive
        assert not health.is_ready
        # Also where it is not even refused.
        server.is_hanging = True
        await asyncio.sleep(1000)
        assert health.is_alive
        server.is_hanging, server.trouble = False, None
        await waiting
        return health, asyncio.get_running_loop().time()

    health, _ = run_virtually(scenario())
    assert health.is_ready


def test_wrong_clocks_do_not_hand_over_a_lease() -> None:
    async def scenario() -> bool:
        server = LeaseServer()
        leader = make_lease(server, "a")
        await acquire(leader)
        server.spec["renewTime"] = "1970-01-01T00:00:00.000000Z"
        standby = asyncio.create_task(acquire(make_lease(server, "b")))
        await asyncio.sleep(10)
        return standby.done()

    assert run_virtually(scenario()) is False


def test_released_lease_is_taken_at_once() -> None:
    async def scenario() -> float:
        server = LeaseServer()
        leader = make_lease(server, "a")
        await acquire(leader)
        standby = asyncio.create_task(acquire(make_lease(server, "b")))
        await asyncio.sleep(5)
        await leader.release()
        return await standby

    assert run_virtually(scenario()) <= 5 + TIMES.retry_s


@pytest.mark.parametrize("hangs", [False, True])
def test_leader_that_cannot_renew_ends_before_others_may_lead(hangs: bool) -> None:
    async def scenario() -> float:
        server = LeaseServer()
        leader = make_lease(server, "a")
        await acquire(leader)
        server.is_hanging, server.trouble = hangs, RetryableError("down")
        with pytest.raises(LeadershipLostError, match="could not be renewed for 10 s"):
            await leader.hold()
        return asyncio.get_running_loop().time()

    assert run_virtually(scenario()) == pytest.approx(TIMES.renew_deadline_s)


def test_leader_survives_a_short_outage() -> None:
    async def scenario() -> bool:
        server = LeaseServer()
        leader = make_lease(server, "a")
        await acquire(leader)
        holding = asyncio.create_task(leader.hold())
        server.trouble = RetryableError("down")
        await asyncio.sleep(6)
        server.trouble = None
        await asyncio.sleep(60)
        return holding.done()

    assert run_virtually(scenario()) is False


def test_leader_whose_lease_was_taken_ends() -> None:
    async def scenario() -> None:
        server = LeaseServer()
        leader = make_lease(server, "a")
        await acquire(leader)
        server.spec["holderIdentity"] = "b"
        with pytest.raises(LeadershipLostError, match="held by b"):
            await leader.hold()

    run_virtually(scenario())


def test_lost_race_is_no_leadership() -> None:
    async def scenario() -> float:
        server = LeaseServer()
        leases = [make_lease(server, name) for name in "ab"]
        done, _ = await asyncio.wait([asyncio.create_task(acquire(lease)) for lease in leases], timeout=10)
        return len(done)

    assert run_virtually(scenario()) == 1
