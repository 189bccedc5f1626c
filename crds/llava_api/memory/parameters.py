"""How many numbers a LLaVA is made of, part by part. Pure arithmetic on its shape."""

from collections.abc import Collection
from dataclasses import dataclass

from llava_api.model_facts import ModelFacts, TransformerShape
from llava_api.spec import LORA_TARGETS, LoraTarget

CLASS_TOKENS = 1
"""CLIP's tower has one token that is no patch."""


@dataclass(frozen=True, kw_only=True)
class ParameterCounts:
    """Numbers in each part of a model."""

    embedding: int
    """Of the language model; its head is as large."""
    layer: int
    """One layer of the language model, matrices only."""
    layers: int
    """All of them, norms included, and the norm after the last."""
    largest_matrix: int
    """The largest of a layer's matrices."""
    tower: int
    seen_tower: int
    """Of it what its features depend on: all that learns where it does."""
    projector: int

    @property
    def language_model(self) -> int:
        """Embedding, layers and head."""
        return 2 * self.embedding + self.layers

    @property
    def model(self) -> int:
        """Everything."""
        return self.language_model + self.tower + self.projector


def key_value_width(shape: TransformerShape) -> int:
    """Width of keys, and of values."""
    return shape.hidden * shape.key_value_heads // shape.heads


def count_parameters(model: ModelFacts) -> ParameterCounts:
    """Count what transformers' LlavaForConditionalGeneration (5.23) makes of a shape."""
    text = model.language_model
    width, inner = text.hidden, text.intermediate
    layer = 2 * width * width + 2 * width * key_value_width(text) + 3 * width * inner
    return ParameterCounts(
        embedding=model.vocabulary * width,
        layer=layer,
        layers=text.layers * (layer + 2 * width) + width,
        largest_matrix=width * max(width, inner),
        tower=_count_seen_tower(model) + _count_behind(model),
        seen_tower=_count_seen_tower(model),
        projector=_count_projector(model),
    )


def _count_seen_tower(model: ModelFacts) -> int:
    """CLIPVisionModel: a convolution without bias, the class token, positions, a norm, and the layers that are seen."""
    width = model.vision_tower.hidden
    embeddings = width * (3 * model.patch_size_px**2 + 1 + patches(model) + CLASS_TOKENS)
    return embeddings + 2 * width + model.seen_layers * _count_tower_layer(model.vision_tower)


def _count_behind(model: ModelFacts) -> int:
    """The layers behind the features, and the norm after the last."""
    shape = model.vision_tower
    return (shape.layers - model.seen_layers) * _count_tower_layer(shape) + 2 * shape.hidden


def _count_tower_layer(shape: TransformerShape) -> int:
    """With biases everywhere."""
    width, inner = shape.hidden, shape.intermediate
    return 4 * width * width + 2 * width * inner + 9 * width + inner


def _count_projector(model: ModelFacts) -> int:
    """mlp2x_gelu: two linear layers with bias; several feature layers are laid side by side before the first."""
    seen, width = model.vision_tower.hidden * len(model.feature_layer), model.language_model.hidden
    return seen * width + width + width * width + width


def patches(model: ModelFacts) -> int:
    """Patches of a picture."""
    per_side: int = model.image_size_px // model.patch_size_px
    return per_side * per_side


def linear_widths(shape: TransformerShape) -> dict[LoraTarget, tuple[int, int]]:
    """Inputs and outputs of a layer's linear layers, by name."""
    width, inner, kv = shape.hidden, shape.intermediate, key_value_width(shape)
    return {
        "q_proj": (width, width),
        "k_proj": (width, kv),
        "v_proj": (width, kv),
        "o_proj": (width, width),
        "gate_proj": (width, inner),
        "up_proj": (width, inner),
        "down_proj": (inner, width),
    }


def count_lora(shape: TransformerShape, rank: int, targets: Collection[LoraTarget] = LORA_TARGETS) -> int:
    """Numbers of an adapter: (inputs + outputs) x rank for each of its targets."""
    widths = linear_widths(shape)
    return shape.layers * rank * sum(sum(widths[target]) for target in targets)
