"""POST /v1/progress: takes progress reports from the first pod of a run's current stage, and from nobody else."""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from aiohttp import web
from pydantic import ValidationError

from llava_api.constants import REPORT_PATH
from llava_api.report import ProgressReport
from llava_api.status import Progress
from llava_operator.children import Children
from llava_operator.clock import to_time
from llava_operator.faults import describe_faults
from llava_operator.kube import KubeError
from llava_operator.progress import ProgressBook
from llava_operator.reporting.tokens import BusyError, Speaker, TokenReviewer
from llava_operator.run import current_stage
from llava_operator.runs import Runs, RunView
from llava_operator.views import Key, PodView
from llava_operator.workqueue import WorkQueue

logger = logging.getLogger(__name__)

MAX_BODY = 64 * 1024
"""Bytes of the longest report that is read."""
MIN_GAP_S = 0.5
"""Shortest time between two accepted reports of one run."""


class RefusedError(Exception):
    """A report is not taken; the message goes back to the sender."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(kw_only=True)
class ReportDesk:
    """Checks reports and hands them on."""

    reviewer: TokenReviewer
    runs: Runs
    children: Children
    progress: ProgressBook
    queue: WorkQueue[Key]
    now: Callable[[], datetime]
    count: Callable[[int], None]
    """Called with the status code of every answer."""
    _last: dict[str, datetime] = field(default_factory=dict)

    def build_app(self) -> web.Application:
        """The application that serves the endpoint."""
        app = web.Application(client_max_size=MAX_BODY)
        app.add_routes([web.post(REPORT_PATH, self.handle)])
        return app

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one report."""
        try:
            await self._take(request)
        except RefusedError as refused:
            self.count(refused.code)
            logger.info("report from %s refused with %d: %s", request.remote, refused.code, refused)
            return web.json_response({"error": str(refused)}, status=refused.code)
        self.count(204)
        return web.Response(status=204)

    async def _take(self, request: web.Request) -> None:
        speaker = await self._identify(request)
        run, pod = self._locate(speaker)
        report = parse_report(await _read_body(request))
        self._check_current(report, run, pod)
        self._check_rate(run)
        self.progress.put(run.uid, _to_progress(report, pod.uid, self.now()))
        due_at = self.progress.due_at(run.uid, self.now())
        self.queue.add(run.key, delay_s=(due_at - self.now()).total_seconds())

    async def _identify(self, request: web.Request) -> Speaker:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise RefusedError(401, "the Authorization header must be: Bearer TOKEN")
        try:
            speaker = await self.reviewer.review(token.strip())
        except (BusyError, KubeError) as error:
            raise RefusedError(503, "the token cannot be reviewed now: try again later") from error
        if speaker is None:
            raise RefusedError(401, "the token is not one that Kubernetes issued to a pod for this endpoint")
        return speaker

    def _locate(self, speaker: Speaker) -> tuple[RunView, PodView]:
        """The run that the speaking pod works for, and that pod."""
        pod = self.children.pod(speaker.pod)
        if pod is None or pod.uid != speaker.pod_uid or pod.ended is not None:
            raise RefusedError(403, f"pod {speaker.pod.name} is no running pod of a run")
        if pod.index:
            raise RefusedError(403, f"pod {speaker.pod.name} is not the first of its stage, which reports for all")
        run = self.runs.get(Key(pod.key.namespace, pod.run))
        stage = current_stage(run.status) if run else None
        if run is None or stage is None or stage.job_uid is None or stage.job_uid != pod.job_uid:
            raise RefusedError(409, f"pod {speaker.pod.name} does not belong to the current stage of a run")
        return run, pod

    def _check_current(self, report: ProgressReport, run: RunView, pod: PodView) -> None:
        stage = current_stage(run.status)
        assert stage is not None, "the run was located by its current stage"
        said = (report.run_uid, report.stage, report.attempt)
        if said != (run.uid, stage.name, stage.attempt):
            raise RefusedError(
                409,
                f"the report is about {report.stage}-{report.attempt} of run {report.run_uid}, but pod "
                f"{pod.key.name} works on {stage.name}-{stage.attempt} of run {run.uid}",
            )

    def _check_rate(self, run: RunView) -> None:
        now, last = self.now(), self._last.get(run.uid)
        if last is not None and (now - last).total_seconds() < MIN_GAP_S:
            raise RefusedError(429, f"reports of one run may come every {MIN_GAP_S:g} s")
        self._last = {uid: at for uid, at in self._last.items() if (now - at).total_seconds() < MIN_GAP_S}
        self._last[run.uid] = now


async def _read_body(request: web.Request) -> bytes:
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise RefusedError(413, f"the report is longer than {MAX_BODY} bytes") from None


def parse_report(body: bytes) -> ProgressReport:
    """The report in ``body``. Numbers that are not finite count as absent: JSON has no word for them.

    Raises:
        RefusedError: it is no report.
    """
    try:
        said: Any = json.loads(body, parse_constant=lambda _: None, parse_float=_finite)
        if isinstance(said, dict) and isinstance(said.get("losses"), list):
            said["losses"] = [loss for loss in said["losses"] if loss is not None]
        return ProgressReport.model_validate(said)
    except ValidationError as error:
        raise RefusedError(400, describe_faults(error)) from None
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"the body is no JSON: {error}") from None


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _to_progress(report: ProgressReport, pod_uid: str, now: datetime) -> Progress:
    return Progress(
        stage=report.stage,
        attempt=report.attempt,
        pod_uid=pod_uid,
        step=report.step,
        total_steps=report.total_steps,
        unit=report.unit,
        message=report.message,
        eta_seconds=None if report.eta_seconds is None else round(report.eta_seconds),
        epoch=report.epoch,
        loss=report.loss,
        learning_rate=report.learning_rate,
        grad_norm=report.grad_norm,
        samples_per_second=report.samples_per_second,
        tokens_per_second=report.tokens_per_second,
        checkpoint_step=report.checkpoint_step,
        skipped_checkpoints=report.skipped_checkpoints,
        losses=report.losses,
        last_update_time=to_time(now),
    )
