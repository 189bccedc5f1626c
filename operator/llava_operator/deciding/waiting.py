"""What a running stage waits for: a reason where something stands in the way, and one line for a person. Pure."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from llava_api.failures import Reason
from llava_api.spec import Spec
from llava_api.status import AttemptState, StageStatus
from llava_operator.cache.views import JobView, PodView
from llava_operator.clock import from_time
from llava_operator.credentials import goes_out, secrets_for
from llava_operator.deciding.reasons import UNBOUND, explain, read_reason
from llava_operator.deciding.references import Reference
from llava_operator.stages import STAGES, Stage

MAX_TEXT = 1024
TOLD_AFTER_S = 10
"""Seconds for which an attempt may wait without a word: scheduler and volume need some, and each word is a write."""
JOB_IS_MADE = "its Job is being made"
_NO_REASON = "ContainerCreating"


class Trouble(NamedTuple):
    """What only Events tell: why a Job makes no pods, a volume is not mounted, a claim has none."""

    said: str
    """Reason and message of the Event."""
    about: str = ""
    """The object that the waiting pod needs; empty where it is the pod or the Job itself."""


class Waiting(NamedTuple):
    """What a stage waits for."""

    reason: Reason | None
    """None while it only takes its time, or runs."""
    message: str


def list_needs(spec: Spec, stage: Stage) -> list[str]:
    """Objects of the namespace without which a stage's pod is not started, as a person would name them."""
    needs = [f"Secret {name}" for name in dict.fromkeys(secret.name for secret in secrets_for(spec, stage).values())]
    if goes_out(spec, stage) and spec.download.ca_config_map:
        needs.append(f"ConfigMap {spec.download.ca_config_map}")
    return needs


def waiting_since(stage: StageStatus, job: JobView | None, pods: Sequence[PodView], num_pods: int) -> datetime | None:
    """Since when the newest attempt waits for pods to start; None if it does not.

    Where pods are replaced one by one, the next one waits since it is there, or the one before has ended.
    """
    newest = stage.newest
    if newest is None or job is None or newest.state not in (AttemptState.STARTING, AttemptState.RUNNING):
        return None
    since = newest.admitted_time or newest.start_time
    if not since or sum(pod.started and not pod.failed for pod in pods) >= num_pods:
        return None
    begun = from_time(since)
    if not STAGES[stage.name].is_sharded:
        return begun
    made = [from_time(pod.made_at) for pod in unstarted(pods) if pod.made_at]
    ended = [from_time(pod.ended.finished_at) for pod in pods if pod.failed and pod.ended and pod.ended.finished_at]
    return max(begun, min(made) if made else max(ended, default=begun))


def told_from(since: datetime) -> datetime:
    """From when on it is told what an attempt waits for."""
    return since + timedelta(seconds=TOLD_AFTER_S)


def unstarted(pods: Sequence[PodView]) -> list[PodView]:
    """Pods that wait; those of which Kubernetes says why come first."""
    live = (pod for pod in pods if pod.phase in ("Pending", "Running") and not pod.deleting and not pod.started)
    return sorted(live, key=lambda pod: (read_reason(pod.waiting) is None, not pod.waiting, pod.key.name))


def describe_waiting(
    job: JobView | None,
    pods: Sequence[PodView],
    num_pods: int,
    needs: Sequence[str] = (),
    *,
    trouble: Trouble | None = None,
    references: Sequence[Reference] = (),
) -> Waiting:
    """Why not every pod of a stage runs; how many run, if all do.

    Args:
        job: the stage's Job; None before it is made.
        pods: its pods.
        num_pods: pods that it is going to have.
        needs: see ``list_needs``. Kubernetes gives no reason in the pod while one of them is missing.
        trouble: what Events tell of the Job, of pods or of claims.
        references: objects that the run names, by the fields that ask for them.
    """
    if job is None:
        return Waiting(None, JOB_IS_MADE)
    running = sum(
        pod.started and pod.phase in ("Pending", "Running") and not (pod.deleting or pod.failed) for pod in pods
    )
    if running >= num_pods:
        return Waiting(None, "its pod runs" if num_pods == 1 else f"{num_pods} pods run")
    # Those that each do a part of it for themselves end one by one.
    done = min(job.num_succeeded, num_pods - 1)
    running_of_all = (
        f"{done} of {num_pods} pods are done, {running} running" if done else f"{running} of {num_pods} pods run"
    )
    if done and done + running >= num_pods:
        return Waiting(None, running_of_all)
    if not pods:
        if trouble is not None:
            return _tell(f"Job {job.key.name} cannot make its pods", trouble.said, references)
        name = job.key.name
        return Waiting(None, f"Job {name} has made no pod yet (kubectl describe job {name} says why, if it stays so)")
    waiting = unstarted(pods)
    if not waiting:
        return Waiting(None, running_of_all)
    example = waiting[0]
    prefix = "" if num_pods == 1 else f"{running_of_all}; "
    prefix += f"pod {example.key.name} waits"
    if trouble is not None and (read_reason(example.waiting) is None or UNBOUND in example.waiting):
        return _tell(f"{prefix} for {trouble.about}" if trouble.about else prefix, trouble.said, references)
    why = example.waiting or "not scheduled yet"
    if needs and why == _NO_REASON:
        why += f" (it needs {', '.join(needs)}; kubectl describe pod {example.key.name} says if one is missing)"
    return _tell(prefix, why, references)


def _tell(what: str, said: str, references: Sequence[Reference]) -> Waiting:
    return Waiting(read_reason(said), f"{what}: {explain(said, references)}"[:MAX_TEXT])
