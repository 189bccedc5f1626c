"""What ends an attempt whose pods are replaced one by one: which of them is why, and if trying again helps. Pure."""

from collections.abc import Iterable, Sequence

from llava_api.failures import Reason, exit_code_of
from llava_operator.cache.views import JobView, PodView

_EXHAUSTED = frozenset({"MaxFailedIndexesExceeded", "FailedIndexes"})
"""Reasons of a Job that has failed since an index was tried as often as is allowed (batch/v1, JobReason...)."""


def is_index_exhausted(job: JobView | None) -> bool:
    """Whether a Job has failed after it had tried one of its indexes again, as often as is allowed."""
    end = (job.failing or job.failed) if job else None
    return end is not None and end.reason in _EXHAUSTED


def list_culprits(job: JobView, pods: Iterable[PodView]) -> tuple[PodView, ...]:
    """Pods that a Job may have failed by: the one that it names, else the last of each index that has failed for good.

    Where the Job says neither, the last failed pod of each index that has not succeeded.
    """
    pods, end = tuple(pods), job.failing or job.failed
    if end is not None:
        # So kube-controller-manager writes it, for a rule of the podFailurePolicy.
        named = tuple(pod for pod in pods if f"pod {pod.key.namespace}/{pod.key.name} failed " in end.message)
        if named:
            return _find_replaced(named, pods) or named
    done = {pod.index for pod in pods if pod.phase == "Succeeded"}
    last: dict[int | None, PodView] = {}
    for pod in sorted(pods, key=_ended_at):
        if pod.index not in done and (not job.failed_indexes or pod.index in job.failed_indexes):
            last[pod.index] = pod
    return tuple(last.values())


def _find_replaced(named: Sequence[PodView], pods: Sequence[PodView]) -> tuple[PodView, ...]:
    """Pods that have failed before in the place of one that found its attempt claimed: by them.

    An image from before evaluation had shards ends so whenever its pod is replaced. It is what the first pod ended by
    that counts, or a run that fails each time would be tried for ever.
    """
    used = exit_code_of(Reason.ATTEMPT_USED)
    indexes = {pod.index for pod in named if pod.ended and pod.ended.exit_code == used}
    return tuple(
        pod for pod in pods if pod.index in indexes and pod.failed and not (pod.ended and pod.ended.exit_code == used)
    )


def _ended_at(pod: PodView) -> tuple[bool, str, str]:
    """Those that ended first come first; one that still runs, or of which nobody knows when it ended, comes last."""
    ended = pod.ended.finished_at if pod.ended else ""
    return not ended, ended, pod.scheduled_at
