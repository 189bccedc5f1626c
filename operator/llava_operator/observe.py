"""Reads what a decision depends on: the run itself, live; its Job and pods, from the cache where that is enough."""

from dataclasses import dataclass
from datetime import datetime

from llava_api.constants import StageName
from llava_api.status import StageStatus
from llava_operator.cards import NodeGpus, is_asked_of_nodes
from llava_operator.children import Children
from llava_operator.decide import Observation, Obstacle
from llava_operator.kube import Kube, NotFoundError
from llava_operator.nodes import Nodes
from llava_operator.progress import ProgressBook
from llava_operator.resources import JOBS, PODS, RUNS
from llava_operator.run import Run, current_stage
from llava_operator.views import ForeignError, JobView, Key, PodView, parse_job, parse_pod
from llava_operator.wire import Object


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
        job = await self._observe_job(run, stage)
        return Observation(
            run=run,
            job=job,
            pods=await self._observe_pods(job) if job else (),
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

    async def _observe_job(self, run: Run, stage: StageStatus) -> JobView | None:
        assert stage.job is not None, "a stage that runs names its Job"
        key = Key(run.key.namespace, stage.job)
        cached = self.children.job(key)
        if cached is not None and cached.uid == (stage.job_uid or cached.uid) and cached.owner_uid == run.uid:
            return cached
        # The cache may lag behind in either direction: only the API server knows that something is not there.
        try:
            raw = await self.kube.get(JOBS, key.namespace, key.name)
            job = parse_job(raw)
        except (NotFoundError, ForeignError):
            return None
        if job.owner_uid != run.uid:
            return None
        self.children.note_job(raw)
        return job

    async def _observe_pods(self, job: JobView) -> tuple[PodView, ...]:
        if not (job.complete or job.failed or job.failing):
            return self.children.pods_of(job)
        # The Job's end may be seen before its pods' last words, which come by another watch.
        selector = f"batch.kubernetes.io/controller-uid={job.uid}"
        pods = [pod async for raw in self.kube.list(PODS, job.key.namespace, selector) if (pod := _read_pod(raw))]
        # The label is whoever made the pod's; the owner is the Job controller's.
        return tuple(pod for pod in pods if pod.job_uid == job.uid)


def _read_pod(raw: Object) -> PodView | None:
    try:
        return parse_pod(raw)
    except ForeignError:
        return None
