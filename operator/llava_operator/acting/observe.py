"""Reads what a decision depends on: the run itself, live; its Job and pods, from the cache where that is enough."""

from dataclasses import dataclass
from datetime import datetime

from llava_api.constants import StageName
from llava_api.status import StageStatus
from llava_operator.acting.nodes import Nodes
from llava_operator.cache.children import Children
from llava_operator.cache.progress import ProgressBook
from llava_operator.cache.views import ForeignError, ForeignReason, JobView, PodView, parse_job, parse_pod
from llava_operator.deciding.cards import NodeGpus, is_asked_of_nodes
from llava_operator.deciding.decide import Observation, Obstacle
from llava_operator.kube.client import Kube, NotFoundError, RetryableError
from llava_operator.kube.kinds import JOBS, PODS, RUNS
from llava_operator.kube.objects import Key, Object
from llava_operator.run import Run, current_stage


@dataclass(frozen=True, kw_only=True)
class Observer:
    """Where observations come from."""

    kube: Kube
    children: Children
    progress: ProgressBook
    nodes: Nodes

    async def observe_run(self, key: Key) -> Object | None:
        """The run as the API server has it now; None if it is no more.

        Raises:
            KubeError: it could not be read.
        """
        try:
            return await self.kube.get(RUNS, key.namespace, key.name)
        except NotFoundError:
            return None

    async def observe_children(self, run: Run, obstacle: Obstacle | None, now: datetime) -> Observation:
        """What there is of the stage that runs.

        Raises:
            KubeError: something could not be read.
        """
        stage = current_stage(run.status)
        if stage is None or run.deleting:
            return Observation(run=run, now=now)
        job, is_live = await self._observe_job(run, stage)
        return Observation(
            run=run,
            job=job,
            pods=await self._observe_pods(job, is_live=is_live) if job else (),
            obstacle=obstacle,
            progress=self.progress.newest(run.uid, stage.name, stage.attempt),
            progress_due_at=self.progress.due_at(run.uid, now),
            nodes=await self._observe_nodes(run, stage, job),
            now=now,
        )

    async def _observe_nodes(self, run: Run, stage: StageStatus, job: JobView | None) -> frozenset[NodeGpus]:
        """The GPUs that a run may get: asked for when prepare has ended well, which is when training is planned."""
        is_planned_now = stage.name is StageName.PREPARE and job is not None and job.complete
        if not is_planned_now or not is_asked_of_nodes(run.spec):
            return frozenset()
        return await self.nodes.list_gpus(run.spec.scheduling.node_selector)

    async def _observe_job(self, run: Run, stage: StageStatus) -> tuple[JobView | None, bool]:
        """The stage's Job, and whether it had to be read from the API server."""
        assert stage.job is not None, "a stage that runs names its Job"
        key = Key(run.key.namespace, stage.job)
        cached = self.children.job(key)
        if cached is not None and cached.uid == (stage.job_uid or cached.uid) and cached.owner_uid == run.uid:
            return cached, False
        # The cache may lag behind in either direction: only the API server knows that something is not there.
        try:
            raw = await self.kube.get(JOBS, key.namespace, key.name)
            job = parse_job(raw)
        except NotFoundError:
            return None, True
        except ForeignError as error:
            if error.reason is ForeignReason.UNREADABLE:
                raise RetryableError(f"Job {key.name} cannot be read: {error}") from error
            return None, True
        if job.owner_uid != run.uid:
            return None, True
        # Whatever somebody has made of its labels: its owner says whose it is.
        self.children.note_job(raw)
        return job, True

    async def _observe_pods(self, job: JobView, *, is_live: bool) -> tuple[PodView, ...]:
        if not (is_live or job.complete or job.failed or job.failing):
            return self.children.pods_of(job)
        # The Job's end may be seen before its pods' last words, which come by another watch; and pods that were seen
        # before their Job was known are not in the cache.
        selector = f"batch.kubernetes.io/controller-uid={job.uid}"
        found = []
        async for raw in self.kube.list(PODS, job.key.namespace, selector):
            pod = _read_pod(raw)
            # The label is whoever made the pod's; the owner is the Job controller's.
            if pod is not None and pod.job_uid == job.uid:
                self.children.note_pod(raw)
                found.append(pod)
        return tuple(found)


def _read_pod(raw: Object) -> PodView | None:
    try:
        return parse_pod(raw)
    except ForeignError:
        return None
