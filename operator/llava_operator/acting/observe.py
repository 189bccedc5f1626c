"""Reads what a decision depends on: the run itself, live; its Job and pods, from the cache where that is enough."""

from dataclasses import dataclass
from datetime import datetime

from llava_api.names import job_name
from llava_api.status import AttemptState, AttemptStatus, StageStatus
from llava_operator.acting.nodes import Nodes
from llava_operator.cache.children import Children
from llava_operator.cache.progress import ProgressBook
from llava_operator.cache.views import JobView, PodView, parse_job, parse_pod
from llava_operator.cache.wire import ForeignError, ForeignReason
from llava_operator.deciding.decide import why_stop
from llava_operator.deciding.gpus import NodeGpus, is_asked_of_nodes
from llava_operator.deciding.observation import Observation
from llava_operator.kube.client import Kube
from llava_operator.kube.errors import NotFoundError, RetryableError
from llava_operator.kube.kinds import JOBS, PODS, RUNS
from llava_operator.kube.objects import Key, Object
from llava_operator.run import Run, current_stage
from llava_operator.stages import STAGES


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

    async def observe_children(self, run: Run, now: datetime, *, was_tried: bool = True) -> Observation:
        """What there is of the attempt that is under way.

        Args:
            run: as the API server has it.
            now: the present instant.
            was_tried: whether this process has tried to make the attempt's Job already.

        Raises:
            KubeError: something could not be read.
        """
        stage = current_stage(run.status)
        if stage is None or run.deleting:
            return Observation(run=run, now=now)
        job, pods = None, tuple[PodView, ...]()
        # There a pod's end is not its attempt's.
        is_replacing = STAGES[stage.name].is_sharded
        if stage.newest is not None and stage.newest.state is not AttemptState.GONE:
            job, is_live = await self._observe_job(run, stage, stage.newest, now, was_tried=was_tried)
            if job is not None:
                pods = await self._observe_pods(job, is_live=is_live)
            elif stage.newest.job_uid is not None:
                # A Job that was deleted in the background goes at once, and its pods take their time.
                pods = await self._list_pods(run.key.namespace, stage.newest.job_uid)
            if job is not None and not is_live and not is_replacing and _is_doubtful(job, pods):
                # The Job and its pods come by two watches: what ends a pod may stand in the Job already.
                job = await self._read_job(run, job.key)
        return Observation(
            run=run,
            job=job,
            pods=pods,
            progress=self.progress.newest(run.uid, stage.name, stage.attempt),
            progress_due_at=self.progress.due_at(run.uid, now),
            nodes=await self._observe_nodes(run, stage, job),
            now=now,
        )

    async def _observe_nodes(self, run: Run, stage: StageStatus, job: JobView | None) -> frozenset[NodeGpus]:
        """The GPUs that a run may get: asked for when training is planned, or planned again."""
        is_planned_now = (
            job is not None and job.complete
            if STAGES[stage.name].fetches
            else STAGES[stage.name].is_gang and job is None
        )
        if not is_planned_now or not is_asked_of_nodes(run.spec):
            return frozenset()
        return await self.nodes.list_gpus(run.spec.scheduling.node_selector)

    async def _observe_job(
        self, run: Run, stage: StageStatus, attempt: AttemptStatus, now: datetime, *, was_tried: bool
    ) -> tuple[JobView | None, bool]:
        """The attempt's Job, and whether it had to be read from the API server."""
        key = Key(run.key.namespace, job_name(run.key.name, stage.name, attempt.number))
        cached = self.children.job(key)
        if cached is not None and cached.uid == (attempt.job_uid or cached.uid) and cached.owner_uid == run.uid:
            return cached, False
        is_new = attempt.job_uid is None and attempt.state is AttemptState.STARTING and not was_tried
        if is_new and why_stop(run, now) is None:
            # It is about to be made, and if it has been, its creation will say so.
            return None, False
        # The cache may lag behind in either direction: only the API server knows that something is not there.
        return await self._read_job(run, key), True

    async def _read_job(self, run: Run, key: Key) -> JobView | None:
        try:
            raw = await self.kube.get(JOBS, key.namespace, key.name)
            job = parse_job(raw)
        except NotFoundError:
            return None
        except ForeignError as error:
            if error.reason is ForeignReason.UNREADABLE:
                raise RetryableError(f"Job {key.name} cannot be read: {error}") from error
            return None
        if job.owner_uid != run.uid:
            return None
        # Whatever somebody has made of its labels: its owner says whose it is.
        self.children.note_job(raw)
        return job

    async def _observe_pods(self, job: JobView, *, is_live: bool) -> tuple[PodView, ...]:
        known = self.children.pods_of(job)
        if not (is_live or job.complete or job.failed or job.failing):
            return known
        # The Job's end may be seen before its pods' last words, which come by another watch; and pods that were seen
        # before their Job was known are not in the cache.
        found = {pod.uid: pod for pod in await self._list_pods(job.key.namespace, job.uid)}
        # What was said by a pod at its end, or of its end by who took it away, stays true when it is gone.
        last_words = (pod for pod in (*known, *self.children.last_words_of(job)) if pod.has_last_words)
        return (*found.values(), *{pod.uid: pod for pod in last_words if pod.uid not in found}.values())

    async def _list_pods(self, namespace: str, job_uid: str) -> tuple[PodView, ...]:
        found = []
        async for raw in self.kube.list(PODS, namespace, f"batch.kubernetes.io/controller-uid={job_uid}"):
            pod = _read_pod(raw)
            # The label is whoever made the pod's; the owner is the Job controller's.
            if pod is not None and pod.job_uid == job_uid:
                self.children.note_pod(raw)
                found.append(pod)
        return tuple(found)


def _is_doubtful(job: JobView, pods: tuple[PodView, ...]) -> bool:
    """Whether pods end or are taken away without the Job having said why."""
    is_over = job.complete or job.failed or job.failing or job.deleting_since
    return not is_over and any(pod.failed or pod.deleting for pod in pods)


def _read_pod(raw: Object) -> PodView | None:
    try:
        return parse_pod(raw)
    except ForeignError:
        return None
