"""The operator's process: wiring, start and end. Everything is made here, once, and handed down."""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import kopf
from prometheus_client import CollectorRegistry

from llava_api.constants import OLDEST_KUBERNETES, REPORT_PATH
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
from llava_operator.kube.client import Kube, connect
from llava_operator.kube.errors import ForbiddenError, KubeError, NotFoundError
from llava_operator.kube.kinds import RUNS
from llava_operator.kube.leader import LeadershipLostError, Lease, LeaseTimes
from llava_operator.kube.objects import Key
from llava_operator.loop.health import Health
from llava_operator.loop.passes import Passes, Resync
from llava_operator.loop.watches import build_kopf_settings, build_registry
from llava_operator.loop.workqueue import WorkQueue
from llava_operator.probes import LIMITS, build_web_app
from llava_operator.reporting.upkeep import keep_reporting
from llava_operator.serving.server import SHUTDOWN_S, serve
from llava_operator.settings import Settings, SettingsError
from llava_operator.telemetry.logs import PlainFormatter
from llava_operator.telemetry.metrics import OperatorMetrics, RunCollector

logger = logging.getLogger(__name__)

EXIT_USAGE = 2
MAX_RECURSION = 50_000
"""Anybody may store an object that is nested 10,000 levels deep (Go's decoder ends there), in managedFields for
example. Python's own limit of 1,000 would have json raise RecursionError, in kopf as well, and end the process."""
EXIT_LEADERSHIP_LOST = 1


class UnsupportedClusterError(Exception):
    """The cluster's Kubernetes is older than what the operator relies on."""


@dataclass(kw_only=True)
class Operator:
    """The parts of one process."""

    settings: Settings
    kube: Kube
    queue: WorkQueue[Key] = field(default_factory=lambda: WorkQueue(expected=(KubeError,)))
    runs: Runs = field(default_factory=Runs)
    authority: Authority = field(default_factory=Authority)
    registry: CollectorRegistry = field(default_factory=lambda: CollectorRegistry(auto_describe=True))

    def __post_init__(self) -> None:
        self.progress = ProgressBook(
            interval_s=self.settings.progress_interval_seconds,
            writes_per_s=self.settings.progress_writes_per_second,
        )
        self.health = Health(
            heartbeat_s=self.settings.heartbeat_seconds,
            longest_pass_s=self.settings.pass_timeout_seconds,
            clock=time.monotonic,
        )
        self.metrics = OperatorMetrics(self.registry, queue_depth=lambda: self.queue.depth)
        skipped = SkippedObjects(lambda kind, reason: self.metrics.skipped.labels(kind, reason).inc())
        self.children = Children(self.runs, skipped)
        self.registry.register(RunCollector(self.runs, now))

    async def run(self) -> None:
        """Serve probes, wait for leadership, lead until told to stop.

        Raises:
            LeadershipLostError: another process may lead; this one must be gone at once.
            UnsupportedClusterError: the cluster is too old.
        """
        async with serve(
            build_web_app(self.health, self.registry), self.settings.http_port,
            limits=LIMITS, count=lambda why: self.metrics.closed.labels("http", why).inc(),
        ):  # fmt: skip
            lease = self._lease()
            try:
                await lease.acquire(on_try=self.health.beat, on_answer=self.health.note_ready)
                self.metrics.is_leader.set(1)
                await self._lead(lease)
            except (asyncio.CancelledError, UnsupportedClusterError):
                # SIGTERM before kopf has taken the signals over; the Lease may be ours already.
                await _release(lease)
                raise
            await _release(lease)

    def _lease(self) -> Lease:
        settings = self.settings
        times = LeaseTimes(
            duration_s=settings.lease_duration_seconds,
            renew_deadline_s=settings.lease_renew_deadline_seconds,
            retry_s=settings.lease_retry_seconds,
        )
        key = Key(settings.namespace, settings.lease_name)
        return Lease(self.kube, key, identity=settings.pod_name, times=times, now=now)

    async def _wait_for_cluster(self) -> None:
        """Wait for the CRD: kopf ignores for ever what is not served when it starts.

        Raises:
            UnsupportedClusterError: the cluster is too old.
        """
        while True:
            for scope in self.settings.watch_namespaces or (None,):
                try:
                    await self._check_version()
                    async for _ in self.kube.list(RUNS, scope):
                        break
                    return
                except KubeError as error:
                    # One namespace that may not be read says nothing about the others.
                    logger.warning("the CRD is not served yet: %s", error)
            await asyncio.sleep(self.settings.lease_retry_seconds)

    async def _check_version(self) -> None:
        """Look whether the cluster does what the operator relies on; one that does not say is taken as it is."""
        try:
            found = await self.kube.version()
        except (ForbiddenError, NotFoundError) as error:
            logger.warning("the cluster does not say which Kubernetes it is: %s", error)
            return
        if found is not None and found < OLDEST_KUBERNETES:
            raise UnsupportedClusterError(
                f"the cluster is Kubernetes {_dotted(found)}, but this operator needs {_dotted(OLDEST_KUBERNETES)} or "
                "later: before, a Job counts as failed while pods of it still run"
            )

    async def _lead(self, lease: Lease) -> None:
        """Work until kopf ends, which it does on SIGTERM, or anything fails."""
        await run_until_one_ends(lease.hold(), self._look_after_runs())

    async def _look_after_runs(self) -> None:
        """Fill the caches, then watch and work."""
        await self.health.beat_while(self._wait_for_cluster())
        resync = Resync(
            kube=self.kube,
            children=self.children,
            runs=self.runs,
            queue=self.queue,
            namespaces=self.settings.watch_namespaces,
            every_s=self.settings.resync_seconds,
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
        await kopf.operator(
            registry=build_registry(self.queue, self.runs, self.children),
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
            notifier=Notifier(
                kube=self.kube, children=self.children, platform=platform, now=now,
                count=lambda event, outcome: self.metrics.notifications.labels(event, outcome).inc(),
            ),
            platform=platform,
            now=now,
        )  # fmt: skip

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
            count_report=lambda code: self.metrics.reports.labels(str(code)).inc(),
            count_closed=lambda why: self.metrics.closed.labels("report", why).inc(),
        )  # fmt: skip


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


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


async def _release(lease: Lease) -> None:
    try:
        await lease.release()
    except KubeError as error:
        logger.warning("the Lease was not released, it will run out: %s", error)


async def run_operator(settings: Settings) -> None:
    """Run one operator until SIGTERM or SIGINT.

    Raises:
        LeadershipLostError: another process may lead; this one must be gone at once.
        UnsupportedClusterError: the cluster is too old.
    """
    main_task = asyncio.current_task()
    assert main_task is not None
    loop = asyncio.get_running_loop()
    # While it leads kopf puts its own handlers in their place, and ends the same way.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, main_task.cancel)
    api = await connect(user_agent=f"llava-finetune-operator/{metadata.version('llava-finetune-operator')}")
    try:
        await Operator(settings=settings, kube=Kube(api, timeout_s=settings.request_timeout_seconds)).run()
    finally:
        await api.close()


def main() -> None:
    """Entry point of ``llava-operator``."""
    sys.setrecursionlimit(MAX_RECURSION)
    try:
        settings = Settings.from_environment(os.environ)
    except SettingsError as error:
        sys.exit(f"llava-operator: {error}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
    # It says of every event that a handler has succeeded.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    try:
        asyncio.run(run_operator(settings))
    except asyncio.CancelledError:
        logger.info("stopped before it was at work")
    except LeadershipLostError as error:
        logger.error("%s", error)
        sys.exit(EXIT_LEADERSHIP_LOST)
    except UnsupportedClusterError as error:
        sys.exit(f"llava-operator: {error}")


if __name__ == "__main__":
    main()
