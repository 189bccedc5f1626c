"""Requests and limits of a stage's container, completed."""

from llava_api.constants import StageName
from llava_api.quantities import format_quantity, parse_bytes
from llava_operator.kube.objects import Object
from llava_operator.run import Attempt, Run

GPU = "nvidia.com/gpu"
WHOLE_MODEL = "40Gi"
"""Memory of merging where its image holds a whole model in fp32: a run goes on with the image that it began with."""


def build_resources(attempt: Attempt) -> Object:
    """Requests and limits of a stage's container.

    - CPU and memory that the run does not mention are the stage's defaults; merging by an older image gets what that
      takes.
    - A missing request is the limit, as Kubernetes has it.
    - A missing limit is the request, but for the CPU: a pod without a CPU limit uses what is idle, and one with a
      limit is throttled while the node has time to spare. Who wants the limit sets it.
    - In training /dev/shm comes on top of the memory, in request and limit: what lies in it counts as the container's.
    - The adapters of ``workers.network.resource`` are requested once a training pod.
    """
    stage, workers = attempt.stage, attempt.spec.workers
    given, default = stage.resources(attempt.spec), stage.default_resources
    requests, limits = dict(given.requests), dict(given.limits)
    for name in ("cpu", "memory"):
        if name not in requests and name not in limits:
            is_whole = stage.name is StageName.MERGE and name == "memory" and not _streams_merge(attempt.run)
            requests[name] = WHOLE_MODEL if is_whole else default.requests[name]
    requests = {**limits, **requests}
    limits = {**{name: value for name, value in requests.items() if name != "cpu"}, **limits}
    if stage.is_gang:
        _add_memory((requests, limits), parse_bytes(workers.shm_size))
        if workers.network.resource is not None:
            requests[workers.network.resource] = limits[workers.network.resource] = "1"
    if attempt.num_gpus:
        requests[GPU] = limits[GPU] = str(attempt.num_gpus)
    return {"requests": requests, "limits": limits}


def _streams_merge(run: Run) -> bool:
    return bool(run.status.data and run.status.data.streams_merge)


def _add_memory(all_resources: tuple[dict[str, str], ...], size: int) -> None:
    for resources in all_resources:
        resources["memory"] = format_quantity(parse_bytes(resources["memory"]) + size)
