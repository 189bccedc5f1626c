"""POST /v1/progress: takes progress reports of a run's current stage, and from nobody else than who reports for it.

That is its first pod; or each of those that do a part of it for themselves, of that part.
"""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from aiohttp import web
from pydantic import ValidationError

from llava_api.constants import REPORT_PATH
from llava_api.names import MAX_SHARDS
from llava_api.report import MAX_NEXT_REPORT_S, ProgressAnswer, ProgressReport
from llava_api.status import AttemptState, Progress
from llava_api.text import show
from llava_operator.cache.children import Children
from llava_operator.cache.progress import ProgressBook
from llava_operator.cache.runs import Runs, RunView
from llava_operator.cache.views import PodView
from llava_operator.clock import to_time
from llava_operator.kube.errors import KubeError
from llava_operator.kube.objects import Key
from llava_operator.kube.reviews import BusyError
from llava_operator.loop.workqueue import WorkQueue
from llava_operator.reporting.claims import Speaker, read_claims
from llava_operator.reporting.shards import add_shard
from llava_operator.reporting.tokens import TokenReviewer
from llava_operator.run import current_stage
from llava_operator.serving.allowances import Allowances
from llava_operator.serving.bearer import read_bearer
from llava_operator.serving.lines import FewLines
from llava_operator.serving.server import keep_for
from llava_operator.stages import STAGES
from llava_operator.validation_errors import describe_faults

logger = logging.getLogger(__name__)

MAX_BODY = 64 * 1024
"""Bytes of the longest report that is read."""
REPORTS_AT_ONCE, REPORTS_PER_S = 5, 1.0
"""Reports of one pod that are read, at once and later on, good ones or not."""
MAX_TEXT = 512
"""Longest text with foreign parts in a log line or an answer."""
NOT_OURS = "the token is not one that Kubernetes issued to a pod for this endpoint"


class Refusal(StrEnum):
    """Why a report is not taken; the label of a metric."""

    TOKEN = "token"
    """It is not one that Kubernetes issued to a pod for this endpoint."""
    NOT_A_POD_OF_A_RUN = "not_a_pod_of_a_run"
    NOT_FIRST_POD = "not_first_pod"
    NOT_CURRENT = "not_current"
    """The pod, or what it says, is about another attempt than the current one."""
    TOO_OFTEN = "too_often"
    UNREADABLE = "unreadable"
    BUSY = "busy"
    """The token cannot be reviewed now."""


class RefusedError(Exception):
    """A report is not taken; the message goes back to the sender."""

    def __init__(self, code: int, why: Refusal, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.why = why


@dataclass(kw_only=True)
class ReportDesk:
    """Checks reports and hands them on."""

    reviewer: TokenReviewer
    runs: Runs
    children: Children
    progress: ProgressBook
    queue: WorkQueue[Key]
    now: Callable[[], datetime]
    clock: Callable[[], float]
    """Seconds, of a clock that is never set."""
    count: Callable[[int, Refusal | None], None]
    """Called with the status code of every answer, and why it is a refusal."""

    def __post_init__(self) -> None:
        self._of_pod: Allowances[str] = Allowances(per_s=REPORTS_PER_S, burst=REPORTS_AT_ONCE, clock=self.clock)
        self._lines = FewLines(logger, clock=self.clock)

    def build_app(self) -> web.Application:
        """The application that serves the endpoint."""
        app = web.Application(client_max_size=MAX_BODY)
        app.add_routes([web.post(REPORT_PATH, self.handle)])
        return app

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one report."""
        try:
            speaker, wait_s = await self._take(request)
        except RefusedError as refused:
            self.count(refused.code, refused.why)
            # Foreign parts of it shall neither begin a line nor fill a page.
            message = show(refused, max_chars=MAX_TEXT)
            self._lines.log(f"report from {request.remote} refused with {refused.code}: {message}")
            return web.json_response({"error": message}, status=refused.code)
        self.count(200, None)
        answer = web.json_response(text=ProgressAnswer(next_report_seconds=wait_s).model_dump_json())
        if not keep_for(request, speaker.pod_uid, wait_s):
            answer.force_close()
        return answer

    async def _take(self, request: web.Request) -> tuple[Speaker, float]:
        """Take one report; who it came from, and the seconds after which the next is welcome."""
        token = read_bearer(request)
        if token is None:
            raise RefusedError(401, Refusal.TOKEN, "the Authorization header must be: Bearer TOKEN")
        claimed = read_claims(token)
        if claimed is None:
            raise RefusedError(401, Refusal.TOKEN, NOT_OURS)
        # Before anybody is asked: is that a pod that has something to report?
        self._locate(claimed)
        speaker = await self._identify(token, claimed, request.remote or "")
        run, pod = self._locate(speaker)
        if not self._of_pod.take(pod.uid):
            raise RefusedError(429, Refusal.TOO_OFTEN, f"reports of one pod may come every {1 / REPORTS_PER_S:g} s")
        report = parse_report(await _read_body(request))
        self._check_current(report, run, pod)
        now = self.now()
        num_shards = _count_shards(run)
        known = self.progress.latest(run.uid) or run.status.progress
        progress = add_shard(known, _to_progress(report, pod.uid, now), pod.index or 0, num_shards)
        look_at = self.progress.put(run.uid, progress, now)
        if look_at is not None:
            self.queue.add(run.key, delay_s=(look_at - now).total_seconds())
        # Together they report no more often than one does.
        return speaker, min(self.progress.next_report_s(run.uid, now) * num_shards, MAX_NEXT_REPORT_S)

    async def _identify(self, token: str, claimed: Speaker, source: str) -> Speaker:
        try:
            speaker = await self.reviewer.review(token, claimed, source)
        except (BusyError, KubeError) as error:
            raise RefusedError(503, Refusal.BUSY, "the token cannot be reviewed now: try again later") from error
        if speaker is None:
            raise RefusedError(401, Refusal.TOKEN, NOT_OURS)
        return speaker

    def _locate(self, speaker: Speaker) -> tuple[RunView, PodView]:
        """The run that the speaking pod works for, and that pod."""
        pod = self.children.pod(speaker.pod)
        if pod is None or pod.uid != speaker.pod_uid or pod.ended is not None or pod.failed:
            raise RefusedError(403, Refusal.NOT_A_POD_OF_A_RUN, f"pod {speaker.pod.name} is no running pod of a run")
        run = self.runs.get(Key(pod.key.namespace, pod.run))
        if (pod.index or 0) >= _count_shards(run):
            raise RefusedError(
                403, Refusal.NOT_FIRST_POD,
                f"pod {speaker.pod.name} is not the first of its stage, which reports for all",
            )  # fmt: skip
        stage = current_stage(run.status) if run else None
        attempt = stage.newest if stage else None
        # One that is being stopped may have a checkpoint to tell of.
        if run is None or attempt is None or attempt.state is AttemptState.GONE or attempt.job_uid != pod.job_uid:
            raise RefusedError(
                409, Refusal.NOT_CURRENT,
                f"pod {speaker.pod.name} does not belong to the current attempt of a run's stage",
            )  # fmt: skip
        return run, pod

    def _check_current(self, report: ProgressReport, run: RunView, pod: PodView) -> None:
        stage = current_stage(run.status)
        assert stage is not None, "the run was located by its current stage"
        said = (report.run_uid, report.stage, report.attempt)
        if said != (run.uid, stage.name, stage.attempt):
            raise RefusedError(
                409,
                Refusal.NOT_CURRENT,
                f"the report is about {report.stage}-{report.attempt} of run {report.run_uid}, but pod "
                f"{pod.key.name} works on {stage.name}-{stage.attempt} of run {run.uid}",
            )


def _count_shards(run: RunView | None) -> int:
    """How many pods of a run's current attempt report, each for itself; 1 where the first reports for all."""
    stage = current_stage(run.status) if run else None
    if stage is None or stage.newest is None or not STAGES[stage.name].is_sharded:
        return 1
    return min(stage.newest.settings.replicas or 1, MAX_SHARDS)


async def _read_body(request: web.Request) -> bytes:
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise RefusedError(413, Refusal.UNREADABLE, f"the report is longer than {MAX_BODY} bytes") from None
    except (web.RequestPayloadError, ConnectionError):
        raise RefusedError(400, Refusal.UNREADABLE, "the body is damaged or ends too early") from None


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
        raise RefusedError(400, Refusal.UNREADABLE, describe_faults(error)) from None
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, Refusal.UNREADABLE, f"the body is no JSON: {error}") from None


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
        data_wait_ratio=report.data_wait_ratio,
        mfu=report.mfu,
        checkpoint_step=report.checkpoint_step,
        validation_step=report.validation_step,
        validation_loss=report.validation_loss,
        validation_exact=report.validation_exact,
        validating_samples=report.validating_samples,
        lowest_validation_loss=report.lowest_validation_loss,
        best_step=report.best_step,
        resumed_step=report.resumed_step,
        peak_gpu_memory_bytes=report.peak_gpu_memory_bytes,
        volume_free_bytes=report.volume_free_bytes,
        volume_size_bytes=report.volume_size_bytes,
        skipped_checkpoints=report.skipped_checkpoints,
        losses=report.losses,
        last_update_time=to_time(now),
    )
