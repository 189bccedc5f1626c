"""What a running stage waits for, in one line for a person. Pure."""

from collections.abc import Sequence

from llava_operator.views import JobView, PodView

MAX_TEXT = 1024


def describe_waiting(job: JobView | None, pods: Sequence[PodView], num_pods: int) -> str:
    """Why not every pod of a stage runs; how many run, if all do."""
    if job is None:
        return "its Job is being made"
    live = [pod for pod in pods if pod.phase in ("Pending", "Running") and not pod.deleting]
    running = sum(pod.started for pod in live)
    if running >= num_pods:
        return "its pod runs" if num_pods == 1 else f"{num_pods} pods run"
    if not pods:
        return f"Job {job.key.name} has made no pod yet (kubectl describe job {job.key.name} says why, if it stays so)"
    waiting = sorted((pod for pod in live if not pod.started), key=lambda pod: (not pod.waiting, pod.key.name))
    if not waiting:
        return f"{running} of {num_pods} pods run"
    example = waiting[0]
    why = example.waiting or "not scheduled yet"
    prefix = "" if num_pods == 1 else f"{running} of {num_pods} pods run; "
    return f"{prefix}pod {example.key.name} waits: {why}"[:MAX_TEXT]
