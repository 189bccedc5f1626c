"""Progress reports to the operator: pushed over TLS from a thread of their own, never in a stage's way.

A report that cannot be delivered is worth less than the step it would hold up: the stage only ever leaves the newest
report in a box and goes on. When the next one is welcome, the operator says in its answer. One answer ends the stage:
that its attempt does not count any more (409).
"""

import http.client
import logging
import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, TypedDict, Unpack, cast

from llava_api.report import LOSSES_KEPT, MAX_NEXT_REPORT_S, ProgressReport
from llava_api.run_config import Reporting, RunConfig
from llava_trainer.attempts.folder import Fence
from llava_trainer.channel import Answer, Channel
from llava_trainer.files import find_space

logger = logging.getLogger(__name__)

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
    resumed_step: int
    data_wait_ratio: float
    mfu: float
    eta_seconds: float
    peak_gpu_memory_bytes: int
    skipped_checkpoints: str
    validation_step: int
    validation_loss: float
    validation_exact: float
    validating_samples: int
    lowest_validation_loss: float
    best_step: int
    losses: tuple[float, ...]
    unit: Literal["steps", "bytes"]
    message: str


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How often reports are pushed, and how long one may take. Seconds."""

    interval_s: float = 2.0
    """Shortest time between two reports, and the usual one where the operator does not say when it wants the next."""
    longest_s: float = 60.0
    """Longest time between two tries that fail: each waits about twice as long as the one before."""
    timeout_s: float = 5.0
    """Of connecting, and of the whole answer; also how long the last report may take when the stage ends."""
    doubt_s: float = 60.0
    """How long 409 is answered until it is believed of an attempt that was never accepted: its first report may come
    before the operator has noted its Job. One that was accepted before is over with the first."""

    def wait_s(self, asked_s: float | None, failures: int) -> float:
        """Seconds until the next report.

        Args:
            asked_s: what the operator wants; None if it has not said.
            failures: reports that were not accepted, in a row until now.
        """
        if failures:
            # By chance, so that not all runs come at once when the operator is back.
            return min(self.longest_s, self.interval_s * 2.0 ** min(failures, 16)) * random.uniform(0.5, 1)
        return min(max(asked_s or 0.0, self.interval_s), MAX_NEXT_REPORT_S)


class Reporter:
    """Reports the progress of one stage. Without ``config.reporting`` it does nothing.

    ``update`` may be called for every step, from any thread. Leaving the context pushes the newest report if it has not
    been yet.
    """

    def __init__(
        self, config: RunConfig, pace: Pace | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.fence = Fence(config)
        """Asked by the stage before it completes or deletes something."""
        self._run = config.run
        self._volume = config.volume_root
        self._was_accepted = False
        self._stale_since: float | None = None
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
            measures: see ``Measures``. Numbers that are not finite are left out: JSON has none. Without
                ``eta_seconds`` it is estimated from the steps.

        Raises:
            StageError: Superseded; the operator has said that this attempt does not count any more.
        """
        if self._reporting is None:
            return
        self.fence.check_refusal()
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
                **{"eta_seconds": self._rate.seconds_to(total_steps), **presentable},
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
        channel, failures = Channel(reporting, self._pace.timeout_s), 0
        while (report := self._take()) is not None:
            answer = self._push(channel, report)
            failures = failures + 1 if answer.trouble is not None else 0
            with self._changed:
                self._changed.wait_for(lambda: self._closing, timeout=self._pace.wait_s(answer.next_report_s, failures))
        channel.close()

    def _take(self) -> ProgressReport | None:
        """Wait for a report; None when there is none left and the stage has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not None or self._closing)
            report, self._newest = self._newest, None
            return report

    def _push(self, channel: Channel, report: ProgressReport) -> Answer:
        try:
            answer = channel.push(self._with_space(report).model_dump_json())
        except (OSError, ValueError) as error:
            # ssl's errors are OSErrors; ValueError is a token or an address that no header or socket can take.
            answer = Answer(trouble=f"{type(error).__name__}: {error}")
        except http.client.HTTPException as error:
            # Its text is what came in place of an answer, which may be what was sent.
            answer = Answer(trouble=f"{type(error).__name__}: what came is no HTTP")
        self._judge(answer)
        if answer.trouble is not None:
            kind = answer.trouble.partition(":")[0]
            self._tell_once(kind, logging.WARNING, f"a report was not accepted: {answer.trouble}")
        elif self._told:
            self._tell_once("accepted", logging.INFO, "progress reports are accepted again")
        return answer

    def _with_space(self, report: ProgressReport) -> ProgressReport:
        """The report with what is free on the volume now.

        Asked here, in the thread that sends: a volume that does not answer shall hold up a report and not a step.
        """
        try:
            space = find_space(self._volume)
        except OSError:
            return report
        told = {"volume_free_bytes": space.free, "volume_size_bytes": space.size} if space else {}
        return ProgressReport.model_validate({**dict(report), **told})

    def _judge(self, answer: Answer) -> None:
        """Take note of what the answer says of the attempt."""
        if not answer.is_stale:
            self._was_accepted |= answer.trouble is None
            self._stale_since = None
            return
        now = self._clock()
        self._stale_since = now if self._stale_since is None else self._stale_since
        if self._was_accepted or now - self._stale_since >= self._pace.doubt_s:
            self.fence.refuse(f"the operator answered a report with {answer.trouble}")

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
