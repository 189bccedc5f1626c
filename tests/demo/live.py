"""A live table of a run's stages with a progress bar each; plain lines where the output is no terminal."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from llava_api.constants import Phase, StageName
from llava_api.status import StageState, StageStatus, Status
from tests.kubectl import DeadlineExceeded, Kubectl

_BAR_WIDTH = 32
_POLL_S = 1.0
_STYLE = {
    StageState.PENDING: "dim",
    StageState.RUNNING: "cyan",
    StageState.SUCCEEDED: "green",
    StageState.FAILED: "red",
}


def follow(kubectl: Kubectl, run: str, console: Console, *, timeout_s: float) -> dict[str, Any]:
    """Show the run until it has ended; returns the whole object.

    Raises:
        DeadlineExceeded: it has not ended within ``timeout_s`` seconds.
    """
    deadline = time.monotonic() + timeout_s
    with _screen(console) as show:
        while True:
            found = kubectl.get("lft", run)
            status = Status.model_validate(found.get("status") or {})
            show(status)
            if status.phase in (Phase.SUCCEEDED, Phase.FAILED):
                return found
            if time.monotonic() > deadline:
                stage = status.summary.stage if status.summary else "no stage"
                raise DeadlineExceeded(f"waited {timeout_s:.0f} s for run {run} to end; it is at {stage}")
            time.sleep(_POLL_S)


@contextmanager
def _screen(console: Console) -> Iterator[Any]:
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4) as live:
            yield lambda status: live.update(build_table(status))
        return
    last = ""

    def show(status: Status) -> None:
        nonlocal last
        line = describe(status)
        if line != last:
            console.print(line, highlight=False)
            last = line

    yield show


def describe(status: Status) -> str:
    """The state of the run in one line."""
    if not status.stages:
        return "waiting for the operator to see the run"
    parts = []
    for stage in status.stages:
        percent = _percent(status, stage)
        parts.append(f"{stage.name} {stage.state.lower()}" + (f" {percent:.0f}%" if 0 < percent < 100 else ""))
    return " · ".join(parts)


def build_table(status: Status) -> RenderableType:
    """One row a stage: state, bar, steps, time left, and what it says."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("stage", "state", "", "step", "eta", "says"):
        table.add_column(column)
    for stage in status.stages or (StageStatus(name=StageName.PREPARE),):
        style = _STYLE[stage.state]
        running = stage.state is StageState.RUNNING and status.summary
        table.add_row(
            Text(stage.name, style="bold"),
            Text(stage.state, style=style),
            ProgressBar(total=100, completed=_percent(status, stage), width=_BAR_WIDTH),
            status.summary.step if running and status.summary else "",
            status.summary.eta if running and status.summary else "",
            Text(_says(status, stage), style="dim", overflow="ellipsis", no_wrap=True),
        )
    return table


def _percent(status: Status, stage: StageStatus) -> float:
    if stage.state is StageState.SUCCEEDED:
        return 100
    progress = status.progress
    if progress is None or progress.stage != stage.name or not progress.total_steps:
        return 0
    return min(100, 100 * progress.step / progress.total_steps)


def _says(status: Status, stage: StageStatus) -> str:
    progress = status.progress
    if stage.state is StageState.RUNNING and progress and progress.stage == stage.name and progress.loss is not None:
        return f"loss {progress.loss:.3f}"
    return stage.message.splitlines()[0] if stage.message else ""
