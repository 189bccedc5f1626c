"""What training takes of a device's memory, calculated from a model's shape and a spec. Pure; knows no torch."""

from llava_api.memory.activations import Activations, plan_activations
from llava_api.memory.demand import (
    Prepared,
    accumulation,
    batch_of,
    num_processes,
    num_steps,
    workload_of,
)
from llava_api.memory.parameters import ParameterCounts, count_lora, count_parameters
from llava_api.memory.plan import MemoryPlan, Term, plan_memory
from llava_api.memory.remedies import Remedy, find_remedies
from llava_api.memory.states import States, count_trained, plan_states
from llava_api.memory.storage import StoragePlan, plan_storage
from llava_api.memory.workload import Method, Workload

__all__ = [
    "Activations",
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
    "num_processes",
    "num_steps",
    "plan_activations",
    "plan_memory",
    "plan_states",
    "plan_storage",
    "workload_of",
]
