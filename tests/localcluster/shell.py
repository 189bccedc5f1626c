"""Running programs and waiting, always with a deadline and a message that names what was going on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.localcluster.errors import ClusterError

_TAIL_LINES = 15


def log(message: str) -> None:
    """Write one line of progress to standard error, so that standard output stays parseable."""
    print(f"localcluster: {message}", file=sys.stderr, flush=True)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a program that we run, with the folders of system programs: some shells leave them out."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
    return {**os.environ, "PATH": path, **(extra or {})}


def tail(text: str, num_lines: int = _TAIL_LINES) -> str:
    """The last lines of a program's output, indented for an error message."""
    lines = [line for line in text.splitlines() if line.strip()][-num_lines:]
    return "\n".join(f"    {line}" for line in lines)


def run(
    argv: Sequence[str | Path],
    *,
    what: str,
    timeout_s: float,
    stdin: str | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and return its output.

    Raises ClusterError naming `what` when the program is missing, fails (unless check is False) or is
    still running after timeout_s seconds.
    """
    command = [str(part) for part in argv]
    try:
        done = subprocess.run(
            command,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            cwd=cwd,
            env=environment(env),
            check=False,
        )
    except FileNotFoundError as error:
        raise ClusterError(
            f"{what}: the program {command[0]!r} was not found; run `python3 -m tests.localcluster tools --install`"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{what}: `{' '.join(command)}` was still running after {timeout_s:.0f} s") from error
    if check and done.returncode != 0:
        raise ClusterError(
            f"{what}: `{' '.join(command)}` ended with exit code {done.returncode}:\n{tail(done.stderr or done.stdout)}"
        )
    return done


def wait_until(
    what: str,
    probe: Callable[[], str | None],
    *,
    timeout_s: float,
    interval_s: float = 0.2,
) -> None:
    """Call `probe` until it returns None; what it returns otherwise is the reason for the wait.

    Raises ClusterError with the last reason once timeout_s seconds have passed. An exception of the
    probe ends the wait at once: that is how a probe says that waiting longer is pointless.
    """
    deadline = time.monotonic() + timeout_s
    while (reason := probe()) is not None:
        if time.monotonic() >= deadline:
            raise ClusterError(f"gave up waiting for {what} after {timeout_s:.0f} s: {reason}")
        time.sleep(interval_s)
