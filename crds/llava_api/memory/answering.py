"""Memory of answering a held-out question during training, beyond weights, gradients and the optimiser's states.

One question at a time, without a graph: keys and values of all layers, and what one layer holds when it reads a prompt.
"""

from llava_api.memory.parameters import CLASS_TOKENS, key_value_width, patches
from llava_api.memory.workload import FLOAT, Workload
from llava_api.model_facts import ModelFacts


def plan_answering(model: ModelFacts, work: Workload) -> int:
    """Bytes at the instant when an answer takes most; 0 where none is asked for.

    As many pictures are counted as a micro-batch shows at most.
    """
    if not work.answer_tokens:
        return 0
    shape, tower, b = model.language_model, model.vision_tower, work.number_bytes
    cache = work.answer_tokens * shape.layers * 2 * key_value_width(shape) * b
    # The stream before and behind the layer, queries, the attention's output, the MLP; an fp32 copy in the norm.
    layer = work.answer_tokens * (b * (4 * shape.hidden + 3 * shape.intermediate) + FLOAT * shape.hidden)
    seen = work.pictures * (patches(model) + CLASS_TOKENS) * tower.hidden * b * (tower.layers + 1)
    # Logits of one position, and once more in fp32.
    return cache + max(layer, seen) + model.vocabulary * (b + FLOAT)
