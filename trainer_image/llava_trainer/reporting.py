"""Progress reports to the operator: pushed over TLS from a thread of their own, never in a stage's way.

A report that cannot be delivered is worth less than the step it would hold up: the stage only ever leaves the newest
report in a box and goes on. Certificate authority and token are read anew for each push, because both rotate while a
stage runs.
"""

import http.client
import json
import logging
import math
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, TypedDict, Unpack, cast
from urllib.parse import urlsplit

from llava_api.report import LOSSES_KEPT, ProgressReport
from llava_api.run_config import Reporting, RunConfig

logger = logging.getLogger(__name__)

_MAX_ANSWER_BYTES = 4096
_MAX_MESSAGE = 256


class Measures(TypedDict, total=False):
    """What may be told besides steps; names and units are ProgressReport's."""

    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    samples_per_second: float
    tokens_per_second: float
    checkpoint_step: int
    skipped_checkpoints: str
    losses: tuple[float, ...]
    unit: Literal["steps", "bytes"]
    message: str


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How often reports are pushed, and how long one may take. Seconds."""

    interval_s: float = 2.0
    timeout_s: float = 5.0
    """Of connecting, and of each read and write; also how long the last report may take when the stage ends."""


class Reporter:
    """Reports the progress of one stage. Without ``config.reporting`` it does nothing.

    ``update`` may be called for every step, from any thread. Leaving the context pushes the newest report if it has not
    been yet.
    """

    def __init__(
        self, config: RunConfig, pace: Pace | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._run = config.run
        self._reporting = config.reporting
        self._pace = pace or Pace()
        self._clock = clock
        self._rate = StepRate()
        self._changed = threading.Condition()
        self._newest: ProgressReport | None = None
        self._closing = False
        self._thread: threading.Thread | None = None
        self._told: set[str] = set()

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, step: int, total_steps: int, **measures: Unpack[Measures]) -> None:
        """Leave a report to be pushed; it replaces one that is still waiting.

        Args:
            step: steps (or bytes, with ``unit``) done.
            total_steps: steps in all; 0 while unknown.
            measures: see ``Measures``. Numbers that are not finite are left out: JSON has none.
        """
        if self._reporting is None:
            return
        presentable = _presentable(measures)
        with self._changed:
            # All of it at once: a thread that is late must not put an older report in the place of a newer one.
            self._rate.observe(step, self._clock())
            self._newest = ProgressReport(
                run_uid=self._run.uid,
                stage=self._run.stage,
                attempt=self._run.attempt,
                step=step,
                total_steps=total_steps,
                eta_seconds=self._rate.seconds_to(total_steps),
                **presentable,
            )
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._push_all, args=(self._reporting,), daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """Push what is waiting, for ``timeout_s`` at most, and stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(self._pace.timeout_s)

    def _push_all(self, reporting: Reporting) -> None:
        while (report := self._take()) is not None:
            self._push(reporting, report)
            with self._changed:
                self._changed.wait_for(lambda: self._closing, timeout=self._pace.interval_s)

    def _take(self) -> ProgressReport | None:
        """Wait for a report; None when there is none left and the stage has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not None or self._closing)
            report, self._newest = self._newest, None
            return report

    def _push(self, reporting: Reporting, report: ProgressReport) -> None:
        try:
            trouble = _post(reporting, report.model_dump_json(), self._pace.timeout_s)
        except (OSError, http.client.HTTPException, ValueError) as error:
            # ssl's errors are OSErrors; ValueError is a token or an address that no header or socket can take.
            trouble = f"{type(error).__name__}: {error}"
        if trouble is not None:
            self._tell_once(trouble.partition(":")[0], logging.WARNING, f"a report was not accepted: {trouble}")
        elif self._told:
            self._tell_once("accepted", logging.INFO, "progress reports are accepted again")

    def _tell_once(self, kind: str, level: int, message: str) -> None:
        """Log the first message of a kind: a server that comes and goes for days does not fill the log."""
        if kind not in self._told:
            self._told.add(kind)
            logger.log(level, "%s (the run goes on either way; this is not logged again)", message)


class StepRate:
    """Steps per second, smoothed over about ``smoothing_s`` seconds: one slow step does not move the estimate much."""

    def __init__(self, smoothing_s: float = 30.0) -> None:
        self._smoothing_s = smoothing_s
        self._last: tuple[int, float] | None = None
        self._per_second: float | None = None

    def observe(self, step: int, now: float) -> None:
        """Take in that ``step`` steps are done at ``now`` (seconds of a clock that never goes back)."""
        if self._last is None or step < self._last[0]:
            self._last = (step, now)
            self._per_second = None
            return
        steps, seconds = step - self._last[0], now - self._last[1]
        if steps == 0 or seconds <= 0:
            return
        measured = steps / seconds
        weight = 1 - math.exp(-seconds / self._smoothing_s)
        self._per_second = (
            measured if self._per_second is None else self._per_second + weight * (measured - self._per_second)
        )
        self._last = (step, now)

    def seconds_to(self, total_steps: int) -> float | None:
        """Estimated seconds until ``total_steps``; None while no estimate is possible."""
        if self._last is None or self._per_second is None or total_steps <= 0:
            return None
        return min(1e9, max(0, total_steps - self._last[0]) / self._per_second)


def _presentable(measures: Measures) -> Measures:
    """What ProgressReport accepts of them."""
    kept = {name: value for name, value in measures.items() if not isinstance(value, float) or math.isfinite(value)}
    if "losses" in measures:
        kept["losses"] = tuple(loss for loss in measures["losses"] if math.isfinite(loss))[-LOSSES_KEPT:]
    if "message" in measures:
        kept["message"] = measures["message"][:_MAX_MESSAGE]
    if "skipped_checkpoints" in measures:
        kept["skipped_checkpoints"] = measures["skipped_checkpoints"][:_MAX_MESSAGE]
    return cast(Measures, kept)


def _post(reporting: Reporting, body: str, timeout_s: float) -> str | None:
    """Push one report; None if it was accepted, else what was answered."""
    address = urlsplit(reporting.url)
    if address.scheme != "https" or address.hostname is None:
        return f"reporting.url is {reporting.url!r} and must begin with https://: the token is sent there"
    context = ssl.create_default_context(cafile=str(reporting.ca_file))
    token = reporting.token_file.read_text(encoding="ascii").strip()
    connection = http.client.HTTPSConnection(address.hostname, address.port, timeout=timeout_s, context=context)
    try:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        connection.request("POST", address.path or "/", body=body, headers=headers)
        answer = connection.getresponse()
        text = answer.read(_MAX_ANSWER_BYTES)
    finally:
        connection.close()
    return None if 200 <= answer.status < 300 else f"HTTP {answer.status}: {_error_of(text)}"


def _error_of(answer: bytes) -> str:
    """The ``error`` of an answer in the operator's form, else the answer's beginning."""
    try:
        told = json.loads(answer)
    except ValueError:
        told = None
    error = told.get("error") if isinstance(told, dict) else None
    if isinstance(error, str):
        return error[:200]
    return answer[:200].decode("utf-8", errors="replace")
