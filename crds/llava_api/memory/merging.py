"""Memory of a pod that merges: a layer, or a few of the largest tensors, whatever else the model consists of.

A base's tensor is updated in fp32, and the proof fills one block after another; `make bench-merge` measures it.
"""

from llava_api.memory.host import PROCESS_BYTES
from llava_api.memory.parameters import count_parameters
from llava_api.memory.workload import FLOAT
from llava_api.model_facts import ModelFacts

ALLOWANCE_BYTES = 1 << 29
"""Hidden states and logits of the samples that the proof runs on, and what the C library keeps."""
_TENSORS = 4
_HALF_LAYERS = 5


def merging_bytes(model: ModelFacts) -> int:
    """Most that a merging pod takes, proof included: the larger of four largest tensors and 2.5 decoder layers in fp32.

    What the kernel caches of files is left out, since it gives that back.
    """
    counts = count_parameters(model)
    tensors = sorted([counts.embedding] * 2 + [counts.largest_matrix] * _TENSORS)[-_TENSORS:]
    held = max(sum(tensors), counts.layer * _HALF_LAYERS // 2) * FLOAT
    return PROCESS_BYTES + held + ALLOWANCE_BYTES
