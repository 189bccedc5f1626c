"""What a flood of connections costs the operator: memory, time of its event loop, and reports of others.

A process opens connections of every bad kind, 300 at a time, while the endpoint runs in this one and a run reports from
an address of its own, every second. With the operator's limits, from one address and from 300, and without limits.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

from llava_operator.serving.connections import Limits
from tests.controller.desk import HOST, Client, Desk, make_report

SECONDS = 15
THREADS = 300
NO_LIMITS = Limits(
    connections=10**6, connections_per_source=10**6, new_at_once=10**9, new_per_source_at_once=10**9,
    requests_per_source_per_s=1e9, handshake_s=3600, head_s=3600, request_s=3600, idle_s=3600,
)  # fmt: skip


async def measure(name: str, limits: Limits, num_threads: int, num_addresses: int = 1) -> None:
    """Print one row."""
    desk = Desk()
    async with desk.serve(limits) as client:
        await report(desk, client)
        memory, cpu, began = resident_mb(), time.process_time(), time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            authority = Path(folder, "ca.crt")
            authority.write_text(client.roots)  # noqa: ASYNC240
            flood = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.controller.flood", str(client.port), str(authority), HOST,
                str(num_threads), str(num_addresses), stdin=asyncio.subprocess.PIPE,
            )  # fmt: skip
            late, waits, refused, peak = [], [], 0, 0.0
            while (elapsed := time.monotonic() - began) < SECONDS:
                before = time.monotonic()
                await asyncio.sleep(0.01)
                late.append(time.monotonic() - before - 0.01)
                peak = max(peak, resident_mb())
                if elapsed > len(waits) + refused:
                    try:
                        waits.append(await report(desk, client))
                    except (OSError, TimeoutError):
                        refused += 1
            busy = (time.process_time() - cpu) / (time.monotonic() - began)
            flood.kill()
            await flood.wait()
    late_ms = sorted(1000 * seconds for seconds in late)
    closed = ", ".join(f"{number} {why}" for why, number in desk.closed.items()) or "none"
    median_ms, most_ms = late_ms[len(late) // 2], late_ms[len(late) * 99 // 100]
    print(
        f"{name}: {peak - memory:.0f} MB more, {busy:.0%} of a core, loop late by {median_ms:.1f} ms (median) "
        f"{most_ms:.0f} ms (99 %); {len(waits)} of {len(waits) + refused} reports taken, "
        f"each in {1000 * statistics.median(waits or [0]):.0f} ms; closed: {closed}"
    )


async def report(desk: Desk, client: Client) -> float:
    """Seconds that a report took, from an address of its own."""
    desk.clock.now += 60
    before = time.monotonic()
    async with asyncio.timeout(5):
        code, _ = await client.post(make_report(), source="127.0.0.2")
    if code != 200:
        raise OSError(f"answered {code}")
    return time.monotonic() - before


def resident_mb() -> float:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


async def main() -> None:
    """All rows."""
    await measure("no flood", Limits(), 0)
    await measure("from one address", Limits(), THREADS)
    await measure("from 300 addresses", Limits(), THREADS, THREADS)
    await measure("without limits", NO_LIMITS, THREADS)


if __name__ == "__main__":
    asyncio.run(main())
