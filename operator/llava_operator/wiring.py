"""The parts of one operator, made once and handed down, and how they run together."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import kopf
from kubernetes.aio.client.api_client import ApiClient
from prometheus_client import CollectorRegistry

from llava_api.constants import REPORT_PATH, NotificationEvent, StageName
from llava_api.status import NotificationState, StageState
from llava_operator.acting.api_errors import ApiErrors
from llava_operator.acting.events import EventPublisher
from llava_operator.acting.nodes import Nodes
from llava_operator.acting.notifying import Notifier
from llava_operator.acting.reconcile import Reconciler
from llava_operator.acting.report_authority import Authority
from llava_operator.acting.troubles import Troubles
from llava_operator.build.common import Platform
from llava_operator.cache.children import Children
from llava_operator.cache.progress import ProgressBook
from llava_operator.cache.runs import Runs
from llava_operator.cache.skipped import SkippedObjects
from llava_operator.clock import now
from llava_operator.kube.client import Kube
from llava_operator.kube.errors import KubeError
from llava_operator.kube.kinds import JOBS, PODS, RUNS
from llava_operator.kube.leader import Lease, LeaseTimes
from llava_operator.kube.objects import Key
from llava_operator.loop.cluster import UnsupportedClusterError, wait_for_cluster
from llava_operator.loop.health import HEARTBEAT, Health
from llava_operator.loop.passes import Passes, Relisted, Resync
from llava_operator.loop.sessions import WatchSessions
from llava_operator.loop.watches import build_kopf_settings, build_registry
from llava_operator.loop.workqueue import WorkQueue
from llava_operator.probes import LIMITS, build_web_app, expose
from llava_operator.reporting.acceptance import Refusal
from llava_operator.reporting.upkeep import keep_reporting
from llava_operator.scraping.upkeep import keep_metrics
from llava_operator.serving.connections import Closed
from llava_operator.serving.server import SHUTDOWN_S, serve
from llava_operator.settings import Settings
from llava_operator.telemetry.exposition import Exposition
from llava_operator.telemetry.operator_metrics import OperatorMetrics
from llava_operator.telemetry.run_metrics import RunMetrics
from llava_operator.telemetry.text_format import list_slices

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Operator:
    """The parts of one process."""

    settings: Settings
    api: ApiClient
    runs: Runs = field(init=False)
    authority: Authority = field(default_factory=Authority)
    registry: CollectorRegistry = field(default_factory=lambda: CollectorRegistry(auto_describe=True))

    def __post_init__(self) -> None:
        self.runs = Runs(team_label=self.settings.metrics_team_label)
        self.progress = ProgressBook(
            interval_s=self.settings.progress_interval_seconds,
            writes_per_s=self.settings.progress_writes_per_second,
        )
        self.health = Health(
            heartbeat_s=self.settings.heartbeat_seconds,
            longest_pass_s=self.settings.pass_timeout_seconds,
            clock=time.monotonic,
        )
        self.metrics = OperatorMetrics(
            self.registry,
            queue_depth=lambda: self.queue.depth,
            cached={
                RUNS.plural: lambda: len(self.runs),
                JOBS.plural: lambda: self.children.num_jobs,
                PODS.plural: lambda: self.children.num_pods,
            },
        )
        _begin_at_zero(self.metrics)
        self.kube = Kube(self.api, timeout_s=self.settings.request_timeout_seconds, note=self.metrics.note_request)
        self.children = Children(self.runs, SkippedObjects(self.metrics.note_skipped))
        self.queue: WorkQueue[Key] = WorkQueue(
            expected=(KubeError,), note_wait=self._note_wait, note_retry=lambda _: self.metrics.note_retry()
        )
        runs = RunMetrics(self.runs, now, finished_run_s=self.settings.metrics_finished_run_seconds)
        self.exposition = Exposition(partial(list_slices, self.registry), runs.list_slices)

    async def run(self) -> None:
        """Serve probes, wait for leadership, lead until told to stop.

        Raises:
            LeadershipLostError: another process may lead; this one must be gone at once.
            UnsupportedClusterError: the cluster is too old.
        """
        async with self._serve():
            lease = self._lease()
            try:
                await lease.acquire(on_try=self.health.beat, on_answer=self.health.note_ready)
                self.metrics.note_leading()
                await self._lead(lease)
            except (asyncio.CancelledError, UnsupportedClusterError):
                # SIGTERM before kopf has taken the signals over; the Lease may be ours already.
                await _release(lease)
                raise
            await _release(lease)

    @asynccontextmanager
    async def _serve(self) -> AsyncIterator[None]:
        """Serve probes and metrics, whether this process leads or not."""
        settings = self.settings
        async with AsyncExitStack() as served:
            app = build_web_app(self.health, None if settings.metrics_secure else self.exposition)
            count = self.metrics.count_closed("http", Closed)
            await served.enter_async_context(serve(app, settings.http_port, limits=LIMITS, count=count))
            if settings.metrics_secure:
                count = self.metrics.count_closed("metrics", Closed)
                handler = partial(expose, exposition=self.exposition)
                keeping = keep_metrics(
                    self.kube, settings, handler, count_closed=count, note_validity=self.metrics.note_validity
                )
                served.push_async_callback(_end, asyncio.create_task(keeping))
            yield

    def _note_wait(self, key: Key, seconds: float) -> None:
        if key != HEARTBEAT:
            self.metrics.note_wait(seconds)

    def _lease(self) -> Lease:
        settings = self.settings
        times = LeaseTimes(
            duration_s=settings.lease_duration_seconds,
            renew_deadline_s=settings.lease_renew_deadline_seconds,
            retry_s=settings.lease_retry_seconds,
        )
        key = Key(settings.namespace, settings.lease_name)
        return Lease(self.kube, key, identity=settings.pod_name, times=times, now=now)

    async def _lead(self, lease: Lease) -> None:
        """Work until kopf ends, which it does on SIGTERM, or anything fails."""
        await run_until_one_ends(lease.hold(), self._look_after_runs())

    async def _look_after_runs(self) -> None:
        """Fill the caches, then watch and work."""
        settings = self.settings
        waiting = wait_for_cluster(self.kube, settings.watch_namespaces, retry_s=settings.lease_retry_seconds)
        await self.health.beat_while(waiting)
        resync = Resync(
            kube=self.kube,
            children=self.children,
            runs=self.runs,
            queue=self.queue,
            namespaces=self.settings.watch_namespaces,
            every_s=self.settings.resync_seconds,
            note=self.metrics.note_relist,
        )
        await self.health.beat_while(resync.fill(retry_s=self.settings.lease_retry_seconds))
        passes = Passes(
            self._reconciler(),
            health=self.health,
            metrics=self.metrics,
            timeout_s=self.settings.pass_timeout_seconds,
        )
        await run_until_one_ends(
            self._watch(),
            self._report(),
            self.health.keep_beating(self.queue),
            resync.keep(),
            *(self.queue.work(passes.process) for _ in range(self.settings.passes)),
        )

    async def _watch(self) -> None:
        sessions = WatchSessions(note_request=self.metrics.note_request, note_broken=self.metrics.note_broken_watch)
        await kopf.operator(
            registry=build_registry(self.queue, self.runs, self.children, sessions),
            settings=build_kopf_settings(self.settings),
            clusterwide=not self.settings.watch_namespaces,
            namespaces=self.settings.watch_namespaces,
        )

    def _reconciler(self) -> Reconciler:
        settings = self.settings
        platform = self._platform()
        return Reconciler(
            kube=self.kube,
            children=self.children,
            nodes=Nodes(kube=self.kube, now=now),
            runs=self.runs,
            progress=self.progress,
            events=EventPublisher(self.kube, instance=settings.pod_name, now=now),
            authority=self.authority,
            troubles=Troubles(kube=self.kube, now=now),
            errors=ApiErrors(now=now),
            notifier=Notifier(kube=self.kube, children=self.children, platform=platform, now=now),
            platform=platform,
            now=now,
            note_written=self.metrics.note_written,
        )

    def _platform(self) -> Platform:
        settings = self.settings
        return Platform(
            trainer_image=settings.trainer_image,
            report_url=f"https://{settings.report_host}:{settings.report_port}{REPORT_PATH}",
            download=settings.download,
            policy=settings.policy,
            isolate_training=settings.isolate_training,
            node_loss_s=settings.node_loss_seconds,
            pod_labels=settings.stage_pod_labels,
            pod_annotations=settings.stage_pod_annotations,
            notifier_image=settings.image,
            notifier_pull_policy=settings.image_pull_policy,
            uses_xet=settings.download_xet,
        )

    async def _report(self) -> None:
        await keep_reporting(
            self.kube, self.settings, self.authority,
            runs=self.runs, children=self.children, progress=self.progress, queue=self.queue,
            count_report=self.metrics.note_report, count_closed=self.metrics.count_closed("report", Closed),
            note_validity=self.metrics.note_validity,
        )  # fmt: skip


def _begin_at_zero(metrics: OperatorMetrics) -> None:
    """Have series whose labels are known begin at 0, so that the first event of each is seen."""
    for why in Refusal:
        metrics.expect("reports_refused_total", why)
    for outcome in Relisted:
        metrics.expect("relists_total", outcome)
    for event in NotificationEvent:
        for state in (NotificationState.DELIVERED, NotificationState.UNDELIVERED):
            metrics.expect("notifications_total", event, state.lower())
    for watched in (RUNS, JOBS, PODS):
        metrics.expect("watch_failures_total", watched.plural)
    for stage in StageName:
        for ended in (StageState.SUCCEEDED, StageState.FAILED):
            metrics.expect("stage_duration_seconds", stage, ended)


async def run_until_one_ends(*works: Coroutine[Any, Any, None]) -> None:
    """Run all at the same time until the first has ended or failed, and end the others."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=SHUTDOWN_S)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task], timeout=SHUTDOWN_S)


async def _release(lease: Lease) -> None:
    try:
        await lease.release()
    except KubeError as error:
        logger.warning("the Lease was not released, it will run out: %s", error)
