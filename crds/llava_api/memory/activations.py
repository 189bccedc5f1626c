"""Memory of one forward and backward pass beyond weights: what autograd keeps, and what is held for a moment.

Read off transformers 5.23 (models/llama, models/clip, models/llava), peft 0.21 (tuners/lora/layer.py), torch 2.15's
derivatives and ``llava_trainer.model.{objective,head}``; compared with a trace of the same modules by
tests/trainer/test_memory_plan.py. In what follows a token's width is ``h`` in the stream between layers and ``I``
inside a layer's MLP, ``b`` is the number of bytes of a number (2 in bf16), and a cost is in bytes a token where
nothing else is said.
"""

from collections.abc import Collection
from dataclasses import dataclass

from llava_api.memory.eager import held_by_softmax, held_by_softmax_backward, kept_weights, pairs_of_text
from llava_api.memory.parameters import CLASS_TOKENS, count_parameters, key_value_width, linear_widths, patches
from llava_api.memory.workload import FLOAT, Workload
from llava_api.model_facts import ModelFacts
from llava_api.spec import LoraTarget

HEAD_CHUNK_ELEMENTS = 2**24
"""Logits that the head holds at a time: ``CHUNK_ELEMENTS`` of llava_trainer.model.head."""
_INPUTS: dict[LoraTarget, str] = {
    "q_proj": "first norm", "k_proj": "first norm", "v_proj": "first norm", "o_proj": "attention",
    "gate_proj": "second norm", "up_proj": "second norm", "down_proj": "product",
}  # fmt: skip
"""What goes into each linear layer of a layer."""
_BEFORE_ATTENTION: tuple[LoraTarget, ...] = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes at the instant when a pass takes most."""

    layers: int
    """What the language model's layers keep for the backward pass, and the layer in work."""
    pictures: int
    """The tower's hidden states, the projector's inputs and outputs."""
    head: int
    """Logits of a piece, their gradients, and those of the hidden states."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.layers + self.pictures + self.head


def plan_activations(model: ModelFacts, work: Workload) -> Activations:
    """The largest of the instants that can be the peak."""
    instants: tuple[Activations, ...] = (
        _seeing(model, work),
        _end_of_layers(model, work),
        _head(model, work),
        _head_backward(model, work),
        _first_backward_step(model, work),
        _last_layer_backward(model, work),
        *((_last_attention_backward(model, work),) if work.eager else ()),
        *((_tower_backward(model, work),) if work.learns_tower else ()),
    )
    return max(instants, key=lambda instant: instant.total)


def saved_by_layer(model: ModelFacts, work: Workload) -> int:
    """What one layer keeps for its backward pass, in bytes for the whole micro-batch."""
    shape, b = model.language_model, work.number_bytes
    h, inner, kv = shape.hidden, shape.intermediate, key_value_width(shape)
    # LlamaRMSNorm squares and scales an fp32 copy of its input, and both keep it.
    norms = 2 * FLOAT * h
    # Queries and keys after rotation, values, and the output; rows of log-sum-exp. Fewer key-value heads are repeated
    # under a mask, since no fused kernel would take them there (use_gqa_in_sdpa).
    repeated = 2 * h if kv != h and (work.masked or work.eager) else 0
    attention = b * (2 * h + 2 * kv + repeated) + FLOAT * shape.heads
    # silu keeps its input, and the product both its factors.
    mlp = b * 3 * inner
    total = work.tokens * (norms + attention + mlp + _saved_by_linears(model, work))
    if work.eager:
        return total + kept_weights(pairs_of_text(model, work), b)
    return total + (_mask_bias(work) if work.masked else 0)


def _saved_by_linears(model: ModelFacts, work: Workload) -> int:
    """A linear layer keeps its input for the gradient of its weight, and nothing if that is frozen."""
    shape, b = model.language_model, work.number_bytes
    h, inner = shape.hidden, shape.intermediate
    if work.method == "projector":
        return 0
    if work.method == "full":
        # Two norms keep what they scale by their weights; q, k, v share an input, so do gate and up; o's is the
        # attention's output, kept already; down's is the product.
        return b * (2 * h + 2 * h + inner)
    return b * len(work.targets) * work.rank + _saved_inputs(model, work, work.targets)


def _saved_inputs(model: ModelFacts, work: Workload, targets: Collection[LoraTarget]) -> int:
    """What adapters on ``targets`` keep of what goes into them, for the gradients of their A matrices."""
    b, widths = work.number_bytes, linear_widths(model.language_model)
    if work.dropout:
        # Every adapter drops out its own copy: the result, and one byte a number for what was dropped.
        return (b + 1) * sum(widths[target][0] for target in targets)
    # Without dropout they share what goes into them: q, k, v one, gate and up another; o's is kept by attention.
    inputs = {_INPUTS[target]: widths[target][0] for target in targets}
    return b * sum(width for name, width in inputs.items() if name != "attention")


def _mask_bias(work: Workload) -> int:
    """Sdpa turns the boolean mask into a bias of the queries' format, in every layer (convert_boolean_attn_mask).

    Eager attention is given one such bias for all layers.
    """
    return work.rows * work.length**2 * work.number_bytes


def _mask(work: Workload) -> int:
    """What all layers share."""
    if work.eager:
        return _mask_bias(work)
    return work.rows * work.length**2 if work.masked else 0


def _kept_by_all_layers(model: ModelFacts, work: Workload) -> int:
    """What all layers keep between forward and backward pass, with what stands around them."""
    shape = model.language_model
    stream = work.tokens * shape.hidden * work.number_bytes
    if work.gradient_checkpointing:
        # torch.utils.checkpoint keeps each layer's input only.
        return stream * shape.layers + _mask(work)
    return saved_by_layer(model, work) * shape.layers + _mask(work)


def _final_norm(model: ModelFacts, work: Workload) -> int:
    """An fp32 copy, as in every norm; scaled by a trained weight, the scaled one too."""
    h = model.language_model.hidden
    return work.tokens * (FLOAT * h + (work.number_bytes * h if work.method == "full" else 0))


def _tower_states(model: ModelFacts, work: Workload) -> int:
    """The tower gives all its hidden states, of which some are taken; LlavaModel holds on to them till it returns."""
    shape = model.vision_tower
    return _tower_tokens(model, work) * shape.hidden * work.number_bytes * (shape.layers + 1)


def _tower_tokens(model: ModelFacts, work: Workload) -> int:
    return work.pictures * (patches(model) + CLASS_TOKENS)


def _saved_by_tower_layer(model: ModelFacts, work: Workload) -> int:
    """What a layer of a tower that learns keeps beyond the hidden state that goes into it.

    Both norms' results and the stream between them; queries, keys, values and attention's result; QuickGELU keeps what
    goes in and a sigmoid of it, and the layer behind it the product.
    """
    shape, b = model.vision_tower, work.number_bytes
    kept = _tower_tokens(model, work) * (b * (7 * shape.hidden + 3 * shape.intermediate) + FLOAT * shape.heads)
    return kept + (kept_weights(_tower_pairs(model, work), b) if work.eager else 0)


def _tower_pairs(model: ModelFacts, work: Workload) -> int:
    return work.pictures * model.vision_tower.heads * (patches(model) + CLASS_TOKENS) ** 2


def _kept_by_tower(model: ModelFacts, work: Workload) -> int:
    """A tower that learns keeps what goes into its first norm and into each layer that is seen, or all of these."""
    if not work.learns_tower:
        return 0
    stream = _tower_tokens(model, work) * model.vision_tower.hidden * work.number_bytes
    layers = 0 if work.gradient_checkpointing else model.seen_layers * _saved_by_tower_layer(model, work)
    return stream * (1 + model.seen_layers) + layers


def _tower_running(model: ModelFacts, work: Workload) -> int:
    """All hidden states, and what a graph keeps besides those that go into layers."""
    states, kept = _tower_states(model, work), _kept_by_tower(model, work)
    stream = _tower_tokens(model, work) * model.vision_tower.hidden * work.number_bytes
    return states + max(0, kept - model.seen_layers * stream)


def _kept_of_pictures(model: ModelFacts, work: Workload) -> int:
    """The projector's two linear layers keep their inputs and GELU its own; the embeddings before pictures enter.

    A frozen projector keeps what goes into GELU, for a tower that learns.
    """
    tower = _kept_by_tower(model, work)
    if not work.learns_projector and not work.learns_tower and work.method != "full":
        # Nothing before the first layer learns.
        return tower
    h, seen = model.language_model.hidden, model.vision_tower.hidden * len(model.feature_layer)
    projected = work.pictures * model.tokens_per_image * (seen + 2 * h)
    return tower + work.number_bytes * (projected + work.tokens * h)


def _tower_backward(model: ModelFacts, work: Workload) -> Activations:
    """In the backward pass of the last layer that is seen; of the language model nothing is left.

    In its MLP, with two gradients of width I, or with eager attention in its softmax, when what the MLP had kept is
    gone.
    """
    shape, b = model.vision_tower, work.number_bytes
    tokens = _tower_tokens(model, work)
    recomputed = _saved_by_tower_layer(model, work) if work.gradient_checkpointing else 0
    at_most = recomputed + tokens * b * (2 * shape.intermediate + 2 * shape.hidden)
    if work.eager:
        in_softmax = tokens * b * 5 * shape.hidden + held_by_softmax_backward(_tower_pairs(model, work))
        at_most = max(at_most, in_softmax)
    return Activations(layers=0, pictures=_kept_by_tower(model, work) + at_most, head=0)


def _seeing(model: ModelFacts, work: Workload) -> Activations:
    """Inside the tower, without a graph: its states so far, and one layer's MLP (input, twice the inner width).

    Eager attention, which the tower follows, holds more: besides its weights the layer's input after the norm, queries,
    keys and values, less the state that this layer is yet to make.
    """
    shape, b = model.vision_tower, work.number_bytes
    tokens = _tower_tokens(model, work)
    inside = tokens * b * (3 * shape.hidden + 2 * shape.intermediate)
    if work.eager:
        pairs = _tower_pairs(model, work)
        inside = max(inside + pairs * b, held_by_softmax(pairs, b) + 3 * tokens * b * shape.hidden)
    embedded = work.tokens * model.language_model.hidden * b
    return Activations(layers=embedded, pictures=_tower_running(model, work) + inside, head=0)


def _end_of_layers(model: ModelFacts, work: Workload) -> Activations:
    """At the end of the last layer's forward pass: what is kept, and that layer's MLP."""
    shape, b = model.language_model, work.number_bytes
    inside = work.tokens * b * (2 * shape.hidden + (3 if work.gradient_checkpointing else 1) * shape.intermediate)
    pictures = _tower_running(model, work) - _kept_by_tower(model, work) + _kept_of_pictures(model, work)
    return Activations(layers=_kept_by_all_layers(model, work) + inside, pictures=pictures, head=0)


def _head(model: ModelFacts, work: Workload) -> Activations:
    """In the head's forward pass, which computes its gradients at once (model/head.py)."""
    h, b, vocabulary = model.language_model.hidden, work.number_bytes, model.vocabulary
    rows = min(work.supervised, max(1, HEAD_CHUNK_ELEMENTS // vocabulary))
    # Hidden states of the learned positions, and their gradients; a piece of logits in fp32, and once more in bf16.
    copy = b if b != FLOAT else 0
    head = 2 * work.supervised * h * b + rows * vocabulary * (FLOAT + copy)
    if work.method == "full":
        # Its weight's gradient, summed in fp32, and a piece's share.
        head += vocabulary * h * (FLOAT + b)
    return Activations(
        layers=_kept_by_all_layers(model, work) + _final_norm(model, work) + work.tokens * h * b,
        pictures=_kept_of_pictures(model, work),
        head=head,
    )


def _head_backward(model: ModelFacts, work: Workload) -> Activations:
    """In the head's backward pass: what it has kept, times the loss's gradient."""
    h, b = model.language_model.hidden, work.number_bytes
    head = 2 * work.supervised * h * b
    if work.method == "full":
        head += model.vocabulary * h * (2 * FLOAT + (b if b != FLOAT else 0))
    return Activations(
        layers=_kept_by_all_layers(model, work) + _final_norm(model, work),
        pictures=_kept_of_pictures(model, work),
        head=head,
    )


def _first_backward_step(model: ModelFacts, work: Workload) -> Activations:
    """In the last norm's backward pass, before any layer has let go of anything.

    Five fp32 tensors of the stream, or four where the stream itself is fp32 and is not converted.
    """
    copies = 5 if work.number_bytes != FLOAT else 4
    inside = copies * work.tokens * FLOAT * model.language_model.hidden
    return Activations(
        layers=_kept_by_all_layers(model, work) + _final_norm(model, work) + inside,
        pictures=_kept_of_pictures(model, work),
        head=0,
    )


def _last_layer_backward(model: ModelFacts, work: Workload) -> Activations:
    """In the last layer's backward pass; with checkpointing its forward pass has just been computed again.

    Either at the end of that second computation, when the MLP's product, its input and output, the residual stream and
    its gradient are held besides (I + 5h), or in the backward pass of the down projection, with three gradients of
    width I, of which one takes the place of the product where that was kept.
    """
    shape, b = model.language_model, work.number_bytes
    h, inner = shape.hidden, shape.intermediate
    recomputed = 0
    if work.gradient_checkpointing:
        # In fp32 the first norm keeps the layer's input itself, which is counted already.
        recomputed = saved_by_layer(model, work) - (work.tokens * FLOAT * h if b == FLOAT else 0)
    drops_out = work.has_adapter and bool(work.dropout)
    at_end = work.tokens * b * (inner + 5 * h) if drops_out else 0
    gradients = work.tokens * b * ((3 if work.method == "projector" else 2) * inner + h)
    return Activations(
        layers=_kept_by_all_layers(model, work) + recomputed + max(at_end, gradients + _dequantized(model, work)),
        pictures=_kept_of_pictures(model, work),
        head=0,
    )


def _last_attention_backward(model: ModelFacts, work: Workload) -> Activations:
    """In the backward pass of the last layer's softmax; what its MLP had kept is gone by then.

    Besides it there are queries and keys, what the norm and the three linear layers before them keep, and gradients of
    values and of the residual stream.
    """
    shape, b = model.language_model, work.number_bytes
    if work.gradient_checkpointing:
        kept = work.tokens * shape.hidden * b * shape.layers
    else:
        kept = saved_by_layer(model, work) * (shape.layers - 1)
    norm = FLOAT * shape.hidden if b != FLOAT or not work.gradient_checkpointing else 0
    inside = work.tokens * (norm + 4 * b * shape.hidden + _saved_before_attention(model, work))
    return Activations(
        layers=kept + _mask(work) + inside + held_by_softmax_backward(pairs_of_text(model, work)),
        pictures=_kept_of_pictures(model, work),
        head=0,
    )


def _saved_before_attention(model: ModelFacts, work: Workload) -> int:
    """``_saved_by_linears``, of the norm and the linear layers that make queries, keys and values."""
    h, b = model.language_model.hidden, work.number_bytes
    if work.method == "projector":
        return 0
    if work.method == "full":
        return 2 * b * h
    before = [target for target in work.targets if target in _BEFORE_ATTENTION]
    return b * len(before) * work.rank + _saved_inputs(model, work, before)


def _dequantized(model: ModelFacts, work: Workload) -> int:
    """Bitsandbytes' MatMul4Bit unpacks a whole matrix for each product."""
    return count_parameters(model).largest_matrix * work.number_bytes if work.method == "qlora" else 0
