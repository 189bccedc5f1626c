"""How much memory this process has held, and what it keeps. Linux only, like everything that runs in a stage."""

import ctypes
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


_M_MMAP_THRESHOLD = -3
"""malloc.h of the GNU C library."""
_RETURNED_BYTES = 1 << 20


def return_freed_memory() -> None:
    """Have freed blocks of a MiB and more go back to the system at once, from now on.

    The C library would keep what it takes for small, up to 32 MiB a block and for each thread: several times as much as
    is held at a time where a process makes tensor after tensor. Other libraries than GNU's are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _RETURNED_BYTES)


def resident_bytes() -> int:
    """Memory resident now."""
    return _read("VmRSS")


def peak_resident_bytes() -> int:
    """Most memory that was ever resident. Unlike ru_maxrss it does not count what ran before exec."""
    return _read("VmHWM")


def find_free_bytes() -> int:
    """Memory that this process may still take: what its container's limit and the node leave."""
    available = next(
        line for line in _MEMINFO.read_text(encoding="ascii").splitlines() if line.startswith("MemAvailable")
    )
    free = int(available.split()[1]) * 1024
    for limit in _LIMITS:
        # "max", or no such file: cgroups of the other version, or none.
        text = limit.read_text(encoding="ascii").strip() if limit.exists() else "max"
        if text.isdigit():
            free = min(free, int(text) - resident_bytes())
    return max(0, free)


def _read(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
