"""How much memory this process has held. Linux only, like everything that runs in a stage."""

from pathlib import Path


def resident_bytes() -> int:
    """Memory resident now."""
    return _read("VmRSS")


def peak_resident_bytes() -> int:
    """Most memory that was ever resident. Unlike ru_maxrss it does not count what ran before exec."""
    return _read("VmHWM")


def _read(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
