"""Requests and limits of a stage's container, completed."""

from llava_api.constants import TRAINING_STAGES, StageName
from llava_api.quantities import format_quantity, parse_bytes
from llava_api.spec import Evaluation, Merge, Prepare, Resources, Workers
from llava_operator.kube.objects import Object
from llava_operator.run import Run

GPU = "nvidia.com/gpu"

_DEFAULTS: dict[StageName, Resources] = {
    StageName.PREPARE: Prepare().resources,
    StageName.ALIGN: Workers().resources,
    StageName.TRAIN: Workers().resources,
    StageName.MERGE: Merge().resources,
    StageName.EVALUATE: Evaluation().resources,
}


def _given(run: Run, stage: StageName) -> Resources:
    return {
        StageName.PREPARE: run.spec.prepare.resources,
        StageName.ALIGN: run.spec.workers.resources,
        StageName.TRAIN: run.spec.workers.resources,
        StageName.MERGE: run.spec.merge.resources,
        StageName.EVALUATE: run.spec.evaluation.resources,
    }[stage]


def build_resources(run: Run, stage: StageName, num_gpus: int) -> Object:
    """Requests and limits of a stage's container.

    - CPU and memory that the run does not mention are the stage's defaults.
    - A missing request is the limit, as Kubernetes has it.
    - A missing limit is the request, but for the CPU: a pod without a CPU limit uses what is idle, and one with a
      limit is throttled while the node has time to spare. Who wants the limit sets it.
    - In training /dev/shm comes on top of the memory, in request and limit: what lies in it counts as the container's.
    - The adapters of ``workers.network.resource`` are requested once a training pod.
    """
    given, default = _given(run, stage), _DEFAULTS[stage]
    requests, limits = dict(given.requests), dict(given.limits)
    for name in ("cpu", "memory"):
        if name not in requests and name not in limits:
            requests[name] = default.requests[name]
    requests = {**limits, **requests}
    limits = {**{name: value for name, value in requests.items() if name != "cpu"}, **limits}
    if stage in TRAINING_STAGES:
        _add_memory((requests, limits), parse_bytes(run.spec.workers.shm_size))
        if run.spec.workers.network.resource is not None:
            requests[run.spec.workers.network.resource] = limits[run.spec.workers.network.resource] = "1"
    if num_gpus:
        requests[GPU] = limits[GPU] = str(num_gpus)
    return {"requests": requests, "limits": limits}


def _add_memory(all_resources: tuple[dict[str, str], ...], size: int) -> None:
    for resources in all_resources:
        resources["memory"] = format_quantity(parse_bytes(resources["memory"]) + size)
