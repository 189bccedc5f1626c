"""How many cores this process may compute on: its container's, not the node's. Linux only."""

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def count_cores(cgroup: Path = _CGROUP) -> int:
    """Cores of the container's CPU limit, or of the node where there is none; 1 at least.

    Args:
        cgroup: where cgroups are mounted; inside a container the root of it is the container's own.
    """
    allowed = len(os.sched_getaffinity(0))
    quota, period = _read_limit(cgroup)
    return max(1, min(allowed, quota // period)) if quota > 0 and period > 0 else allowed


def _read_limit(cgroup: Path) -> tuple[int, int]:
    """Microseconds of processor time, and in how many of the clock; a quota of 0 where nothing limits it."""
    unified, legacy = cgroup / "cpu.max", cgroup / "cpu" / "cpu.cfs_quota_us"
    if unified.exists():
        quota, period = unified.read_text(encoding="ascii").split()
    elif legacy.exists():
        quota, period = legacy.read_text(encoding="ascii"), legacy.with_name("cpu.cfs_period_us").read_text("ascii")
    else:
        return 0, 0
    # "max" in the one and -1 in the other version: no limit.
    return (int(quota), int(period)) if quota.strip().isdigit() else (0, 0)
