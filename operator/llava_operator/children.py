"""A cache of the Jobs and pods of all runs, small enough for thousands of them.

Events fill it. A periodic relist replaces it, so that a deletion lost by a broken watch does not stay for ever.
Nothing is created on the word of this cache alone: absence is confirmed by a live read.
"""

from collections.abc import Iterable, Sequence

from llava_operator.kube import Kube
from llava_operator.resources import CHILD_SELECTOR, JOBS, PODS
from llava_operator.views import JobView, Key, PodView, parse_job, parse_pod
from llava_operator.wire import Object


class Children:
    """Views of Jobs and pods, by namespace and name."""

    def __init__(self) -> None:
        self._jobs: dict[Key, JobView] = {}
        self._pods: dict[Key, PodView] = {}
        self._pods_of_job: dict[str, set[Key]] = {}
        self._touched: set[Key] | None = None

    def job(self, key: Key) -> JobView | None:
        """The Job of this name, if one has been seen."""
        return self._jobs.get(key)

    def pod(self, key: Key) -> PodView | None:
        """The pod of this name, if one has been seen."""
        return self._pods.get(key)

    def pods_of(self, job_uid: str) -> tuple[PodView, ...]:
        """Pods of a Job, in no order."""
        return tuple(self._pods[key] for key in self._pods_of_job.get(job_uid, ()))

    def note_job(self, raw: Object, *, deleted: bool = False) -> Key:
        """Take in a Job and tell whose it is.

        Raises:
            ValueError: it is no Job.
        """
        job = parse_job(raw)
        self._touch(job.key)
        if not deleted:
            self._jobs[job.key] = job
        elif (known := self._jobs.get(job.key)) and known.uid == job.uid:
            # Another Job may have taken the name already.
            del self._jobs[job.key]
        return Key(job.key.namespace, job.run)

    def note_pod(self, raw: Object, *, deleted: bool = False) -> Key:
        """Take in a pod and tell whose it is.

        Raises:
            ValueError: it is no pod.
        """
        pod = parse_pod(raw)
        self._touch(pod.key)
        self._drop_pod(pod.key)
        if not deleted:
            self._add_pod(pod)
        return Key(pod.key.namespace, pod.run)

    async def relist(self, kube: Kube, namespaces: Sequence[str | None]) -> None:
        """Replace everything by what the API server has now. ``None`` in ``namespaces`` means all of them.

        What an event brought while the list was under way is newer than the list and stays.

        Raises:
            KubeError: a list could not be read; the cache is left as it was.
        """
        touched: set[Key] = set()
        self._touched = touched
        try:
            jobs = [parse_job(raw) for ns in namespaces async for raw in kube.list(JOBS, ns, CHILD_SELECTOR)]
            pods = [parse_pod(raw) for ns in namespaces async for raw in kube.list(PODS, ns, CHILD_SELECTOR)]
        finally:
            self._touched = None
        self._replace(jobs, pods, touched)

    def _replace(self, jobs: Iterable[JobView], pods: Iterable[PodView], touched: set[Key]) -> None:
        kept_jobs = [job for key, job in self._jobs.items() if key in touched]
        kept_pods = [pod for key, pod in self._pods.items() if key in touched]
        fresh_jobs = [job for job in jobs if job.key not in touched]
        fresh_pods = [pod for pod in pods if pod.key not in touched]
        self._jobs = {job.key: job for job in (*fresh_jobs, *kept_jobs)}
        self._pods, self._pods_of_job = {}, {}
        for pod in (*fresh_pods, *kept_pods):
            self._add_pod(pod)

    def _add_pod(self, pod: PodView) -> None:
        self._pods[pod.key] = pod
        if pod.job_uid:
            self._pods_of_job.setdefault(pod.job_uid, set()).add(pod.key)

    def _drop_pod(self, key: Key) -> None:
        pod = self._pods.pop(key, None)
        if pod is None or pod.job_uid is None:
            return
        siblings = self._pods_of_job[pod.job_uid]
        siblings.discard(key)
        if not siblings:
            del self._pods_of_job[pod.job_uid]

    def _touch(self, key: Key) -> None:
        # A Job and a pod never share a name: a pod's ends in its index and a random suffix.
        if self._touched is not None:
            self._touched.add(key)
