"""Memory of a training pod on its node: what its processes take besides what is on GPUs.

Pinned and offloaded memory cannot be swapped or dropped; what the kernel caches of files is left out, since it gives
that back. /dev/shm is not in it either: it comes on top of the pod's memory (``workers.shmSize``). Compared with real
processes by tests/trainer/test_memory_host.py.
"""

from dataclasses import dataclass, replace

from llava_api.constants import StageName
from llava_api.memory.demand import Prepared, accumulation, workload_of
from llava_api.memory.plan import Term, plan_memory
from llava_api.memory.states import BUCKET_ELEMENTS, MOMENTS, count_largest, count_trained, plan_states
from llava_api.memory.workload import FLOAT, Workload
from llava_api.model_facts import ModelFacts
from llava_api.quantities import parse_bytes
from llava_api.spec import Spec, Workers

PROCESS_BYTES = 1 << 30
"""A training process before it has loaded anything: torch, transformers and DeepSpeed, measured at 0.9 GiB."""
CUDA_PROCESS_BYTES = 2 << 30
"""Allowance for what CUDA and NCCL take of the node's memory in each process: an estimate, not measured."""
LAUNCHER_BYTES = 3 << 28
"""The process that starts the others, measured at 0.6 GiB."""
DECODING_BYTES = 4 * 12_000_000 * 8
"""Allowance for pictures while they are decoded: as many threads as training has, 12 million pixels, 8 bytes each."""
STEPS_LOADED = 2
"""The step that is learned from and the next: ``_STEPS_AHEAD`` of llava_trainer.training.batches."""
_CHANNELS = 3


@dataclass(frozen=True, kw_only=True)
class HostPlan:
    """What a pod takes of its node's memory when it takes most."""

    terms: tuple[Term, ...]

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(term.size for term in self.terms)


def plan_host(spec: Spec, stage: StageName, model: ModelFacts, prepared: Prepared) -> HostPlan:
    """The memory of one pod of a training stage."""
    work = workload_of(spec, stage, model, prepared)
    processes = max(spec.workers.gpus, 1)
    own = PROCESS_BYTES + (CUDA_PROCESS_BYTES if work.on_gpu else 0)
    sizes = {
        "processes": processes * own + LAUNCHER_BYTES,
        "training": 0 if work.on_gpu else processes * _computing(model, work),
        "offloaded states": processes * plan_states(model, work).offloaded,
        "checkpoint copies": processes * count_copied(model, work),
        "results": _results(model, work),
        "pictures": processes * _pictures(spec, stage, model, work),
    }
    return HostPlan(terms=tuple(Term(name=name, size=size) for name, size in sizes.items() if size))


def memory_of_pod(workers: Workers) -> int:
    """Bytes that a training pod may take, without /dev/shm: its limit, else its request, else the default."""
    given = workers.resources
    found = given.limits.get("memory") or given.requests.get("memory") or Workers().resources.requests["memory"]
    return parse_bytes(found)


def count_copied(model: ModelFacts, work: Workload) -> int:
    """Bytes of a process's part of the optimiser, which it copies for a checkpoint and keeps the memory for."""
    return count_trained(model, work) * FLOAT * (1 + MOMENTS) // work.world_size


def _computing(model: ModelFacts, work: Workload) -> int:
    """On a CPU: all that would be on a GPU, and what gloo holds of a bucket while it travels."""
    travelling = FLOAT * min(count_trained(model, work), BUCKET_ELEMENTS) if work.world_size > 1 else 0
    return plan_memory(model, replace(work, on_gpu=False)).total + travelling


def _results(model: ModelFacts, work: Workload) -> int:
    """What the first process writes at the end, and reads back to compare it: an adapter whole, weights one by one."""
    numbers = count_largest(model, work) if work.method == "full" else count_trained(model, work)
    return 2 * numbers * work.number_bytes


def _pictures(spec: Spec, stage: StageName, model: ModelFacts, work: Workload) -> int:
    """fp32 pixels of what is loaded, and of what is being decoded."""
    loaded = STEPS_LOADED * max(1, accumulation(spec, stage)) * work.pictures
    return DECODING_BYTES + loaded * _CHANNELS * model.image_size_px**2 * FLOAT
