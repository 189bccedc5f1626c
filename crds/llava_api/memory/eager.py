"""Attention written out (``training.attention: eager``): a number for each head and pair of tokens, held as tensors.

Read off ``eager_attention_forward`` of transformers 5.23 (models/llama, models/clip) and torch 2.15's softmax, which is
asked for fp32: on a GPU as on a CPU it works on an fp32 copy of bf16. All results are bytes, ``pairs`` is the number
of them over all rows and heads, ``b`` the bytes of a number.
"""

from llava_api.memory.workload import FLOAT, Workload
from llava_api.model_facts import ModelFacts


def pairs_of_text(model: ModelFacts, work: Workload) -> int:
    """Of one layer of the language model."""
    return work.rows * model.language_model.heads * work.length**2


def kept_weights(pairs: int, b: int) -> int:
    """For the backward pass: softmax's result, and in bf16 the rounded one too, which values are multiplied by."""
    return pairs * (FLOAT if b == FLOAT else FLOAT + b)


def held_by_softmax(pairs: int, b: int) -> int:
    """In the forward pass, in which it holds most: what goes in, in bf16 its fp32 copy, and what comes out."""
    return pairs * (2 * FLOAT if b == FLOAT else b + 2 * FLOAT)


def held_by_softmax_backward(pairs: int) -> int:
    """In the backward pass, in which it holds most: its result, the gradient of that, and the one of what went in."""
    return pairs * 3 * FLOAT
