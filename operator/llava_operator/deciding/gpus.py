"""What is known of the GPUs that a run may get, and what they cannot do. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from llava_api.quantities import parse_bytes
from llava_api.spec import Spec

MIB = 1 << 20

Capability = tuple[int, int]
"""NVIDIA's compute capability: major, minor."""

OLDEST: Capability = (7, 5)
"""The oldest that PyPI's wheel of PyTorch 2.15 is built for."""
BFLOAT16: Capability = (8, 0)
"""The oldest that computes in bf16, and that flash-attn 2 runs on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGpus:
    """The GPUs of one node, as the labels of GPU feature discovery have them; None where a label says nothing."""

    product: str = ""
    count: int | None = None
    memory: int | None = None
    """Bytes of each."""
    capability: Capability | None = None


@dataclass(frozen=True, kw_only=True)
class KnownGpus:
    """What a run's GPUs have, as far as it is known; None where nothing is."""

    memory: int | None = None
    """Bytes."""
    memory_from: str = ""
    """Who says so, to be told to a person."""
    capability: Capability | None = None
    capability_from: str = ""


def is_asked_of_nodes(spec: Spec) -> bool:
    """Whether the nodes' labels can tell something of the run's GPUs that its spec does not."""
    workers = spec.workers
    return workers.gpus > 0 and (workers.gpu_memory is None or workers.compute_capability is None)


def find_gpus(spec: Spec, nodes: Iterable[NodeGpus]) -> KnownGpus:
    """What the spec says, else the most that any node has which could hold a training pod.

    The most, because only what no node could carry out is refused: of different GPUs, the smaller ones may be tainted,
    full, or too small in other ways, and a pod that lands on one of them after all fails at its first step.
    """
    workers = spec.workers
    fitting = [node for node in nodes if node.count is None or node.count >= workers.gpus]
    largest = max((n for n in fitting if n.memory is not None), key=lambda node: node.memory or 0, default=None)
    newest = max(
        (n for n in fitting if n.capability is not None), key=lambda node: node.capability or (0, 0), default=None
    )
    memory, memory_from = (largest.memory, _labels_of(largest)) if largest else (None, "")
    capability, capability_from = (newest.capability, _labels_of(newest)) if newest else (None, "")
    if workers.gpu_memory is not None:
        memory, memory_from = parse_bytes(workers.gpu_memory), "spec.workers.gpuMemory"
    if workers.compute_capability is not None:
        capability, capability_from = parse_capability(workers.compute_capability), "spec.workers.computeCapability"
    return KnownGpus(memory=memory, memory_from=memory_from, capability=capability, capability_from=capability_from)


def _labels_of(node: NodeGpus) -> str:
    return f"labels of a node with {node.product}" if node.product else "a node's labels"


def parse_capability(text: str) -> Capability:
    """``8.0`` as numbers.

    Raises:
        ValueError: it is something else.
    """
    major, minor = text.split(".")
    return int(major), int(minor)


def find_shortcomings(spec: Spec, gpus: KnownGpus) -> list[str]:
    """What a run asks for and its GPUs cannot do, each with the setting to change; nothing where they are unknown."""
    capability, training = gpus.capability, spec.training
    if capability is None or spec.workers.gpus == 0:
        return []
    has = f"has compute capability {capability[0]}.{capability[1]} ({gpus.capability_from})"
    if capability < OLDEST:
        return [f"the GPU {has}, and PyTorch in the trainer image needs 7.5 or newer: take newer GPUs"]
    if capability >= BFLOAT16:
        return []
    found = []
    if training.precision != "fp32":
        said = "auto, which is bf16 on GPUs" if training.precision == "auto" else training.precision
        found.append(
            f"spec.training.precision is {said}, which needs compute capability 8.0, and the GPU {has}: set it to fp32"
        )
    if training.attention == "flash_attention_2":
        found.append(
            "spec.training.attention is flash_attention_2, which needs compute capability 8.0, and the GPU "
            f"{has}: set it to sdpa"
        )
    return found
