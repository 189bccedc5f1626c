"""What a running stage waits for, in one line for a person. Pure."""

from collections.abc import Sequence

from llava_api.spec import Spec
from llava_operator.cache.views import JobView, PodView
from llava_operator.run import secrets_of
from llava_operator.stages import Stage

MAX_TEXT = 1024
JOB_IS_MADE = "its Job is being made"
_NO_REASON = "ContainerCreating"


def list_needs(spec: Spec, stage: Stage) -> list[str]:
    """Objects of the namespace without which a stage's pod is not started, as a person would name them."""
    if not stage.fetches:
        return []
    needs = [f"Secret {name}" for name in dict.fromkeys(secret.name for secret in secrets_of(spec).values())]
    return needs + ([f"ConfigMap {spec.download.ca_config_map}"] if spec.download.ca_config_map else [])


def describe_waiting(job: JobView | None, pods: Sequence[PodView], num_pods: int, needs: Sequence[str] = ()) -> str:
    """Why not every pod of a stage runs; how many run, if all do.

    Args:
        job: the stage's Job; None before it is made.
        pods: its pods.
        num_pods: pods that it is going to have.
        needs: see ``list_needs``. Kubernetes gives no reason while one of them is missing.
    """
    if job is None:
        return JOB_IS_MADE
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
    if needs and why == _NO_REASON:
        why += f" (it needs {', '.join(needs)}; kubectl describe pod {example.key.name} says if one is missing)"
    prefix = "" if num_pods == 1 else f"{running} of {num_pods} pods run; "
    return f"{prefix}pod {example.key.name} waits: {why}"[:MAX_TEXT]
