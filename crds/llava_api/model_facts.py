"""What is known of a model once prepare has read its configuration: its shape, and how pictures enter it."""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from llava_api.base import Lenient

Size = Annotated[int, Field(ge=1, le=2**40)]
Short = Annotated[str, Field(max_length=256)]


class TransformerShape(Lenient):
    """Sizes of a transformer."""

    layers: Annotated[Size, Field(description="Number of layers.")]
    hidden: Annotated[Size, Field(description="Width of the hidden states.")]
    intermediate: Annotated[Size, Field(description="Width inside a layer's MLP.")]
    heads: Annotated[Size, Field(description="Heads of attention in a layer.")]
    key_value_heads: Annotated[Size, Field(description="Heads of keys and values.")]


class ModelFacts(Lenient):
    """The model that a run starts from."""

    source: Annotated[Short, Field(description="Where it came from, with the commit where there is one.")] = ""
    layout: Annotated[
        Literal["hub", "original", "assembled"],
        Field(description="hub: read as it is; original: converted from the original code's layout; assembled: "
                          "language model and vision tower with a fresh projector."),
    ] = "hub"  # fmt: skip
    language_model: Annotated[TransformerShape, Field(description="Language model.")]
    vocabulary: Annotated[Size, Field(description="Rows of the embedding and of the head.")]
    vision_tower: Annotated[TransformerShape, Field(description="Vision tower.")]
    image_size_px: Annotated[Size, Field(description="Side of the square that a picture is made to.")]
    patch_size_px: Annotated[Size, Field(description="Side of a patch.")]
    tokens_per_image: Annotated[Size, Field(description="Tokens that a picture becomes.")]
    feature_layer: Annotated[
        tuple[int, ...], Field(max_length=16, description="Hidden states of the tower that are taken, like -2.")
    ]
    feature_strategy: Annotated[
        Literal["default", "full"], Field(description="default drops the class token, full keeps it.")
    ]

    @property
    def seen_layers(self) -> int:
        """Layers of the tower that its features depend on: ``count_seen_layers``."""
        return count_seen_layers(self.vision_tower.layers, self.feature_layer)


def count_seen_layers(num_layers: int, taken: Iterable[int]) -> int:
    """Layers of a tower up to the last whose hidden states are taken.

    Args:
        num_layers: of the tower; it gives one hidden state more, before the first layer.
        taken: which hidden states, like -2.

    Returns:
        0 to ``num_layers``, whatever is asked for: another process's word for a model is not believed.
    """
    last = max((state if state >= 0 else num_layers + 1 + state for state in taken), default=0)
    return min(max(last, 0), num_layers)
