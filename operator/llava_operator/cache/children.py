"""A cache of the Jobs and pods of all runs, small enough for thousands of them.

Events fill it. A periodic relist replaces it, so that a deletion lost by a broken watch does not stay for ever.
Nothing is created on the word of this cache alone: absence is confirmed by a live read.

Only what is owned gets in: a Job whose controller is a run that is known, a pod whose controller is such a Job. Anybody
can put our labels on a pod of theirs, but the UIDs of owners are the API server's, and they count in one namespace.
"""

from collections import ChainMap, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from llava_api.constants import LABEL_RUN
from llava_operator.cache.skipped import SkippedObjects
from llava_operator.cache.views import JobView, PodView, parse_job, parse_pod
from llava_operator.cache.wire import ForeignError, ForeignReason
from llava_operator.kube.client import Kube
from llava_operator.kube.kinds import CHILD_SELECTOR, JOBS, PODS
from llava_operator.kube.objects import Key, Object
from llava_operator.recent import Recent

MAX_LAST_WORDS = 256
"""Deleted pods that are remembered, with at most 4 KiB of text each."""


class KnownRuns(Protocol):
    """What the cache of runs tells of them."""

    def has(self, key: Key, uid: str) -> bool:
        """Whether there is a run of this name and UID."""

    def had(self, key: Key, uid: str) -> bool:
        """Whether there was one a short time ago."""


class Children:
    """Views of Jobs and pods, by namespace and name."""

    def __init__(self, runs: KnownRuns, skipped: SkippedObjects) -> None:
        """Make an empty cache; ``skipped`` is told of what carries our label and is none of ours."""
        self._runs = runs
        self._skipped = skipped
        self._jobs: dict[Key, JobView] = {}
        self._pods: dict[Key, PodView] = {}
        self._job_of_uid: dict[Key, JobView] = {}
        """By namespace and UID."""
        self._pods_of_job: dict[Key, set[Key]] = {}
        """By the Job's namespace and UID: a pod elsewhere may name the same UID."""
        self._gone_jobs: Recent[tuple[str, str]] = Recent()
        """By namespace and UID."""
        self._last_words: OrderedDict[str, PodView] = OrderedDict()
        """Pods that had ended before they were deleted, by UID: their results may not have been read yet."""
        self._touched: set[Key] | None = None

    def job(self, key: Key) -> JobView | None:
        """The Job of this name, if one has been seen."""
        return self._jobs.get(key)

    def pod(self, key: Key) -> PodView | None:
        """The pod of this name, if one has been seen."""
        return self._pods.get(key)

    def pods_of(self, job: JobView) -> tuple[PodView, ...]:
        """Pods of a Job, in no order."""
        return tuple(self._pods[key] for key in self._pods_of_job.get(_by_uid(job), ()))

    def last_words_of(self, job: JobView) -> tuple[PodView, ...]:
        """Pods of a Job that ended and were deleted a short time ago."""
        return tuple(
            pod for pod in self._last_words.values() if (pod.key.namespace, pod.job_uid) == (job.key.namespace, job.uid)
        )

    def note_job(self, raw: Object, *, deleted: bool = False) -> Key | None:
        """Take in a Job and tell which run it is about; None if it is about none."""
        known = self._jobs.get(_key_of(raw))
        try:
            job = self._read_job(raw)
        except ForeignError as error:
            if known is None or known.uid != _uid_of(raw):
                self._pass_over("Job", raw, error, deleted=deleted)
                return None
            # It was ours: its run is no more, or its owner was taken from it.
            job, deleted = known, True
        self._touch(job.key)
        # Of a late deletion another Job may have taken the name already.
        if known is not None and (known.uid == job.uid or not deleted):
            del self._jobs[job.key], self._job_of_uid[_by_uid(known)]
            self._gone_jobs.add((known.key.namespace, known.uid))
        if not deleted:
            self._jobs[job.key] = self._job_of_uid[_by_uid(job)] = job
        return Key(job.key.namespace, job.run)

    def forget_job(self, key: Key, uid: str) -> None:
        """Drop a Job of which the API server says that it is no more."""
        known = self._jobs.get(key)
        if known is not None and known.uid == uid:
            self._touch(key)
            del self._jobs[key], self._job_of_uid[_by_uid(known)]
            self._gone_jobs.add((key.namespace, uid))

    def note_pod(self, raw: Object, *, deleted: bool = False) -> Key | None:
        """Take in a pod and tell which run it is about; None if it is about none."""
        known = self._pods.get(_key_of(raw))
        try:
            pod = self._read_pod(raw, self._job_of_uid)
        except ForeignError as error:
            if known is None or known.uid != _uid_of(raw):
                self._pass_over("Pod", raw, error, deleted=deleted)
                return None
            pod, deleted = known, True
        self._touch(pod.key)
        self._drop_pod(pod.key)
        if not deleted:
            self._add_pod(pod)
        elif pod.has_last_words:
            self._keep_last_words(pod)
        return Key(pod.key.namespace, pod.run)

    def _keep_last_words(self, pod: PodView) -> None:
        self._last_words[pod.uid] = pod
        while len(self._last_words) > MAX_LAST_WORDS:
            self._last_words.popitem(last=False)

    def _pass_over(self, kind: str, raw: Object, error: ForeignError, *, deleted: bool = False) -> None:
        # What is being deleted may have been a run's until a moment ago.
        is_leaving = deleted or "deletionTimestamp" in (raw.get("metadata") or {})
        if not is_leaving and error.reason is not ForeignReason.GONE:
            self._skipped.note(kind, raw, error)

    def _read_job(self, raw: Object) -> JobView:
        job = parse_job(raw)
        run = Key(job.key.namespace, job.run)
        if not self._runs.has(run, job.owner_uid):
            if self._runs.had(run, job.owner_uid):
                raise ForeignError(ForeignReason.GONE, "its run is no more")
            raise ForeignError(ForeignReason.UNOWNED, "its controller is no LlavaFineTune of its namespace")
        _check_label(job.labelled, job.run)
        return job

    def _read_pod(self, raw: Object, jobs: Mapping[Key, JobView]) -> PodView:
        pod = parse_pod(raw)
        job = jobs.get(Key(pod.key.namespace, pod.job_uid))
        if job is None:
            if (pod.key.namespace, pod.job_uid) in self._gone_jobs:
                raise ForeignError(ForeignReason.GONE, "its Job is no more")
            raise ForeignError(ForeignReason.UNOWNED, "its controller is no Job of a run of its namespace")
        _check_label(pod.run, job.run)
        return pod

    async def relist(self, kube: Kube, namespace: str | None) -> None:
        """Replace what is known of a namespace, or (None) of all, by what the API server has now.

        What an event brought while the list was under way is newer than the list and stays. The runs must be known
        before their children are.

        Raises:
            KubeError: a list could not be read; the cache is left as it was.
        """
        touched: set[Key] = set()
        self._touched = touched
        jobs: dict[Key, JobView] = {}
        pods: list[PodView] = []
        try:
            async for raw in kube.list(JOBS, namespace, CHILD_SELECTOR):
                try:
                    job = self._read_job(raw)
                    jobs[_by_uid(job)] = job
                except ForeignError as error:
                    self._pass_over("Job", raw, error)
            # A Job that was made in the meantime is only known here.
            known = ChainMap(jobs, self._job_of_uid)
            async for raw in kube.list(PODS, namespace, CHILD_SELECTOR):
                try:
                    pods.append(self._read_pod(raw, known))
                except ForeignError as error:
                    self._pass_over("Pod", raw, error)
        finally:
            self._touched = None

        def is_kept(key: Key) -> bool:
            return key in touched or namespace not in (None, key.namespace)

        self._replace(jobs.values(), pods, touched, is_kept)

    def _replace(
        self, jobs: Iterable[JobView], pods: Iterable[PodView], touched: set[Key], is_kept: Callable[[Key], bool]
    ) -> None:
        kept_jobs = [job for key, job in self._jobs.items() if is_kept(key)]
        kept_pods = [pod for key, pod in self._pods.items() if is_kept(key)]
        fresh_jobs = [job for job in jobs if job.key not in touched]
        fresh_pods = [pod for pod in pods if pod.key not in touched]
        self._jobs = {job.key: job for job in (*fresh_jobs, *kept_jobs)}
        self._job_of_uid = {_by_uid(job): job for job in self._jobs.values()}
        self._pods, self._pods_of_job = {}, {}
        for pod in (*fresh_pods, *kept_pods):
            self._add_pod(pod)

    def _add_pod(self, pod: PodView) -> None:
        self._pods[pod.key] = pod
        self._pods_of_job.setdefault(Key(pod.key.namespace, pod.job_uid), set()).add(pod.key)

    def _drop_pod(self, key: Key) -> None:
        pod = self._pods.pop(key, None)
        if pod is None:
            return
        job = Key(pod.key.namespace, pod.job_uid)
        siblings = self._pods_of_job[job]
        siblings.discard(key)
        if not siblings:
            del self._pods_of_job[job]

    def _touch(self, key: Key) -> None:
        # A Job and a pod never share a name: a pod's ends in its index and a random suffix.
        if self._touched is not None:
            self._touched.add(key)


def _check_label(label: str, run: str) -> None:
    if not label:
        raise ForeignError(ForeignReason.UNLABELLED, f"the label {LABEL_RUN} is missing or empty")
    if label != run:
        raise ForeignError(ForeignReason.UNOWNED, f"its label names another run than {run}, which it belongs to")


def _by_uid(job: JobView) -> Key:
    return Key(job.key.namespace, job.uid)


def _key_of(raw: Object) -> Key:
    meta = raw.get("metadata") or {}
    return Key(str(meta.get("namespace", "")), str(meta.get("name", "")))


def _uid_of(raw: Object) -> object:
    return (raw.get("metadata") or {}).get("uid")
