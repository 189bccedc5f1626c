"""Adds up what a device holds at each instant that can be the peak, and says which one is."""

from dataclasses import dataclass

from llava_api.memory.activations import plan_activations
from llava_api.memory.answering import plan_answering
from llava_api.memory.states import plan_states
from llava_api.memory.workload import Workload
from llava_api.model_facts import ModelFacts

CONTEXT_BYTES = 1 << 30
"""Allowance for what no tensor takes: CUDA's context and kernels, cuBLAS' work space, NCCL's channels."""
FRAGMENTED_SHARE = 0.05
"""Allowance for what PyTorch's allocator holds beyond what it has handed out. Both are estimates, not calculated."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """One part of the memory."""

    name: str
    size: int
    """Bytes."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What a device holds at the instant when it holds most."""

    terms: tuple[Term, ...]

    @property
    def total(self) -> int:
        """Bytes, allowances included."""
        return sum(term.size for term in self.terms)


def plan_memory(model: ModelFacts, work: Workload) -> MemoryPlan:
    """The peak over forward and backward pass, the optimiser's step, and answers between steps.

    On a CPU without allowances.
    """
    states, activations = plan_states(model, work), plan_activations(model, work)
    held = {"weights": states.weights, "gradients": states.gradients, "optimizer": states.optimizer}
    instants: tuple[dict[str, int], ...] = (
        held
        | {
            "gathered weights": states.gathered,
            "communication": states.buffers,
            "activations": activations.layers,
            "pictures": activations.pictures,
            "head": activations.head,
        },
        held | {"step": states.stepping},
        held | {"answers": plan_answering(model, work)},
    )
    peak = max(instants, key=lambda instant: sum(instant.values()))
    named = dict(peak)
    if work.on_gpu:
        fragmented = int(sum(peak.values()) * FRAGMENTED_SHARE)
        named["allowance (CUDA context, fragmentation)"] = CONTEXT_BYTES + fragmented
    return MemoryPlan(terms=tuple(Term(name=name, size=size) for name, size in named.items() if size))
