"""What training takes of GPUs, of their nodes' memory and of the volume, from a model's shape and a spec. Pure."""

from llava_api.memory.activations import Activations, plan_activations
from llava_api.memory.demand import (
    Prepared,
    accumulation,
    batch_of,
    num_processes,
    num_steps,
    workload_of,
)
from llava_api.memory.host import HostPlan, memory_of_pod, plan_host
from llava_api.memory.merging import merging_bytes
from llava_api.memory.parameters import ParameterCounts, count_lora, count_parameters
from llava_api.memory.plan import MemoryPlan, Term, plan_memory
from llava_api.memory.remedies import Remedy, find_remedies
from llava_api.memory.states import States, count_trained, plan_states
from llava_api.memory.storage import RESERVED_S, StoragePlan, plan_storage
from llava_api.memory.workload import Method, Workload

__all__ = [
    "RESERVED_S",
    "Activations",
    "HostPlan",
    "MemoryPlan",
    "Method",
    "ParameterCounts",
    "Prepared",
    "Remedy",
    "States",
    "StoragePlan",
    "Term",
    "Workload",
    "accumulation",
    "batch_of",
    "count_lora",
    "count_parameters",
    "count_trained",
    "find_remedies",
    "memory_of_pod",
    "merging_bytes",
    "num_processes",
    "num_steps",
    "plan_activations",
    "plan_host",
    "plan_memory",
    "plan_states",
    "plan_storage",
    "workload_of",
]
