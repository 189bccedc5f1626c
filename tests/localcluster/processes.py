"""Starting, watching and ending the cluster's long-running programs.

Every program carries its instance's folder in the environment. That mark finds what a crashed `up` left
behind, and nothing else: a process is never found by its name, nor by a process id alone.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.localcluster.errors import ClusterError
from tests.localcluster.shell import environment, tail

MARK = "LLAVA_LOCALCLUSTER"
_TERM_TIMEOUT_S = 15
_KILL_TIMEOUT_S = 10


@dataclass(frozen=True)
class Process:
    """A started program: its process id and its start time, which a re-used id would not share."""

    name: str
    pid: int
    start_ticks: int
    log: Path

    def is_alive(self) -> bool:
        """Whether this very process still runs."""
        return _start_ticks(self.pid) == self.start_ticks

    def require_alive(self) -> None:
        """Raise ClusterError with the end of the log when the program has ended."""
        if not self.is_alive():
            output = self.log.read_text(errors="replace") if self.log.exists() else ""
            raise ClusterError(f"{self.name} has ended; the end of {self.log}:\n{tail(output)}")


def _start_ticks(pid: int) -> int | None:
    """The start time of a running process in clock ticks, None when there is none or it is a zombie."""
    try:
        # The program's name, in brackets, may itself hold brackets and spaces.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def start(
    name: str,
    argv: Sequence[str | Path],
    *,
    state_dir: Path,
    extra_environment: dict[str, str] | None = None,
    network_namespace: str | None = None,
) -> Process:
    """Start a program in the background, with its output in the instance's logs folder, and record it."""
    command = [str(part) for part in argv]
    if network_namespace is not None:
        # Not `ip netns exec`: that mounts /sys anew and hides the cgroups from the kubelet.
        command = ["nsenter", f"--net=/run/netns/{network_namespace}", "--", *command]
    child_environment = environment({**(extra_environment or {}), MARK: str(state_dir)})
    program = shutil.which(command[0], path=child_environment["PATH"])
    if program is None:
        raise ClusterError(f"{name}: the program {command[0]!r} was not found")
    log = state_dir / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    pid = os.posix_spawn(
        program,
        command,
        child_environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    process = Process(name, pid, _start_ticks(pid) or 0, log)
    record = state_dir / "processes" / f"{name}.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({"pid": pid, "startTicks": process.start_ticks}) + "\n")
    return process


def recorded(state_dir: Path) -> list[Process]:
    """The programs that were started for an instance, running or not, in the order of their start."""
    found = []
    files = sorted((state_dir / "processes").glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
    for file in files:
        try:
            record = json.loads(file.read_text())
            log = state_dir / "logs" / f"{file.stem}.log"
            found.append(Process(file.stem, int(record["pid"]), int(record["startTicks"]), log))
        except (ValueError, KeyError):
            continue  # cut short by a crash: the mark in the environment still finds the process
    return found


def marked(state_dir: Path) -> list[Process]:
    """Every running process that carries the instance's mark, recorded or not."""
    mark = f"{MARK}={state_dir}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
            name = (entry / "comm").read_text().strip()
        except OSError:
            continue
        ticks = _start_ticks(int(entry.name))
        if mark in variables and ticks is not None:
            found.append(Process(name, int(entry.name), ticks, state_dir / "logs" / f"{name}.log"))
    return found


def _signal(process: Process, number: signal.Signals) -> None:
    if process.is_alive():
        with suppress(ProcessLookupError):  # it ended in between, which is what was wanted
            os.kill(process.pid, number)


def _wait_gone(processes: Iterable[Process], timeout_s: float) -> list[Process]:
    """Wait for processes to end; returns those that still run."""
    deadline = time.monotonic() + timeout_s
    while True:
        for process in processes:
            with suppress(ChildProcessError):  # most were started by another process
                os.waitpid(process.pid, os.WNOHANG)
        remaining = [process for process in processes if process.is_alive()]
        if not remaining or time.monotonic() >= deadline:
            return remaining
        time.sleep(0.05)


def stop(processes: Sequence[Process], *, kill_at_once: bool = False) -> None:
    """End processes: asked first, killed when they take too long; returns once they are gone.

    Raises ClusterError naming those that survive a kill.
    """
    remaining = list(processes)
    if not kill_at_once:
        for process in remaining:
            _signal(process, signal.SIGTERM)
        remaining = _wait_gone(remaining, _TERM_TIMEOUT_S)
    for process in remaining:
        _signal(process, signal.SIGKILL)
    remaining = _wait_gone(remaining, _KILL_TIMEOUT_S)
    if remaining:
        names = ", ".join(f"{process.name} (process {process.pid})" for process in remaining)
        raise ClusterError(f"still running {_KILL_TIMEOUT_S} s after SIGKILL: {names}")
